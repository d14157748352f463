package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	healthNone = skepv1.HealthState_HEALTH_STATE_NONE
	starts     = skepv1.HealthState_HEALTH_STATE_STARTING
	healthy    = skepv1.HealthState_HEALTH_STATE_HEALTHY
	unhealthy  = skepv1.HealthState_HEALTH_STATE_UNHEALTHY
)

// shell is a check by a command, ten times a second.
func shell(line string) *skepv1.HealthConfig {
	return &skepv1.HealthConfig{Test: []string{"CMD-SHELL", line}, Interval: durationpb.New(100 * time.Millisecond), Retries: 2}
}

// health blocks until a task that runs has that health.
func (n *node) health(h skepv1.HealthState, id string) *skepv1.TaskStatus {
	n.t.Helper()
	var st *skepv1.TaskStatus
	n.await("health "+h.String(), func(m map[string]*skepv1.TaskStatus) bool {
		st = m[id]
		return st.GetState() == running && st.GetHealth() == h
	})
	return st
}

// inside is a file in a task's container, seen from here.
func (n *node) inside(id, name string) string {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	return filepath.Join(fmt.Sprintf("/proc/%d/root", n.status[id].GetPid()), name)
}

func touch(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// processes are the command lines of all processes in a task's container.
func (n *node) processes(id string) (out []string) {
	n.t.Helper()
	n.eachProcess(id, func(_, command string) { out = append(out, command) })
	return out
}

// sessions are those of the task's processes whose command line begins like that, of such as run at one moment: what ended
// while the others were looked for does not count.
func (n *node) sessions(id, command string) map[string]bool {
	n.t.Helper()
	// session and start time, "" for a process that has ended
	stat := func(dir string) (session, began string) {
		b, err := os.ReadFile(filepath.Join(dir, "stat"))
		_, rest, ok := strings.Cut(string(b), ") ") // from the third field on
		f := strings.Fields(rest)
		if err != nil || !ok || len(f) < 20 || f[0] == "Z" || f[0] == "X" {
			return "", ""
		}
		return f[3], f[19]
	}
	seen := map[string]string{} // start times, by folder
	n.eachProcess(id, func(dir, line string) {
		if strings.HasPrefix(line, command) {
			_, seen[dir] = stat(dir)
		}
	})
	out := map[string]bool{}
	for dir, was := range seen {
		if session, began := stat(dir); session != "" && began == was {
			out[session] = true
		}
	}
	return out
}

// eachProcess calls f with the folder in /proc and the command line of each process of a task.
func (n *node) eachProcess(id string, f func(dir, command string)) {
	n.t.Helper()
	self := []byte("/skep/" + n.id + "/" + id)
	groups, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, g := range groups {
		if b, err := os.ReadFile(g); err != nil || !bytes.Contains(b, self) {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(g), "cmdline")); err == nil && len(b) > 0 {
			f(filepath.Dir(g), strings.TrimSpace(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))))
		}
	}
}

func (n *node) awaitProcesses(id, want string) {
	n.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		got := n.processes(id)
		if strings.Join(got, "; ") == want {
			return
		}
		if time.Now().After(end) {
			n.t.Fatalf("processes of the task: %q, want %q", got, want)
		}
	}
}

func TestHealthByCommand(t *testing.T) {
	n := up(t)
	s := n.spec("sleep", "1000")
	s.Task.Container.Env = []string{"WORD=spec"}
	s.Task.Container.Health = shell("echo out $WORD $FROM; echo err >&2; test -e /tmp/well")
	id := n.put(1, s)[0]
	st := n.health(starts, id)
	if st.ServedUnixMs != 0 || st.StartedUnixMs == 0 {
		t.Errorf("it starts: %v", st)
	}
	touch(t, n.inside(id, "tmp/well"))
	if st = n.health(healthy, id); st.ServedUnixMs == 0 || !strings.Contains(st.HealthOutput, "out spec image") || !strings.Contains(st.HealthOutput, "err") {
		t.Errorf("healthy: %v", st)
	}
	if err := os.Remove(n.inside(id, "tmp/well")); err != nil {
		t.Fatal(err)
	}
	if st = n.health(unhealthy, id); !strings.Contains(st.HealthOutput, "out spec image") {
		t.Errorf("unhealthy: %v", st)
	}
	// Not killed, and not forgotten by the next agent.
	pid := st.Pid
	n.halt()
	n.start()
	if st = n.state(running, id); st.Health != unhealthy || st.Pid != pid || st.HealthOutput == "" {
		t.Errorf("taken over: %v", st)
	}
	touch(t, n.inside(id, "tmp/well"))
	n.health(healthy, id)
	n.halt()
	n.mu.Lock()
	clear(n.status)
	n.mu.Unlock()
	n.start()
	n.await("the report of the next agent", func(m map[string]*skepv1.TaskStatus) bool {
		if h := m[id].GetHealth(); m[id] != nil && h != healthy {
			t.Fatalf("taken over it is %v", h)
		}
		return m[id] != nil
	})
	if err := os.Remove(n.inside(id, "tmp/well")); err != nil {
		t.Fatal(err)
	}
	n.health(unhealthy, id)
	n.want(shutdown, id)
	n.state(shutdown, id)
}

func TestHealthOfTheImage(t *testing.T) {
	n := newNode(t)
	n.start()
	n.load(archive(t, testImage, busybox(t, nil, func(c *v1.ConfigFile) {
		c.Config.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "echo", "from the image"}, Interval: time.Second}
	})))
	plain, off := n.spec("sleep", "1000"), n.spec("sleep", "1000")
	off.Task.Container.Health = &skepv1.HealthConfig{Test: []string{"NONE"}}
	id, none := n.put(1, plain)[0], n.put(1, off)[0]
	if st := n.health(healthy, id); st.HealthOutput != "from the image" {
		t.Errorf("status: %v", st)
	}
	n.halt()
	n.start()
	n.health(healthy, id)
	n.health(healthNone, none)
}

func TestHealthCommandThatCannotRun(t *testing.T) {
	n := up(t)
	s := n.spec("sleep", "1000")
	s.Task.Container.Health = &skepv1.HealthConfig{Test: []string{"CMD", "curl", "localhost"}, Interval: durationpb.New(100 * time.Millisecond), Retries: 1}
	id := n.put(1, s)[0]
	if st := n.health(unhealthy, id); !strings.Contains(st.HealthOutput, `exec: "curl": executable file not found in $PATH`) {
		t.Errorf("status: %v", st)
	}
}

// Commands that hang, fork, ignore signals, hide from their parents or print without end leave nothing, and are one at a
// time.
func TestNastyHealthCommands(t *testing.T) {
	n := up(t)
	files := func() int { e, _ := os.ReadDir("/proc/self/fd"); return len(e) }
	for name, line := range map[string]string{
		"hangs":                 "sleep 999",
		"ignores signals":       "trap '' TERM INT HUP; while :; do sleep 999; done",
		"forks":                 "for i in 1 2 3; do sleep 999 & done; wait",
		"leaves a child":        "sleep 999 & exit 1",
		"hides":                 "(setsid sh -c 'trap \"\" TERM; busybox setsid sleep 999 & sleep 999' &) ; exit 1",
		"holds the output":      "(setsid sleep 999 &) ; echo done; exit 1",
		"prints without end":    "yes",
		"prints 10 MB and ends": "dd if=/dev/zero bs=1024 count=10240 2>/dev/null | tr '\\0' x; echo; echo end; exit 1",
	} {
		t.Run(name, func(t *testing.T) {
			n.t = t
			s := n.spec("sleep", "1000")
			// A line for each that begins and ends as far as it may.
			s.Task.Container.Health = shell("echo $$ >>/tmp/began; " + strings.ReplaceAll(line, "setsid ", "busybox setsid "))
			s.Task.Container.Health.Timeout = durationpb.New(300 * time.Millisecond)
			if strings.HasSuffix(name, "and ends") {
				s.Task.Container.Health.Timeout = durationpb.New(patience)
			}
			id := n.put(1, s)[0]
			st := n.health(unhealthy, id)
			if len(st.HealthOutput) > 4096 || name == "prints 10 MB and ends" && !strings.HasSuffix(st.HealthOutput, "x\nend") {
				t.Errorf("%d bytes of output: …%q", len(st.HealthOutput), st.HealthOutput[max(0, len(st.HealthOutput)-20):])
			}
			before := files()
			began := n.inside(id, "tmp/began")
			count := func() int { b, _ := os.ReadFile(began); return bytes.Count(b, []byte("\n")) }
			first := count()
			most := 0 // probes at a time: all that one starts is of one session, until it begins another as another program
			for end := time.Now().Add(patience); count() < first+4; time.Sleep(5 * time.Millisecond) {
				most = max(most, len(n.sessions(id, "/bin/sh -c echo $$")))
				if time.Now().After(end) {
					t.Fatal("no more probes")
				}
			}
			if now := files(); now > before+8 {
				t.Errorf("%d files open, %d four probes ago", now, before)
			}
			if most > 1 || name == "forks" && most == 0 { // its shell waits: it is seen
				t.Errorf("%d probes at a time", most)
			}
			// An agent that ends takes its probe with it.
			n.halt()
			n.awaitProcesses(id, "sleep 1000")
			n.start()
			n.want(shutdown, id)
			n.state(shutdown, id)
			n.drop(id)
			n.await("the task to be forgotten", func(m map[string]*skepv1.TaskStatus) bool { return m[id] == nil })
		})
	}
	n.t = t
	if left, _ := filepath.Glob(filepath.Join(n.cfg.RunDir, "exec/*")); len(left) > 0 {
		t.Errorf("pipes left: %v", left)
	}
}

// What an agent that was killed left of a probe ends when the next one takes the task over.
func TestStrayProbes(t *testing.T) {
	n := up(t)
	id := n.put(1, n.spec("sleep", "1000"))[0]
	n.state(running, id)
	n.exec(id, "sh", "-c", "SKEP_PROBE="+id+".health sleep 998 >/dev/null 2>&1 & sleep 997 >/dev/null 2>&1 &")
	n.halt()
	n.start()
	n.state(running, id)
	n.awaitProcesses(id, "sleep 1000; sleep 997")
}

// A probe finds what a killed agent's containerd still knows as the one before, ends it and runs.
func TestProbeAfterOneThatWasLeft(t *testing.T) {
	n := up(t)
	id := n.put(1, n.spec("sleep", "1000"))[0]
	n.state(running, id)
	begun, ended := make(chan struct{}), make(chan int, 1)
	go func() {
		code, err := n.svc.runtime.Probe(context.Background(), id, "health", []string{"sleep", "999"}, io.Discard, func() { close(begun) })
		if err != nil {
			code = -1
		}
		ended <- code
	}()
	<-begun
	var out lockedBuffer
	if code, err := n.svc.runtime.Probe(t.Context(), id, "health", []string{"sh", "-c", "echo next; exit 3"}, &out, func() {}); code != 3 || err != nil || out.String() != "next\n" {
		t.Errorf("%d %v %q", code, err, out.String())
	}
	if code := <-ended; code == 0 {
		t.Error("the one before passed")
	}
	n.awaitProcesses(id, "sleep 1000")
	// The other kind has a name of its own.
	if code, err := n.svc.runtime.Probe(t.Context(), id, "ready", []string{"false"}, &out, func() {}); code != 1 || err != nil {
		t.Errorf("%d %v", code, err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// While containerd is away nothing is known, and nothing changes.
func TestVerdictOutlivesContainerd(t *testing.T) {
	n := up(t)
	s := n.spec("sleep", "1000")
	s.Task.Container.Health = shell("echo x >>/tmp/asked; true")
	s.Task.Container.Health.Retries = 1
	id := n.put(1, s)[0]
	n.health(healthy, id)
	asked := func() int { b, _ := os.ReadFile(n.inside(id, "tmp/asked")); return len(b) }
	for range 3 {
		was := asked()
		if err := syscall.Kill(n.svc.daemon.Pid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); asked() < was+4; time.Sleep(5 * time.Millisecond) {
			if _, st := n.svc.set.Job(id); st.GetHealth() != healthy {
				t.Fatalf("without containerd: %v", st)
			}
			if time.Now().After(end) {
				t.Fatal("no more probes")
			}
		}
	}
}

func TestReadinessGates(t *testing.T) {
	n := up(t)
	s := n.spec("sh", "-c", "busybox httpd -f -p 8080 -h /tmp")
	s.Task.Container.Ready = &skepv1.HealthConfig{Http: &skepv1.HTTPCheck{Port: 8080, Path: "/ok"}, Interval: durationpb.New(100 * time.Millisecond), Retries: 1}
	s.Task.Container.Health = &skepv1.HealthConfig{TcpPort: 8080, Interval: durationpb.New(100 * time.Millisecond)}
	s.Endpoint = &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{Protocol: "tcp", TargetPort: 8080, PublishedPort: 8080}}}
	id := n.put(1, s)[0]
	st := n.health(healthy, id)
	if !st.NotReady || st.ServedUnixMs != 0 {
		t.Errorf("ready without having said so: %v", st)
	}
	is := func(unready bool) (st *skepv1.TaskStatus) {
		t.Helper()
		n.await(fmt.Sprint("not ready: ", unready), func(m map[string]*skepv1.TaskStatus) bool {
			st = m[id]
			return st.GetState() == running && st.GetNotReady() == unready
		})
		return st
	}
	touch(t, n.inside(id, "tmp/ok"))
	if err := os.Chmod(n.inside(id, "tmp/ok"), 0o644); err != nil {
		t.Fatal(err)
	}
	first := is(false)
	if first.ServedUnixMs == 0 || first.HealthOutput != "HTTP 200 OK" {
		t.Errorf("ready: %v", first)
	}
	if err := os.Remove(n.inside(id, "tmp/ok")); err != nil {
		t.Fatal(err)
	}
	st = is(true)
	if st.Health != healthy || st.Pid != first.Pid || st.ServedUnixMs != first.ServedUnixMs || !strings.HasPrefix(st.HealthOutput, "HTTP 404 Not Found") {
		t.Errorf("not ready any more: %v", st)
	}
	n.halt()
	n.start()
	is(true)
	touch(t, n.inside(id, "tmp/ok"))
	is(false)
}
