package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/services/node-agent/internal/task"
	"skep.dev/services/node-agent/internal/volume"
)

// A volume is made once, mounted once for each task, and told of from before the mount until the unmount is confirmed.
func TestLifeOfAVolume(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	ctx := context.Background()
	d := n.driver("rexray:latest")
	if _, err := d.Get(ctx, "web"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	for range 2 {
		if err := d.Create(ctx, "web", map[string]string{"size": "5"}); err != nil {
			t.Fatal(err)
		}
	}
	want(t, f.heard("Create"), 1)
	scope, err := d.Scope(ctx)
	want(t, fmt.Sprint(scope, err), "global<nil>")

	a, b := newTask(), newTask()
	seen := ""
	f.on("Mount", func(w http.ResponseWriter, r io.Reader) {
		seen = n.held()
		f.and("Mount", says(200, fmt.Sprintf(`{"MountPoint":%q}`, filepath.Join(f.dir, "web"))))(w, r)
	})
	want(t, n.mount("rexray", "web", a), filepath.Join(f.dir, "web"))
	want(t, seen, "rexray/web:"+a) // before it was mounted
	f.on("Mount", nil)
	want(t, n.mount("rexray", "web", a), filepath.Join(f.dir, "web"))
	n.mount("rexray", "web", b)
	want(t, f.heard("Mount"), 2)
	want(t, f.heard("Path"), 1)
	info, err := d.Get(ctx, "web")
	want(t, fmt.Sprintln(info.Name, info.Driver, info.Mounted, info.CreatedAt.Year(), info.Status, err), "web rexray true 2024 map[size:5 zone:a] <nil>\n")
	if err := d.Remove(ctx, "web"); err == nil || !strings.Contains(err.Error(), "is mounted on node w1") {
		t.Errorf("remove while mounted: %v", err)
	}
	n.unmount("rexray", "web", a)
	n.unmount("rexray", "web", a)
	n.awaitHeld("rexray/web:" + b)
	n.unmount("rexray", "web", b)
	n.awaitHeld("")
	want(t, f.heard("Unmount"), 2)
	want(t, f.mountedFor("web"), "[]")
	all, err := d.List(ctx)
	want(t, fmt.Sprint(len(all), err), "1 <nil>")
	if err := d.Remove(ctx, "web"); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(n.cfg.State, "*")); err != nil || len(left) > 0 {
		t.Errorf("record: %v %v", left, err)
	}
}

// Whatever a plug-in does to a Mount, its task hears of it in words, the volume is told of until it is known not to be
// mounted, and the next call of a plug-in that came to its senses is right.
func TestMountGoesWrong(t *testing.T) {
	for name, c := range map[string]struct {
		do    func(*fake) func(http.ResponseWriter, io.Reader)
		words string
		final bool
	}{
		"error":          {func(*fake) func(http.ResponseWriter, io.Reader) { return says(500, `{"Err":"attached to w2"}`) }, "mount volume web: it says: attached to w2", true},
		"error in 200":   {func(*fake) func(http.ResponseWriter, io.Reader) { return says(200, `{"Err":"attached to w2"}`) }, "it says: attached to w2", true},
		"odd error":      {func(*fake) func(http.ResponseWriter, io.Reader) { return says(200, `{"Mountpoint":5,"Err":"broken"}`) }, "it says: broken", true},
		"garbage":        {func(*fake) func(http.ResponseWriter, io.Reader) { return says(200, "\x1b[31m<html>") }, "cannot be understood", false},
		"list":           {func(*fake) func(http.ResponseWriter, io.Reader) { return says(200, `[1]`) }, "cannot be understood", false},
		"empty":          {func(*fake) func(http.ResponseWriter, io.Reader) { return says(200, "") }, "the answer is empty", false},
		"nested":         {func(*fake) func(http.ResponseWriter, io.Reader) { return says(200, strings.Repeat(`{"a":`, 100_000)) }, "cannot be understood", false},
		"long":           {func(*fake) func(http.ResponseWriter, io.Reader) { return says(200, strings.Repeat(" ", maxAnswer+1)) }, "longer than", false},
		"moved":          {func(*fake) func(http.ResponseWriter, io.Reader) { return says(302, "") }, "status 302", false},
		"unknown":        {func(*fake) func(http.ResponseWriter, io.Reader) { return says(404, "404 page not found") }, "does not know this call", false},
		"hangs":          {func(f *fake) func(http.ResponseWriter, io.Reader) { return f.hangs }, "not answered within 500ms", false},
		"crash":          {func(*fake) func(http.ResponseWriter, io.Reader) { return crashes }, "EOF", false},
		"crash half-way": {func(f *fake) func(http.ResponseWriter, io.Reader) { return f.and("Mount", crashes) }, "EOF", false},
		"no mount point": {func(*fake) func(http.ResponseWriter, io.Reader) { return says(200, `{}`) }, "names no mount point", true},
		"root":           {func(*fake) func(http.ResponseWriter, io.Reader) { return says(200, `{"Mountpoint":"/"}`) }, "is not given to containers", true},
		"etc":            {func(*fake) func(http.ResponseWriter, io.Reader) { return says(200, `{"Mountpoint":"/etc/"}`) }, "is not given to containers", true},
	} {
		t.Run(name, func(t *testing.T) {
			n, dirs := newNode(t)
			f := newFake(t, dirs, "rexray")
			f.made["web"] = true
			id := newTask()
			f.on("Mount", c.do(f))
			_, err := n.driver("rexray").Mount(context.Background(), "web", id)
			if err == nil || !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), "rexray of node w1") || strings.Contains(err.Error(), "\x1b") {
				t.Fatalf("error %q, want %q", err, c.words)
			}
			want(t, task.IsTemporary(err), !c.final)
			want(t, n.held(), "rexray/web:"+id)
			f.on("Mount", nil)
			want(t, n.mount("rexray", "web", id), filepath.Join(f.dir, "web"))
			n.unmount("rexray", "web", id)
			n.awaitHeld("")
			want(t, f.mountedFor("web"), "[]")
		})
	}
}

// A task that is given up in the middle of it leaves nothing mounted, and nothing held.
func TestGivenUpWhileMounting(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	f.made["web"] = true
	id := newTask()
	f.on("Mount", f.and("Mount", crashes))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := n.driver("rexray").Mount(ctx, "web", id); err == nil {
		t.Fatal("mounted")
	}
	n.unmount("rexray", "web", id)
	n.awaitHeld("")
	want(t, f.mountedFor("web"), "[]")

	// It never took effect: the plug-in knows of no such mount, and says so.
	f.on("Mount", crashes)
	if _, err := n.driver("rexray").Mount(ctx, "web", id); err == nil {
		t.Fatal("mounted")
	}
	n.unmount("rexray", "web", id)
	n.awaitHeld("")
	want(t, f.heard("Unmount"), 2)
}

// One that refused to mount for one task is not asked to unmount while another has the volume: it may only count.
func TestRefusedMountIsNotCounted(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	f.made["web"], f.counts = true, true
	a, b := newTask(), newTask()
	n.mount("rexray", "web", a)
	f.on("Mount", says(500, `{"Err":"too many"}`))
	if _, err := n.driver("rexray").Mount(context.Background(), "web", b); err == nil {
		t.Fatal("mounted")
	}
	n.unmount("rexray", "web", b)
	n.awaitHeld("rexray/web:" + a)
	want(t, f.heard("Unmount"), 0)
	want(t, len(f.mountedFor("web")), 1)
}

// A plug-in that counted a mount whose answer was lost is asked to give back both.
func TestCountedTwice(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	f.made["web"], f.counts = true, true
	id := newTask()
	f.on("Mount", f.and("Mount", crashes))
	if _, err := n.driver("rexray").Mount(context.Background(), "web", id); err == nil {
		t.Fatal("mounted")
	}
	f.on("Mount", nil)
	n.mount("rexray", "web", id)
	want(t, len(f.mountedFor("web")), 2)
	n.unmount("rexray", "web", id)
	n.awaitHeld("")
	want(t, f.mountedFor("web"), "[]")
}

// A new agent tells of what the one before had mounted, goes on with what tasks need and unmounts the rest.
func TestAgentRestarts(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	a, b := newTask(), newTask()
	n.mount("rexray", "web", a)
	n.mount("rexray", "db", b)
	n.restart()
	want(t, n.held(), "rexray/db:"+b+"; rexray/web:"+a) // at once, whether the plug-in answers or not
	n.Reconcile(func(task string) bool { return task == a })
	n.awaitHeld("rexray/web:" + a)
	want(t, f.mountedFor("db"), "[]")
	n.mount("rexray", "web", a)
	want(t, f.heard("Mount web"), 1) // it is there still
	n.unmount("rexray", "web", a)
	n.awaitHeld("")

	// Killed in the middle of Mount, the plug-in having done it.
	f.on("Mount", f.and("Mount", f.hangs))
	got := make(chan error, 1)
	go func() {
		_, err := n.driver("rexray").Mount(context.Background(), "web", a)
		got <- err
	}()
	await(t, "the plug-in is asked", func() string {
		if len(f.mountedFor("web")) == 0 {
			return "not yet"
		}
		return ""
	})
	n.restart()
	if err := <-got; err == nil {
		t.Error("mounted by an agent that has ended")
	}
	want(t, n.held(), "rexray/web:"+a)
	n.Reconcile(func(string) bool { return false })
	n.awaitHeld("")
	want(t, f.mountedFor("web"), "[]")

	// A record that cannot be read still says what is held.
	f.on("Mount", nil)
	n.mount("rexray", "web", a)
	n.Close()
	if err := os.WriteFile(filepath.Join(n.cfg.State, "rexray", "web", a), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.cfg.State, "rexray", "web", a+".new-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.open()
	want(t, n.held(), "rexray/web:"+a)
	n.Reconcile(func(string) bool { return false })
	n.awaitHeld("")
}

// After a start of the machine nothing is mounted: a plug-in that has forgotten is believed, whatever it calls it.
func TestMachineRestarts(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	f.made["web"] = true
	n.mount("rexray", "web", newTask())
	n.Close()
	f.mu.Lock()
	f.mounts = map[string][]string{}
	f.mu.Unlock()
	f.on("Path", says(500, `{"Err":"what"}`))
	n.cfg.Boot = "two"
	n.open()
	n.Reconcile(func(string) bool { return false })
	n.awaitHeld("")
	want(t, f.heard("Unmount"), 1)
}

// A plug-in that is gone, or does not do it, is asked again until it has confirmed; the node tells of it meanwhile, and why.
func TestUnmountIsTriedUntilConfirmed(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	f.made["web"] = true
	id := newTask()
	n.mount("rexray", "web", id)
	for _, c := range []struct {
		do    func(http.ResponseWriter, io.Reader)
		words string
	}{
		{says(500, `{"Err":"device is busy"}`), "device is busy"},
		{says(200, ``), "answer is empty"},
		{says(404, `nothing`), "does not know this call"},
		{crashes, "EOF"},
		{f.hangs, "not answered within"},
	} {
		f.on("Unmount", c.do)
		n.unmount("rexray", "web", id)
		await(t, c.words, func() string {
			if got := n.held(); !strings.HasPrefix(got, "rexray/web:! volume plug-in rexray of node w1: ") || !strings.Contains(got, c.words) {
				return got
			}
			return ""
		})
	}
	f.stop()
	if err := os.Remove(f.sock); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	await(t, "it says which plug-in is not there", func() string {
		if got := n.held(); !strings.Contains(got, `node w1 has no volume plug-in "rexray"`) {
			return got
		}
		return ""
	})
	n.restart()
	n.Reconcile(func(string) bool { return false })
	f.on("Unmount", nil)
	f.start()
	n.awaitHeld("")
	want(t, f.mountedFor("web"), "[]")
}

// A person may say that a volume is not mounted whose plug-in will never answer again; not while a task has it.
func TestForget(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	id := newTask()
	n.mount("rexray", "web", id)
	if err := n.Forget("rexray", "web"); err == nil || !strings.Contains(err.Error(), id) {
		t.Errorf("forgot what a task has: %v", err)
	}
	f.stop()
	n.unmount("rexray", "web", id)
	if err := n.Forget("rexray", "web"); err != nil {
		t.Error(err)
	}
	n.awaitHeld("")
	n.restart()
	n.awaitHeld("")
}

// One that hangs keeps neither other volumes nor the agent's end waiting.
func TestHangingKeepsNobody(t *testing.T) {
	n, dirs := newNode(t)
	n.Close()
	n.cfg.limits, n.cfg.wait = dockers, 50*time.Millisecond
	n.open()
	f := newFake(t, dirs, "rexray")
	newFake(t, dirs, "other")
	f.on("Mount", f.hangs)
	var hung []string
	for i := range 20 {
		id := newTask()
		hung = append(hung, id)
		_, err := n.driver("rexray").Mount(context.Background(), fmt.Sprintf("v%d", i), id)
		if !task.IsTemporary(err) || !strings.Contains(err.Error(), "has not answered yet") {
			t.Fatal(err)
		}
	}
	n.cfg.wait = 10 * time.Second
	n.Plugins.cfg.wait = 10 * time.Second
	n.mount("other", "web", newTask())
	if _, err := n.driver("rexray").Get(context.Background(), "web"); !errors.Is(err, volume.ErrNotFound) {
		t.Error(err)
	}
	began := time.Now()
	n.Close()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("closing took %s", took)
	}
	n.open()
	want(t, len(n.Held()), len(hung)+1)
}

// A plug-in that is started again while tasks run is asked whether the volume is there before it is used again.
func TestPluginRestarts(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	f.made["web"] = true
	id := newTask()
	n.mount("rexray", "web", id)
	f.stop()
	want(t, n.held(), "rexray/web:"+id)
	if _, err := n.driver("rexray").Mount(context.Background(), "web", id); !task.IsTemporary(err) {
		t.Errorf("mount from one that is not there: %v", err)
	}
	if err := n.driver("rexray").Create(context.Background(), "web", nil); err == nil || errors.Is(err, volume.ErrNotFound) {
		t.Errorf("a volume whose plug-in is not there: %v", err) // neither there nor not there
	}
	f.start()
	n.mount("rexray", "web", id)
	want(t, f.heard("Mount"), 1)
	f.mu.Lock()
	f.mounts = map[string][]string{} // it does not remember
	f.mu.Unlock()
	n.mount("rexray", "web", id)
	want(t, f.heard("Mount"), 2)
	n.unmount("rexray", "web", id)
	n.awaitHeld("")
}

// Which plug-in is missing where is said, and what is not a name is refused.
func TestAbsent(t *testing.T) {
	n, _ := newNode(t)
	_, err := n.driver("rexray").Mount(context.Background(), "web", newTask())
	if err == nil || task.IsTemporary(err) || !strings.Contains(err.Error(), `node w1 has no volume plug-in "rexray"`) {
		t.Errorf("absent: %v", err)
	}
	for _, bad := range []string{"", "../x", "a/b", "rexray/ebs:latest", ".x", "a b", strings.Repeat("a", 129)} {
		if _, err := n.Driver(bad); err == nil {
			t.Errorf("plug-in %q taken", bad)
		}
	}
	for _, bad := range []string{"", "..", "../x", "a/b", "a b", "a\n", strings.Repeat("a", 256)} {
		if _, err := n.driver("rexray").Mount(context.Background(), bad, newTask()); err == nil || !strings.Contains(err.Error(), "invalid volume name") {
			t.Errorf("volume %q: %v", bad, err)
		}
		if _, err := n.driver("rexray").Get(context.Background(), bad); err == nil || !strings.Contains(err.Error(), "invalid volume name") {
			t.Errorf("volume %q: %v", bad, err)
		}
	}
	if _, err := n.driver("rexray").Mount(context.Background(), "web", "../../etc"); err == nil {
		t.Error("a task that is none")
	}
}

// A volume that is elsewhere after a restart of its plug-in is not what the task's container was made with.
func TestMovedUnderItsTask(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	id := newTask()
	n.mount("rexray", "web", id)
	f.on("Path", says(500, `{"Err":"what"}`))
	f.on("Mount", says(200, fmt.Sprintf(`{"Mountpoint":%q}`, t.TempDir())))
	if _, err := n.driver("rexray").Mount(context.Background(), "web", id); err == nil || task.IsTemporary(err) || !strings.Contains(err.Error(), "was at "+f.dir) {
		t.Errorf("moved: %v", err)
	}
	n.unmount("rexray", "web", id)
	n.awaitHeld("")
}

// A dead socket, of whatever kind of plug-in, delays nobody who lists volumes, and nobody's unmount of something else.
func TestDeadSocketDelaysNobody(t *testing.T) {
	n, dirs := newNode(t)
	n.Close()
	n.cfg.patience = time.Minute
	n.open()
	listen(t, filepath.Join(dirs.Sockets[0], "dead.sock"))
	f := newFake(t, dirs, "rexray")
	id := newTask()
	n.mount("rexray", "web", id)
	await(t, "the dead one is known to be", func() string {
		if _, err := n.driver("dead").List(context.Background()); err == nil || !strings.Contains(err.Error(), "connection refused") {
			return fmt.Sprint(err)
		}
		return ""
	})
	began := time.Now()
	want(t, n.Names(), "[dead rexray]")
	for _, name := range n.Names() {
		_, err := n.driver(name).List(context.Background())
		want(t, err == nil, name == "rexray")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("listing took %s", took)
	}
	// What is mounted is listed although its plug-in is not there.
	f.stop()
	all, err := n.driver("rexray").List(context.Background())
	if err == nil || len(all) != 1 || all[0].Name != "web" || !all[0].Mounted {
		t.Errorf("listed %v, %v", all, err)
	}
}

func TestDrain(t *testing.T) {
	n, dirs := newNode(t)
	f := newFake(t, dirs, "rexray")
	n.mount("rexray", "web", newTask())
	f.on("Unmount", says(500, `{"Err":"busy"}`))
	if err := n.Drain(context.Background(), 200*time.Millisecond); err == nil || !strings.Contains(err.Error(), "volume web of plug-in rexray may still be mounted") {
		t.Errorf("drained: %v", err)
	}
	f.on("Unmount", nil)
	if err := n.Drain(context.Background(), 20*time.Second); err != nil {
		t.Error(err)
	}
	want(t, f.mountedFor("web"), "[]")
}
