package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

var tmpfs = map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}

func attach(t *testing.T, s *Store, task, name string, opts map[string]string) string {
	t.Helper()
	dir, err := s.Attach(context.Background(), task, Wanted{Name: name, Options: opts})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func mounted(t *testing.T, dir string) bool {
	t.Helper()
	is, err := mountedAt(dir)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// helper puts a program where the store looks for mount(8)'s helpers.
func helper(t *testing.T, name, script string) (path string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir + ":" + os.Getenv("PATH")
}

// A file system is mounted at a volume's first use and unmounted after its last, by an agent that was started anew in between
// too.
func TestFirstAndLastUse(t *testing.T) {
	s := open(t, Config{})
	ctx := context.Background()
	dir := attach(t, s, "t1", "scratch", tmpfs)
	if attach(t, s, "t2", "scratch", nil) != dir || !mounted(t, dir) {
		t.Fatal("not mounted")
	}
	attach(t, s, "t1", "scratch", tmpfs) // again: nothing
	write(t, filepath.Join(dir, "f"), "x")
	s = open(t, Config{Root: s.root}) // the agent was killed
	if err := s.Release(ctx, "t1"); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); got != "f" || !mounted(t, dir) {
		t.Fatalf("the second task's volume went with the first: %q", got)
	}
	if err := errors.Join(s.Release(ctx, "t2"), s.Release(ctx, "t2"), s.Release(ctx, "never")); err != nil {
		t.Fatal(err)
	}
	if mounted(t, dir) || names(t, dir) != "" {
		t.Error("still mounted after its last task")
	}
	if i, err := (local{s}).Get(ctx, "scratch"); err != nil || i.Mounted || i.Options["o"] != "size=1m" || i.CreatedAt.IsZero() {
		t.Errorf("%+v %v", i, err)
	}
}

// Who sees that no task holds a volume finds nothing mounted there.
func TestFreeMeansUnmounted(t *testing.T) {
	s := open(t, Config{})
	for i := range 30 {
		dir := attach(t, s, "t1", "scratch", tmpfs)
		released := make(chan error, 1)
		go func() { released <- s.Release(context.Background(), "t1") }()
		for len(s.Holders(Local, "scratch")) > 0 {
			runtime.Gosched()
		}
		if mounted(t, dir) {
			t.Fatalf("release %d: free, and still mounted", i)
		}
		if err := <-released; err != nil {
			t.Fatal(err)
		}
	}
}

// After a restart of the machine nothing is mounted, and the tasks are recorded: what is attached again is mounted again.
func TestMachineRestart(t *testing.T) {
	s := open(t, Config{})
	dir := attach(t, s, "t1", "scratch", tmpfs)
	if err := s.unmount("scratch"); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Root: s.root})
	if attach(t, s, "t1", "scratch", nil); !mounted(t, dir) {
		t.Error("not mounted again")
	}
	// Tasks that are gone hold nothing.
	if err := s.Sweep(context.Background(), func(string) bool { return false }); err != nil || mounted(t, dir) {
		t.Errorf("still mounted for a task that is gone: %v", err)
	}
}

// Many tasks at once: mounted once, unmounted once, and nobody finds it away.
func TestManyTasksAtOnce(t *testing.T) {
	s := open(t, Config{})
	ctx := context.Background()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for round := range 10 {
				task := fmt.Sprintf("t%d-%d", i, round)
				dir, err := s.Attach(ctx, task, Wanted{Name: "shared", Options: tmpfs})
				if err != nil {
					t.Error(err)
					return
				}
				if is, _ := mountedAt(dir); !is {
					t.Error("a task got a volume that is not mounted")
				}
				if err := s.Release(ctx, task); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if mounted(t, s.data("shared")) || len(s.Holders("", "shared")) > 0 {
		t.Error("somebody left it mounted")
	}
}

// A removal and an attachment at once: the task has the volume there was, or a new one, never none.
func TestRemovedWhileAttached(t *testing.T) {
	s := open(t, Config{})
	ctx := context.Background()
	for i := range 50 {
		attach(t, s, "old", "v", nil)
		if err := s.Release(ctx, "old"); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Remove(ctx, "", "v") }()
		dir, err := s.Attach(ctx, "new", Wanted{Name: "v"})
		rerr := <-done
		if err != nil {
			t.Fatalf("round %d: %v (removal: %v)", i, err, rerr)
		}
		if _, err := os.Stat(dir); err != nil {
			t.Fatalf("round %d: %v (removal: %v)", i, err, rerr)
		}
		if err := s.Release(ctx, "new"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOtherOptions(t *testing.T) {
	s := open(t, Config{})
	ctx := context.Background()
	cifs := map[string]string{"type": "cifs", "device": "//nas/x", "o": "username=me,password=one"}
	if err := s.Create(ctx, Wanted{Name: "v", Options: cifs, Labels: map[string]string{"a": "b"}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, Wanted{Name: "v", Options: cifs}); err != nil {
		t.Errorf("the same again: %v", err)
	}
	for _, c := range []struct {
		opts map[string]string
		want string
	}{
		{map[string]string{"type": "cifs", "device": "//nas/y", "o": "username=me,password=one"}, `device is "//nas/y" and is "//nas/x" there`},
		{map[string]string{"type": "cifs", "device": "//nas/x", "o": "username=me,password=two"}, `o differs in what is hidden`},
		{map[string]string{"type": "cifs", "device": "//nas/x", "o": "username=you,password=two"}, `o is "username=you,password=<hidden>" and is "username=me,password=<hidden>" there`},
		{nil, `device is not given and is "//nas/x" there`},
	} {
		err := s.Create(ctx, Wanted{Name: "v", Options: c.opts})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "node n1") || strings.Contains(err.Error(), "two") || strings.Contains(err.Error(), "one,") {
			t.Errorf("%v: %v", c.opts, err)
		}
	}
	if _, err := s.Attach(ctx, "t1", Wanted{Name: "v", Options: tmpfs}); err == nil || !strings.Contains(err.Error(), "with other options") {
		t.Errorf("a task's mount: %v", err)
	}
	st, err := os.Stat(filepath.Join(s.dir("v"), "meta.json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("options with a password are readable: %v %v", st.Mode(), err)
	}
	if _, err := s.Attach(ctx, "t2", Wanted{Name: "p"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Attach(ctx, "t2", Wanted{Name: "p", Options: tmpfs}); err == nil || !strings.Contains(err.Error(), `type is "tmpfs" and was not given there`) {
		t.Errorf("options for a plain one: %v", err)
	}
}

func TestBadVolumes(t *testing.T) {
	s := open(t, Config{})
	for _, c := range []struct {
		w    Wanted
		want string
	}{
		{Wanted{Name: "../x"}, "invalid volume name"},
		{Wanted{Name: ""}, "invalid volume name"},
		{Wanted{Name: "a", Driver: "rexray"}, `volume driver "rexray" is not available on this node`},
		{Wanted{Name: "a", Options: map[string]string{"tpye": "nfs"}}, `invalid volume option "tpye"`},
		{Wanted{Name: "a", Options: map[string]string{"size": "1g"}}, "invalid volume option size"},
		{Wanted{Name: "a", Options: map[string]string{"type": "nfs"}}, "missing volume option device"},
		{Wanted{Name: "a", Options: map[string]string{"device": "/x"}}, "missing volume option type"},
		{Wanted{Name: "a", Options: map[string]string{"device": "-x", "type": "ext4"}}, "begins with '-'"},
		{Wanted{Name: "a", Options: map[string]string{"device": "x", "type": "../../tmp/x"}}, "invalid volume option type"},
	} {
		if _, err := s.Attach(context.Background(), "t", c.w); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.w, err)
		}
	}
	if _, err := os.Stat(s.dir("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a volume was made all the same")
	}
}

func TestWhatCannotBeMounted(t *testing.T) {
	s := open(t, Config{Path: "/nowhere:" + os.Getenv("PATH")})
	for _, c := range []struct {
		opts map[string]string
		want string
	}{
		{map[string]string{"type": "davfs", "device": "http://x"}, "the program mount.davfs is missing: install the package davfs2 on that node"},
		{map[string]string{"o": "bind", "device": "/no/such"}, "/no/such"},
		{map[string]string{"type": "ext4", "device": "/no/such"}, "/no/such"},
		{map[string]string{"type": "nosuchfs", "device": "none"}, "nosuchfs"},
		{map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "addr=no.such.host.invalid"}, "find the address of no.such.host.invalid"},
	} {
		name := c.opts["type"] + c.opts["o"][:min(4, len(c.opts["o"]))]
		_, err := s.Attach(context.Background(), "t", Wanted{Name: name, Options: c.opts})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "on node n1") {
			t.Errorf("%v: %v", c.opts, err)
		}
	}
	if err := s.Release(context.Background(), "t"); err != nil {
		t.Errorf("release what was half prepared: %v", err)
	}
}

func TestKindsOfMounts(t *testing.T) {
	s := open(t, Config{})
	ctx := context.Background()
	src := t.TempDir()
	write(t, filepath.Join(src, "f"), "x")
	dir := attach(t, s, "t", "bound", map[string]string{"type": "none", "device": src, "o": "bind,ro"})
	if got := names(t, dir); got != "f" {
		t.Errorf("bind: %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "g"), nil, 0o600); err == nil {
		t.Error("bind,ro can be written")
	}
	disk := filepath.Join(t.TempDir(), "disk")
	write(t, disk, "")
	if out, err := exec.Command("sh", "-c", "truncate -s 8M "+disk+" && mkfs.ext4 -q "+disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ext := attach(t, s, "t", "disk", map[string]string{"type": "ext4", "device": disk, "o": "loop"})
	// lost+found is nobody's content.
	fill := func(to string) error { return os.WriteFile(filepath.Join(to, "page"), []byte("x"), 0o640) }
	if err := s.Fill(ctx, "", "disk", ext, fill); err != nil {
		t.Fatal(err)
	}
	if got := names(t, ext); got != "lost+found page" {
		t.Errorf("filled: %q", got)
	}
	// Full: its own disk, and said so.
	full := attach(t, s, "t", "full", tmpfs)
	err := s.Fill(ctx, "", "full", full, func(to string) error { return os.WriteFile(filepath.Join(to, "big"), make([]byte, 2<<20), 0o600) })
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "volume full on node n1") || strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("a full volume: %v", err)
	}
	if got := names(t, full); got != "" {
		t.Errorf("half of it is there: %q", got)
	}
	// Removing a volume leaves what was mounted there alone.
	if err := s.Release(ctx, "t"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "", "bound"); err != nil {
		t.Fatal(err)
	}
	if got := names(t, src); got != "f" {
		t.Fatalf("the removal of a volume took what was bound there: %q", got)
	}
	if got := names(t, s.root); got != ".tasks disk full" {
		t.Errorf("left over: %q", got)
	}
}

// Somebody mounted a disk into a plain volume by hand: it is not emptied.
func TestForeignMountIsNotRemoved(t *testing.T) {
	s := open(t, Config{})
	ctx := context.Background()
	src := t.TempDir()
	write(t, filepath.Join(src, "precious"), "x")
	dir := attach(t, s, "t", "v", nil)
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "--bind", src, sub).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = syscall.Unmount(sub, 0) })
	if err := s.Release(ctx, "t"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "", "v"); err == nil || !strings.Contains(err.Error(), "unmount it first") {
		t.Errorf("removed over a mount: %v", err)
	}
	if got := names(t, src); got != "precious" {
		t.Fatalf("it was emptied: %q", got)
	}
}

// The server is gone: whoever waits is told within the limit, those who wait together do not wait one after the other, other
// volumes go on, and the helper and what it started are ended.
func TestDeadServer(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	core, logged := observer.New(zap.DebugLevel)
	s := open(t, Config{Limit: 3 * time.Second, Path: helper(t, "mount.nfs", "sleep 600 & echo $! $$ >> "+pids+"; echo mount.nfs: trying with "+"$*; wait"), Log: zap.New(core)})
	ctx := context.Background()
	began := time.Now()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, err := s.Attach(ctx, fmt.Sprint("t", i), Wanted{Name: "data", Options: map[string]string{"type": "nfs", "device": ":/x", "o": "addr=127.0.0.1,password=hush"}})
			if err == nil || !strings.Contains(err.Error(), "did not answer within 3s") || !strings.Contains(err.Error(), "127.0.0.1:/x (nfs)") || strings.Contains(err.Error(), "hush") {
				t.Error(err)
			}
		}()
	}
	attach(t, s, "other", "other", tmpfs)
	if took := time.Since(began); took > 2900*time.Millisecond {
		t.Errorf("another volume waited %s for the dead server", took)
	}
	wg.Wait()
	if took := time.Since(began); took > 18*time.Second {
		t.Errorf("eight tasks waited %s for one dead server", took)
	}
	b, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range strings.Fields(string(b)) {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // the kernel ends them in its own time
			st, err := os.ReadFile("/proc/" + pid + "/stat")
			if err != nil || strings.Contains(string(st), ") Z ") {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("process %s of the helper lives on", pid)
				break
			}
		}
	}
	for _, e := range logged.All() {
		if strings.Contains(fmt.Sprint(e.Message, e.ContextMap()), "hush") {
			t.Errorf("logged: %v", e)
		}
	}
	if err := errors.Join(s.Release(ctx, "other"), s.Release(ctx, "t0")); err != nil {
		t.Error(err)
	}
}

// What a helper is given: names as addresses, the server before an NFS path, and a password where others cannot read it.
func TestHelperArguments(t *testing.T) {
	seen := filepath.Join(t.TempDir(), "seen")
	script := "printf '%s|' \"$@\" > " + seen + "; echo \"PASSWD=$PASSWD SECRET=$SKEP_SECRET\" >> " + seen + "; exec mount -t tmpfs tmpfs \"$2\"\n"
	t.Setenv("SKEP_SECRET", "the agent's own")
	for _, c := range []struct {
		opts map[string]string
		want string
	}{
		{map[string]string{"type": "nfs", "device": ":/export", "o": "addr=localhost,rw"}, "LOCAL:/export|DIR|-o|addr=LOCAL,rw|PASSWD= SECRET="},
		{map[string]string{"type": "nfs", "device": "nas:/export"}, "nas:/export|DIR|PASSWD= SECRET="},
		{map[string]string{"type": "cifs", "device": "//nas/x", "o": "username=me,password=hush"}, "//nas/x|DIR|-o|username=me|PASSWD=hush SECRET="},
	} {
		s := open(t, Config{Path: helper(t, "mount."+c.opts["type"], script)})
		dir := attach(t, s, "t", "v", c.opts)
		b, err := os.ReadFile(seen)
		if err != nil {
			t.Fatal(err)
		}
		found, err := net.LookupHost("localhost")
		if err != nil {
			t.Fatal(err)
		}
		local, in := found[0], ""
		if in = local; strings.Contains(local, ":") {
			in = "[" + local + "]"
		}
		want := strings.NewReplacer("LOCAL:/", in+":/", "LOCAL", local, "DIR", dir).Replace(c.want)
		if got := strings.TrimSpace(string(b)); got != want {
			t.Errorf("%v: given %q, want %q", c.opts, got, want)
		}
		if err := s.Release(context.Background(), "t"); err != nil {
			t.Error(err)
		}
	}
}

// What keeps a file busy keeps nobody from removing its volume: it is detached, and said so.
func TestBusyVolumeIsDetached(t *testing.T) {
	core, logged := observer.New(zap.WarnLevel)
	s := open(t, Config{Log: zap.New(core)})
	dir := attach(t, s, "t", "v", tmpfs)
	f, err := os.Create(filepath.Join(dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Release(context.Background(), "t"); err != nil {
		t.Fatal(err)
	}
	if mounted(t, dir) {
		t.Error("still mounted")
	}
	if logged.FilterMessageSnippet("does not let go").Len() != 1 {
		t.Errorf("not told: %v", logged.All())
	}
	attach(t, s, "t2", "v", nil)
	if err := s.Release(context.Background(), "t2"); err != nil {
		t.Fatal(err)
	}
}

// A file system in user space leaves a daemon behind, which is neither waited for nor ended.
func TestHelperLeavesADaemon(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	s := open(t, Config{Path: helper(t, "mount.fuse.x", "mount -t tmpfs tmpfs \"$2\"; sleep 600 & echo $! > "+pid)})
	began := time.Now()
	dir := attach(t, s, "t", "v", map[string]string{"type": "fuse.x", "device": "x"})
	if took := time.Since(began); took > 10*time.Second || !mounted(t, dir) {
		t.Errorf("mounted: %t, after %s", mounted(t, dir), took)
	}
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		t.Errorf("the daemon was ended: %v", err)
	}
	if err := s.Release(context.Background(), "t"); err != nil {
		t.Error(err)
	}
}

func TestShown(t *testing.T) {
	in := map[string]string{"o": "username=me,password=x,pass=y,vers=3.0,rw", "device": "//me:pw@nas/share", "password": "z", "type": "cifs", "api_token": "t"}
	got := Shown(in)
	want := map[string]string{"o": "username=me,password=<hidden>,pass=<hidden>,vers=3.0,rw", "device": "//me:<hidden>@nas/share", "password": hidden, "type": "cifs", "api_token": hidden}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is shown as %q, want %q", k, got[k], v)
		}
	}
	if in["password"] != "z" {
		t.Error("changed what was given")
	}
}

func TestSize(t *testing.T) {
	s := open(t, Config{})
	dir := attach(t, s, "t", "v", nil)
	host := t.TempDir()
	write(t, filepath.Join(host, "big"), strings.Repeat("x", 1<<20))
	write(t, filepath.Join(dir, "a"), strings.Repeat("x", 64<<10))
	for _, err := range []error{os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "again")), os.Symlink(host, filepath.Join(dir, "out")), os.Mkdir(filepath.Join(dir, "d"), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Size(context.Background(), "v"); got < 64<<10 || got > 128<<10 {
		t.Errorf("64 KiB and two links take %d bytes", got)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if got := s.Size(ended, "v"); got != -1 {
		t.Errorf("measured %d in no time", got)
	}
	if got := s.Size(context.Background(), "nope"); got != -1 {
		t.Errorf("what is not there takes %d bytes", got)
	}
}

func TestLabelsOfPlugins(t *testing.T) {
	s := open(t, Config{})
	ctx := context.Background()
	if err := s.SetLabels(ctx, "../evil", "../../v", map[string]string{"a": "b"}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Labels("../evil", "../../v")
	if err != nil || got["a"] != "b" {
		t.Errorf("%v %v", got, err)
	}
	if names(t, filepath.Dir(s.root)) != "v" {
		t.Errorf("written outside: %s", names(t, filepath.Dir(s.root)))
	}
	if list, err := (local{s}).List(ctx); err != nil || len(list) != 0 {
		t.Errorf("listed: %v %v", list, err)
	}
	if err := s.DropLabels("../evil", "../../v"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Labels("../evil", "../../v"); err != nil || len(got) != 0 {
		t.Errorf("%v %v", got, err)
	}
}

// A file system that answers nothing any more, as that of a dead server: no question about its volume hangs.
func TestFileSystemHangs(t *testing.T) {
	s := open(t, Config{Limit: 300 * time.Millisecond})
	ctx := context.Background()
	dir := attach(t, s, "t1", "v", tmpfs)
	if err := s.Release(ctx, "t1"); err != nil {
		t.Fatal(err)
	}
	// FUSE without a server: whoever looks into it waits until the other end is closed.
	dead, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("dead", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dead.Fd())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	for i := range 2 {
		began := time.Now()
		_, err := s.Attach(ctx, fmt.Sprint("task", i), Wanted{Name: "v"})
		if err == nil || !strings.Contains(err.Error(), "does what is mounted there answer?") || time.Since(began) > 5*time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	}
	began := time.Now()
	for range 2 {
		if n := s.Size(ctx, "v"); n != -1 {
			t.Errorf("it takes %d bytes", n)
		}
	}
	if list, err := (local{s}).List(ctx); err != nil || len(list) != 1 || !list[0].Mounted {
		t.Errorf("%v %v", list, err)
	}
	if took := time.Since(began); took > sizeLimit+2*time.Second {
		t.Errorf("a size took %s", took)
	}
	attach(t, s, "t2", "other", tmpfs)
	if err := s.Release(ctx, "t2"); err != nil {
		t.Error(err)
	}
	_ = s.Release(ctx, "task0") // its volume is locked by who waits in it
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	// The server's connection is gone for good: now it lets go.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := errors.Join(s.Release(ctx, "task0"), s.Release(ctx, "task1"))
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if mounted(t, dir) {
		t.Error("still mounted")
	}
}
