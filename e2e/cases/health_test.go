package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// leaveLimit is how long a task may be led to after what its checks said.
const leaveLimit = time.Second

// lookup are the addresses a task finds for a name.
func (c *cluster) lookup(from, name string) []string {
	c.t.Helper()
	r := c.on("m1", "skep", "exec", from, "nslookup", name, "127.0.0.11")
	var out []string
	_, answers, _ := strings.Cut(r.Stdout, "Name:") // before it, the server's own address
	for line := range strings.Lines(answers) {
		if f := strings.Fields(line); len(f) >= 2 && strings.HasPrefix(f[0], "Address") {
			out = append(out, f[len(f)-1])
		}
	}
	return out
}

// draws is how often a test asks to see every backend. Each request draws one at random: six requests to two backends
// miss one of them once in 32 times, these once in eight million.
const draws = 24

// awaitHosts waits until a port of m1 leads to so many hosts, and says how long that took.
func (c *cluster) awaitHosts(port, n int, limit time.Duration) time.Duration {
	c.t.Helper()
	return c.await(fmt.Sprintf("port %d to lead to %d", port, n), limit, func() string {
		got := map[string]bool{}
		for i := 0; i < draws && len(got) <= n; i++ {
			a, err := c.ask("client", fmt.Sprintf("http://%s:%d/", fabric["m1"], port))
			if err != nil {
				a.host = err.Error()
			}
			got[a.host] = true
		}
		if len(got) != n {
			return fmt.Sprint(got)
		}
		return ""
	})
}

// awaitTask waits until the state of a task, as `service ps` shows it, ends like that.
func (c *cluster) awaitTask(service, id, suffix string, limit time.Duration) (got task) {
	c.t.Helper()
	c.await(fmt.Sprintf("task %s of %s to be %q", id, service, suffix), limit, func() string {
		for _, t := range c.tasks(service) {
			if got = t; t.ID == id {
				if strings.HasSuffix(t.State, suffix) {
					return ""
				}
				return t.State + " " + t.Error
			}
		}
		return "it is not listed"
	})
	return got
}

func (c *cluster) only(service string, n int) []task {
	c.t.Helper()
	c.awaitRunning(service, n, time.Minute)
	var out []task
	for _, ts := range c.running(service) {
		out = append(out, ts...)
	}
	return out
}

// Chapter 13: a command decides the health of a task. One that is unhealthy leaves names and ports at once, and is
// replaced, a quarter of the service at a time.
func TestHealthChecks(t *testing.T) {
	c := up(t, lab.Options{Race: true})
	c.skep("network", "create", "net")
	c.skep("service", "create", "--name", "look", "--network", "net", "busybox", "sleep", "100000")
	c.skep("service", "create", "--name", "web", "--network", "net", "--replicas", "3", "--publish", "8080:80", "--restart-delay", "20s",
		"--health-cmd", "test ! -e /tmp/ill || { cut -d' ' -f1 /proc/uptime >>/tmp/when; echo it is ill; exit 1; }", "--health-interval", "200ms", "--health-retries", "1", "whoami:v1")
	look := c.only("look", 1)[0].ID
	web := c.only("web", 3)
	for _, w := range web {
		c.awaitTask("web", w.ID, "(healthy)", 10*time.Second)
	}
	addresses := func(n int, limit time.Duration) {
		t.Helper()
		c.await(fmt.Sprint(n, " addresses of tasks.web"), limit, func() string {
			if got := c.lookup(look, "tasks.web"); len(got) != n {
				return fmt.Sprint(got)
			}
			return ""
		})
	}
	addresses(3, 10*time.Second)
	c.awaitPort(8080)
	c.skep("exec", web[0].ID, "touch", "/tmp/ill")
	c.await("the first to be ended", 10*time.Second, func() string {
		for _, x := range c.tasks("web") {
			if x.ID == web[0].ID && strings.HasPrefix(x.State, "Failed") && strings.Contains(x.Error, "unhealthy container: it is ill") {
				return ""
			}
		}
		return fmt.Sprint(c.tasks("web"))
	})
	addresses(2, leaveLimit)
	// What a client sees, by the kernel's clock: exec and ps take too long to measure with.
	c.skep("exec", look, "sh", "-c", "while :; do read t _ </proc/uptime; echo $t $(nslookup tasks.web 127.0.0.11 2>/dev/null | grep -c ^Address); done >/tmp/seen 2>/dev/null &")
	c.skep("exec", web[1].ID, "touch", "/tmp/ill")
	ill := c.awaitTask("web", web[1].ID, "(unhealthy)", 10*time.Second)
	if !strings.Contains(ill.Error, "unhealthy, not replaced: 1 of at most 1") {
		t.Errorf("why it is not replaced is not shown: %+v", ill)
	}
	addresses(1, leaveLimit)
	c.awaitHosts(8080, 1, leaveLimit)
	var said, gone float64
	fmt.Sscan(c.skep("exec", web[1].ID, "head", "-n", "1", "/tmp/when"), &said)
	for line := range strings.Lines(c.skep("exec", look, "cat", "/tmp/seen")) {
		var at float64
		var addrs int
		if n, _ := fmt.Sscan(line, &at, &addrs); n == 2 && at > said && addrs == 2 { // the server's own and one more
			gone = at
			break
		}
	}
	t.Logf("gone from names %.0f ms after the command said so", 1000*(gone-said))
	if took := time.Duration((gone - said) * float64(time.Second)); said == 0 || gone == 0 || took > leaveLimit {
		t.Errorf("it left names %s after its check failed", took)
	}
	if out := c.skep("task", "inspect", web[1].ID); !strings.Contains(out, `"Status": "unhealthy"`) || !strings.Contains(out, "it is ill") {
		t.Errorf("task inspect: %s", out)
	}
	// Its turn comes when the first one's replacement serves.
	c.await("three that are well", time.Minute, func() string {
		ok := 0
		for _, x := range c.tasks("web") {
			if x.ID != web[0].ID && x.ID != web[1].ID && strings.HasSuffix(x.State, "(healthy)") {
				ok++
			}
		}
		if ok != 3 {
			return fmt.Sprint(c.tasks("web"))
		}
		return ""
	})

	c.refused(2, []string{"--health-cmd and --health-tcp conflict"}, "service", "create", "--health-cmd", "x", "--health-tcp", "80", "whoami:v1")
	c.refused(2, []string{"port 0 is out of range"}, "service", "create", "--ready-http", ":0/", "whoami:v1")
}

// Readiness turns traffic away and back; the task runs on.
func TestReadinessChecks(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	c.skep("service", "create", "--name", "site", "--replicas", "2", "--publish", "8080:80",
		"--ready-http", ":80/health", "--ready-interval", "200ms", "--ready-retries", "1", "whoami:v1")
	site := c.only("site", 2)
	c.awaitHosts(8080, 2, 10*time.Second)
	tell := func(path string) { c.skep("exec", site[0].ID, "wget", "-q", "-O", "-", "http://127.0.0.1"+path) }
	tell("/sick")
	off := c.awaitTask("site", site[0].ID, "(not ready)", 10*time.Second)
	if !strings.HasPrefix(off.State, "Running") || !strings.Contains(off.Error, "503 Service Unavailable: sick") {
		t.Errorf("not ready: %+v", off)
	}
	took := c.awaitHosts(8080, 1, leaveLimit)
	t.Logf("out of traffic %d ms after it was seen not to be ready", took.Milliseconds())
	tell("/well")
	c.awaitHosts(8080, 2, 10*time.Second)
	if again := c.tasks("site"); len(again) != 2 {
		t.Errorf("tasks were replaced: %v", again)
	}

	// One that never becomes ready runs, and counts for nothing.
	c.skep("service", "create", "-d", "--name", "never", "--ready-tcp", "81", "whoami:v1")
	c.await("a task that is not ready", 30*time.Second, func() string {
		ts := c.tasks("never")
		if len(ts) != 1 || !strings.HasSuffix(ts[0].State, "(not ready)") || !strings.Contains(ts[0].Error, "connection refused") {
			return fmt.Sprint(ts)
		}
		return ""
	})
	if got := c.skep("service", "ls", "--format", "{{.Replicas}}", "--filter", "name=never"); got != "0/1" {
		t.Errorf("REPLICAS %q", got)
	}
	c.skep("service", "update", "-d", "--no-readycheck", "never")
	c.await("the service without the check", 30*time.Second, func() string {
		if got := c.skep("service", "ls", "--format", "{{.Replicas}}", "--filter", "name=never"); got != "1/1" {
			return got
		}
		return ""
	})

	// A command that hides, holds on and prints without end is gone with its task.
	c.skep("service", "create", "-d", "--name", "nasty", "--health-interval", "200ms", "--health-timeout", "300ms",
		"--health-cmd", `echo $$ >>/tmp/began; (setsid sh -c 'trap "" TERM; sleep 999' &); trap "" TERM; yes`, "busybox", "sleep", "100000")
	c.await("it to be ended for its health", 30*time.Second, func() string {
		for _, x := range c.tasks("nasty") {
			if strings.Contains(x.Error, "unhealthy container") {
				return ""
			}
		}
		return fmt.Sprint(c.tasks("nasty"))
	})
	c.skep("service", "rm", "site", "never", "nasty")
	c.awaitClean(30*time.Second, c.members()...)
	for _, h := range c.members() {
		if out := c.on(h, "pgrep", "-fa", "sleep 999|^yes"); out.Code == 0 {
			t.Errorf("left on %s: %s", h, out.Stdout)
		}
	}
}
