package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/id"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/ctrd"
)

func TestLifeOfATask(t *testing.T) {
	n := up(t)
	polite := n.spec("sh", "-c", "trap 'exit 0' TERM; echo hello; while :; do sleep 0.1; done")
	polite.Task.Container.StopGracePeriod = durationpb.New(patience)

	t.Run("run and shut down", func(t *testing.T) {
		ids := n.put(1, polite)
		st := n.state(running, ids...)
		n.awaitLogs(ids[0], 1)
		if st.Pid == 0 || st.ContainerId != ids[0] || len(st.Addresses) != 1 {
			t.Errorf("status of a running task: %v", st)
		}
		n.want(shutdown, ids...)
		st = n.state(shutdown, ids...)
		if st.ExitCode == nil || *st.ExitCode != 0 || st.Message != "shutdown" {
			t.Errorf("status of a stopped task: %v", st)
		}
		n.drop(ids...)
		n.await("the task to be forgotten", func(m map[string]*skepv1.TaskStatus) bool { return m[ids[0]] == nil })
		if _, err := os.Stat(filepath.Join(n.cfg.DataDir, "agent/tasks", ids[0])); !os.IsNotExist(err) {
			t.Errorf("files of a task that left the set: %v", err)
		}
	})

	t.Run("exits", func(t *testing.T) {
		for _, c := range []struct {
			args  []string
			state skepv1.TaskState
			code  int32
			err   string
		}{
			{[]string{"true"}, complete, 0, ""},
			{[]string{"sh", "-c", "exit 3"}, failed, 3, "task: non-zero exit (3)"},
			{[]string{"sh", "-c", "exit 137"}, failed, 137, "task: non-zero exit (137)"},
		} {
			st := n.state(c.state, n.put(1, n.spec(c.args...))...)
			if st.GetExitCode() != c.code || st.Err != c.err || st.OomKilled {
				t.Errorf("%v: %v", c.args, st)
			}
		}
	})

	t.Run("out of memory", func(t *testing.T) {
		s := n.spec("tail", "/dev/zero")
		s.Task.Resources = &skepv1.ResourceRequirements{Limits: &skepv1.Resources{MemoryBytes: 32 << 20}}
		st := n.state(failed, n.put(1, s)...)
		if !st.OomKilled || st.Err != "task: out of memory (limit 32MiB), exit 137" {
			t.Errorf("status: %v", st)
		}
	})

	t.Run("errors at start", func(t *testing.T) {
		st := n.state(failed, n.put(1, n.spec("nope", "x"))...)
		if st.Err != `starting container failed: exec: "nope": executable file not found in $PATH` {
			t.Errorf("status: %v", st)
		}
	})

	t.Run("rejections", func(t *testing.T) {
		for want, change := range map[string]func(*skepv1.ServiceSpec){
			`invalid mount config for type "bind": bind source path does not exist: /no/such`: func(s *skepv1.ServiceSpec) {
				s.Task.Container.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_BIND, Source: "/no/such", Target: "/x"}}
			},
			"invalid mount target, must be an absolute path: x": func(s *skepv1.ServiceSpec) {
				s.Task.Container.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_TMPFS, Target: "x"}}
			},
			`node host1 has no volume plug-in "rexray"`: func(s *skepv1.ServiceSpec) {
				s.Task.Container.Mounts = []*skepv1.Mount{{Source: "v", Target: "/x", VolumeDriver: "rexray"}}
			},
			`log-driver "syslog" is none that nodes have: use json-file, local or none`: func(s *skepv1.ServiceSpec) {
				s.Task.LogDriver = &skepv1.LogDriver{Name: "syslog"}
			},
			`user "ghost": unable to find user ghost: no matching entries in passwd file`: func(s *skepv1.ServiceSpec) { s.Task.Container.User = "ghost" },
			"ulimit nofile: the hard limit 2000000000 is above what this node's ": func(s *skepv1.ServiceSpec) {
				s.Task.Container.Ulimits = []*skepv1.Ulimit{{Name: "nofile", Soft: 10, Hard: 2_000_000_000}}
			},
		} {
			if strings.HasPrefix(want, "ulimit") && (n.svc.runtime.SysResource()) {
				continue // this host's agent may give any
			}
			s := n.spec("true")
			change(s)
			if st := n.state(rejected, n.put(1, s)...); !strings.HasPrefix(st.Err, want) {
				t.Errorf("want %q, got %v", want, st)
			}
		}
	})

	t.Run("grace is exact", func(t *testing.T) {
		s := n.spec("sh", "-c", "trap '' TERM; echo armed; while :; do sleep 0.05; done")
		s.Task.Container.StopGracePeriod = durationpb.New(700 * time.Millisecond)
		ids := n.put(1, s)
		n.state(running, ids...)
		n.awaitLogs(ids[0], 1)
		began := time.Now()
		n.want(shutdown, ids...)
		st := n.state(shutdown, ids...)
		if d := time.Since(began); d < 700*time.Millisecond || d > 10*time.Second || st.GetExitCode() != 137 {
			t.Errorf("ended after %s: %v", d, st)
		}
	})

	// A quarter of a second is a quarter of a second: from the signal, as the container heard it, to its end. A busy machine adds
	// to it now and then, not five times.
	t.Run("a short grace", func(t *testing.T) {
		const short = 250 * time.Millisecond
		var took time.Duration
		for range 5 {
			s := n.spec("sh", "-c", "trap 'echo term' TERM; echo armed; while :; do sleep 0.01; done")
			s.Task.Container.StopGracePeriod = durationpb.New(short)
			ids := n.put(1, s)
			pid := n.state(running, ids...).Pid
			n.awaitLogs(ids[0], 1)
			gone := make(chan time.Time, 1)
			go func() {
				for { // until the test's own patience ends it
					if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
						gone <- time.Now()
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
			n.want(shutdown, ids...)
			heard := n.awaitLogs(ids[0], 2)[1]
			if st := n.state(shutdown, ids...); st.GetExitCode() != 137 {
				t.Fatalf("it ended with %v", st)
			}
			took = (<-gone).Sub(time.Unix(0, heard.TimeUnixNano))
			t.Logf("killed %s after it heard the signal", took)
			if took >= short-100*time.Millisecond && took <= short+250*time.Millisecond { // hearing and writing take some of it
				return
			}
		}
		t.Errorf("killed after %s, the grace is %s", took, short)
	})

	t.Run("stop signal", func(t *testing.T) {
		s := n.spec("sh", "-c", "trap 'exit 7' USR1; echo armed; while :; do sleep 0.05; done")
		s.Task.Container.StopSignal = "SIGUSR1"
		s.Task.Container.StopGracePeriod = durationpb.New(patience)
		ids := n.put(1, s)
		n.state(running, ids...)
		n.awaitLogs(ids[0], 1)
		n.want(remove, ids...)
		if st := n.state(shutdown, ids...); st.GetExitCode() != 7 {
			t.Errorf("status: %v", st)
		}
	})

	t.Run("held at ready", func(t *testing.T) {
		n.mu.Lock()
		svc := id.New()
		n.specs[svc] = &skepv1.Revision{ServiceId: svc, Number: 1, Spec: polite}
		hold := &skepv1.TaskRecord{Id: id.New(), ServiceId: svc, Slot: 1, Revision: 1, Desired: ready}
		late := &skepv1.TaskRecord{Id: id.New(), ServiceId: svc, Slot: 2, Revision: 1, Desired: running, NotBeforeUnixMs: time.Now().Add(1500 * time.Millisecond).UnixMilli()}
		n.tasks[hold.Id], n.tasks[late.Id] = hold, late
		n.order = append(n.order, hold.Id, late.Id)
		n.mu.Unlock()
		n.push()
		n.state(ready, hold.Id, late.Id)
		n.state(running, late.Id)
		if now := time.Now().UnixMilli(); now < late.NotBeforeUnixMs {
			t.Errorf("started %d ms early", late.NotBeforeUnixMs-now)
		}
		n.state(ready, hold.Id)
		n.want(running, hold.Id)
		n.state(running, hold.Id)
		n.want(shutdown, hold.Id, late.Id)
		n.state(shutdown, hold.Id, late.Id)
	})

	t.Run("states only grow", func(t *testing.T) {
		n.mu.Lock()
		defer n.mu.Unlock()
		for task, tr := range n.trace {
			if !slices.IsSorted(tr) {
				t.Errorf("task %s: %v", task, tr)
			}
		}
	})

	t.Run("description and heartbeats", func(t *testing.T) {
		n.await("a heartbeat and a description", func(map[string]*skepv1.TaskStatus) bool { return n.desc != nil && len(n.beats) > 0 })
		d := n.desc
		if d.Hostname != "host1" || d.Resources.NanoCpus == 0 || d.Resources.MemoryBytes == 0 || d.Platform.Os != "linux" || d.RuntimeVersion == "" {
			t.Errorf("description: %v", d)
		}
	})
}

// A node follows a shorter heartbeat period at once, not when the old one is over: its managers count by the new one.
func TestAShorterHeartbeatPeriod(t *testing.T) {
	n := newNode(t)
	n.cluster = &skepv1.ClusterSpec{HeartbeatPeriod: durationpb.New(time.Hour)}
	n.start()
	beats := func() int {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.beats)
	}
	await(t, "the first heartbeat", func() bool { return beats() > 0 })
	n.mu.Lock()
	n.cluster = &skepv1.ClusterSpec{HeartbeatPeriod: durationpb.New(50 * time.Millisecond)}
	n.mu.Unlock()
	if err := n.nc.Publish(subject.PushFiles(n.id), nil); err != nil {
		t.Fatal(err)
	}
	await(t, "heartbeats of the new period", func() bool { return beats() > 10 })
}

// An agent that is started again by whoever stops it tells the managers, so that they wait for it.
func TestItSaysThatItRestarts(t *testing.T) {
	for _, restarts := range []bool{true, false} {
		n := newNode(t)
		n.cfg.Restarts = restarts
		n.start()
		last := func() *skepv1.Heartbeat {
			n.mu.Lock()
			defer n.mu.Unlock()
			if len(n.beats) == 0 {
				return nil
			}
			return n.beats[len(n.beats)-1]
		}
		await(t, "the first heartbeat", func() bool { return last() != nil })
		n.halt()
		if err := n.nc.Flush(); err != nil {
			t.Fatal(err)
		}
		if restarts {
			await(t, "a heartbeat that says so", func() bool { return last().Restarting && !last().Leaving })
		} else if last().Restarting {
			t.Error("an agent that is only stopped says that it restarts")
		}
	}
}

func TestContainerSettings(t *testing.T) {
	n := up(t)
	s := n.spec("sh", "-c", "echo up; sleep 1000")
	s.Name, s.Labels = "shop", map[string]string{"tier": "front"}
	c := s.Task.Container
	c.StopGracePeriod = durationpb.New(patience)
	c.Hostname = "{{.Service.Name}}-{{.Task.Slot}}"
	c.Env = []string{"WHO={{.Node.Hostname}}/{{.Service.Labels.tier}}", "FROM=spec"}
	c.User, c.Groups = "app", []string{"4242"}
	c.ReadOnly = true
	c.Init = proto.Bool(true)
	c.Sysctls = map[string]string{"net.ipv4.ip_default_ttl": "77"}
	c.CapabilityAdd, c.CapabilityDrop = []string{"CAP_NET_ADMIN"}, []string{"CAP_MKNOD"}
	c.Ulimits = []*skepv1.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}}
	c.Privileges = &skepv1.Privileges{NoNewPrivileges: true}
	c.Hosts = []string{"10.9.8.7 db db.lan"}
	c.Dns = &skepv1.DNSConfig{Nameservers: []string{"10.1.1.1"}, Search: []string{"lan"}, Options: []string{"ndots:3"}}
	c.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_TMPFS, Target: "/scratch", TmpfsSize: 1 << 20, TmpfsMode: 0o777}}
	c.Health = &skepv1.HealthConfig{Test: []string{"CMD", "true"}, Interval: durationpb.New(time.Second)}
	s.Task.Resources = &skepv1.ResourceRequirements{Limits: &skepv1.Resources{MemoryBytes: 64 << 20, NanoCpus: 5e8, Pids: 50}}
	ids := n.put(1, s)
	n.mu.Lock()
	n.tasks[ids[0]].Assigned = []*skepv1.GenericResource{{Kind: "gpu", Named: []string{"a", "b"}}}
	n.mu.Unlock()
	n.state(running, ids...)
	for want, cmd := range map[string]string{
		"shop-1":              "hostname",
		"host1/front spec":    "echo $WHO $FROM",
		"1234 1234":           "echo $(id -u) $(id -g)",
		"4242":                "grep Groups /proc/self/status",
		"Read-only":           "touch /x 2>&1; true",
		"77":                  "cat /proc/sys/net/ipv4/ip_default_ttl",
		"100 200":             "echo $(ulimit -n) $(ulimit -Hn)",
		"NoNewPrivs:\t1":      "grep NoNewPrivs /proc/self/status",
		"Seccomp:\t2":         "grep Seccomp: /proc/self/status",
		"10.9.8.7\tdb db.lan": "cat /etc/hosts",
		"nameserver 10.1.1.1\nsearch lan\noptions ndots:3": "cat /etc/resolv.conf",
		"size=1024k":  "grep scratch /proc/mounts",
		"/dev/init":   "head -c 9 /proc/1/cmdline",
		"done":        "touch /scratch/x && echo done",
		"67108864":    "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max",
		"not mounted": "grep ' /run ' /proc/mounts || echo not mounted",
	} {
		if out, _ := n.exec(ids[0], "sh", "-c", cmd); !strings.Contains(out, want) {
			t.Errorf("%s: want %q, got %q", cmd, want, out)
		}
	}
	if out, _ := n.exec(ids[0], "sh", "-c", "grep CapBnd /proc/self/status"); true {
		f := strings.Fields(out)
		bits, err := strconv.ParseUint(f[len(f)-1], 16, 64)
		if err != nil || bits&(1<<12) == 0 || bits&(1<<27) != 0 || bits&(1<<0) == 0 {
			t.Errorf("capabilities %x: want NET_ADMIN and CHOWN, not MKNOD", bits)
		}
	}
	n.want(shutdown, ids...)
	if st := n.state(shutdown, ids...); st.GetExitCode() != 143 {
		t.Errorf("init did not pass SIGTERM on: %v", st)
	}
}

func TestVolumes(t *testing.T) {
	n := up(t)
	host := filepath.Join(n.dir, "host")
	s := n.spec("sleep", "1000")
	s.Task.Container.StopGracePeriod = durationpb.New(time.Millisecond)
	s.Task.Container.Mounts = []*skepv1.Mount{
		{Source: "named-{{.Task.Slot}}", Target: "/data"},
		{Target: "/anon"},
		{Type: skepv1.Mount_TYPE_BIND, Source: host, Target: "/host", BindCreateSrc: true},
		{Type: skepv1.Mount_TYPE_BIND, Source: "/etc", Target: "/ro", ReadOnly: true},
		{Source: "empty", Target: "/data2", VolumeNocopy: true},
	}
	first := n.put(1, s)
	n.state(running, first...)
	for want, cmd := range map[string]string{
		"from the image": "cat /data/hello",
		"640 1234":       "stat -c '%a %u' /data/hello",
		"Read-only":      "touch /ro/x 2>&1; true",
		"ok":             "echo kept >/data/kept && echo x >/anon/x && echo y >/host/y && echo ok",
	} {
		if out, _ := n.exec(first[0], "sh", "-c", cmd); !strings.Contains(out, want) {
			t.Errorf("%s: want %q, got %q", cmd, want, out)
		}
	}
	if _, err := os.Stat(filepath.Join(host, "y")); err != nil {
		t.Error(err)
	}
	volumes := filepath.Join(n.cfg.DataDir, "agent/volumes")
	if m, _ := filepath.Glob(filepath.Join(volumes, "_task.*")); len(m) != 1 {
		t.Errorf("anonymous volumes: %v", m)
	}
	n.want(remove, first...)
	n.state(shutdown, first...)
	n.halt()
	n.start()
	if m, _ := filepath.Glob(filepath.Join(volumes, "_task.*/_data/x")); len(m) != 1 {
		t.Errorf("the anonymous volume of an ended task whose record is kept: %v", m)
	}
	n.drop(first...)
	n.await("removal", func(m map[string]*skepv1.TaskStatus) bool { return m[first[0]] == nil })
	if m, _ := filepath.Glob(filepath.Join(volumes, "_task.*")); len(m) != 0 {
		t.Errorf("anonymous volumes that outlived their task: %v", m)
	}
	second := n.put(1, s)
	n.state(running, second...)
	if out, _ := n.exec(second[0], "cat", "/data/kept"); out != "kept\n" {
		t.Errorf("the named volume's content: %q", out)
	}
}

func TestExec(t *testing.T) {
	n := up(t)
	ids := n.put(1, n.spec("sleep", "1000"))
	n.state(running, ids...)
	if out, code, err := n.tryExec(&skepv1.ExecRequest{TaskId: ids[0], Args: []string{"sh", "-c", "cat; echo err >&2; exit 5"}}, "from stdin\n"); err != nil || code != 5 || out != "from stdin\nerr\n" {
		t.Errorf("%q %d %v", out, code, err)
	}
	if out, _, err := n.tryExec(&skepv1.ExecRequest{TaskId: ids[0], Args: []string{"sh", "-c", "id -u; pwd; echo $X; tty"}, User: "app", Dir: "/tmp", Env: []string{"X=1"}}, ""); err != nil || !strings.HasPrefix(out, "1234\n/tmp\n1\n") {
		t.Errorf("%q %v", out, err)
	}
	if out, _, err := n.tryExec(&skepv1.ExecRequest{TaskId: ids[0], Args: []string{"sh", "-c", "stty size; echo $TERM"}, Tty: true, Width: 101, Height: 33}, ""); err != nil || !strings.HasPrefix(out, "33 101\r\nxterm\r\n") {
		t.Errorf("%q %v", out, err)
	}
	if _, _, err := n.tryExec(&skepv1.ExecRequest{TaskId: ids[0], Args: []string{"nope"}}, ""); err == nil || !strings.Contains(err.Error(), "executable file not found") {
		t.Errorf("a command that is not there: %v", err)
	}
	if _, _, err := n.tryExec(&skepv1.ExecRequest{TaskId: "gone", Args: []string{"ls"}}, ""); err == nil || !strings.Contains(err.Error(), "is not on node host1") {
		t.Errorf("a task that is not there: %v", err)
	}
	// 4 MB both ways, through windows of 256 KiB.
	big := strings.Repeat("0123456789abcdef", 1<<18)
	if out, code, err := n.tryExec(&skepv1.ExecRequest{TaskId: ids[0], Args: []string{"cat"}}, big); err != nil || code != 0 || out != big {
		t.Errorf("4 MB: %d bytes, code %d, %v", len(out), code, err)
	}
	n.want(shutdown, ids...)
	n.state(shutdown, ids...)
	if _, _, err := n.tryExec(&skepv1.ExecRequest{TaskId: ids[0], Args: []string{"ls"}}, ""); err == nil || !strings.Contains(err.Error(), "is not running (shutdown)") {
		t.Errorf("a task that has ended: %v", err)
	}
}

func TestAgentRestart(t *testing.T) {
	n := up(t)
	ids := n.put(3, n.spec("sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.02; done"))
	short := n.put(1, n.spec("sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.02; done; echo last words; exit 9"))
	n.state(running, append(short, ids...)...)
	pid := n.told(ids[0]).Pid
	root := fmt.Sprintf("/proc/%d/root/tmp/go", n.told(short[0]).Pid)
	containerd := n.svc.daemon.Pid()
	n.awaitLogs(ids[0], 10)
	n.halt()
	// What happens while nobody looks: an exit, and a task that left the set.
	if err := os.WriteFile(root, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	delete(n.tasks, ids[2])
	n.gen++
	n.mu.Unlock()
	awaitGone(t, root)
	n.start()
	st := n.state(failed, short...)
	if st.GetExitCode() != 9 {
		t.Errorf("exit while the agent was away: %v", st)
	}
	if n.svc.daemon.Pid() != containerd {
		t.Error("containerd was restarted")
	}
	n.state(running, ids[:2]...)
	if got := n.told(ids[0]).Pid; got != pid {
		t.Errorf("pid %d became %d", pid, got)
	}
	n.await("the task that left to be gone", func(m map[string]*skepv1.TaskStatus) bool { return m[ids[2]] == nil })
	if out, _ := n.exec(ids[0], "echo", "still here"); out != "still here\n" {
		t.Errorf("exec after restart: %q", out)
	}
	if l := n.logs(short[0], -1); len(l) != 1 || string(l[0].Line) != "last words\n" {
		t.Errorf("output from while the agent was away: %v", l)
	}
	lines := n.awaitLogs(ids[0], 30)
	for i, l := range lines {
		if want := fmt.Sprintf("line %d\n", i); string(l.Line) != want {
			t.Fatalf("line %d is %q: lost or doubled over the restart", i, l.Line)
		}
	}
}

func TestContainerdKilled(t *testing.T) {
	n := up(t)
	ids := n.put(2, n.spec("sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 4"))
	n.state(running, ids...)
	pid := n.told(ids[0]).Pid
	old := n.svc.daemon.Pid()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// An exit that may fall into the gap.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/tmp/go", n.told(ids[1]).Pid), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if st := n.state(failed, ids[1]); st.GetExitCode() != 4 {
		t.Errorf("exit while containerd was away: %v", st)
	}
	more := n.put(2, n.spec("sleep", "1000"))
	n.state(running, more...)
	if n.svc.daemon.Pid() == old {
		t.Error("it is the same containerd")
	}
	if st := n.state(running, ids[0]); st.Pid != pid {
		t.Errorf("pid %d became %d", pid, st.Pid)
	}
	if out, _ := n.exec(ids[0], "echo", "still here"); out != "still here\n" {
		t.Errorf("exec after containerd's death: %q", out)
	}
	// In the middle of starting many.
	many := n.put(12, n.spec("sleep", "1000"))
	for i := range 3 {
		n.await("some to run", func(m map[string]*skepv1.TaskStatus) bool {
			k := 0
			for _, id := range many {
				if m[id].GetState() == running {
					k++
				}
			}
			return k >= 1+3*i
		})
		if err := syscall.Kill(n.svc.daemon.Pid(), syscall.SIGKILL); err != nil {
			t.Logf("kill containerd: %v", err)
		}
	}
	n.state(running, many...)
}

func TestShimKilled(t *testing.T) {
	n := up(t)
	ids := n.put(1, n.spec("sleep", "1000"))
	n.state(running, ids...)
	shim := n.svc.runtime.ShimPid(ids[0])
	if shim == 0 {
		t.Fatal("no shim found")
	}
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.state(failed, ids...)
}

func TestSweep(t *testing.T) {
	n := up(t)
	ids := n.put(2, n.spec("sleep", "1000"))
	n.state(running, ids...)
	n.halt()
	// As if the disk had lost them.
	for _, id := range ids {
		if err := os.RemoveAll(filepath.Join(n.cfg.DataDir, "agent/tasks", id)); err != nil {
			t.Fatal(err)
		}
	}
	n.mu.Lock()
	n.tasks = map[string]*skepv1.TaskRecord{}
	n.gen++
	n.mu.Unlock()
	n.start()
	found, err := n.svc.runtime.List(t.Context())
	if err != nil || len(found) != 0 {
		t.Errorf("containers after the sweep: %v %v", found, err)
	}
	for _, id := range ids {
		if pid := n.svc.runtime.ShimPid(id); pid != 0 {
			t.Errorf("shim %d of %s lives", pid, id)
		}
	}
	if nets, _ := n.cfg.Attacher.List(t.Context()); len(nets) != 0 {
		t.Errorf("networks after the sweep: %v", nets)
	}
}

// A containerd may serve others than skep: only skep's own shims are ended.
func TestSweepLeavesOthersShims(t *testing.T) {
	n := up(t)
	exe := filepath.Join(t.TempDir(), "containerd-shim-runc-v2")
	if err := os.WriteFile(exe, []byte("#!/bin/sh\nread forever\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	shim := func(namespace string) *exec.Cmd {
		c := exec.Command(exe, "-namespace", namespace, "-id", id.New(), "-address", n.svc.daemon.Address())
		in, err := c.StdinPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = in.Close(); _ = c.Wait() })
		return c
	}
	ours, others := shim(ctrd.Namespace), shim("k8s.io")
	await(t, "both to be shims to see", func() bool {
		for _, c := range []*exec.Cmd{ours, others} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.Process.Pid))
			if err != nil || !strings.Contains(string(b), "-address") {
				return false
			}
		}
		return true
	})
	if err := n.svc.runtime.Tidy(t.Context(), func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	await(t, "skep's shim to end", func() bool { return dead(ours.Process.Pid) })
	if dead(others.Process.Pid) {
		t.Error("the sweep ended another's shim")
	}
}

// dead tells whether a process of the test has ended, reaped or not.
func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestManagersAway(t *testing.T) {
	n := up(t)
	ids := n.put(2, n.spec("sleep", "1000"))
	n.state(running, ids...)
	pid := n.told(ids[0]).Pid
	n.halt()
	// A connection to nobody.
	cfg := n.cfg
	n.cfg.NC = deadConn(t)
	n.start()
	deadline := time.Now().Add(patience)
	for {
		_, st := n.svc.set.Job(ids[0])
		if st.GetState() == running && st.GetPid() == pid {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("without managers: %v", st)
		}
		time.Sleep(20 * time.Millisecond)
	}
	n.halt()
	n.cfg = cfg
	n.start()
	if st := n.state(running, ids...); st == nil {
		t.Error("not running")
	}
}
