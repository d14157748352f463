package cases

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Machines without an IPv4 address are a cluster: three managers and a worker, a context from outside, the mesh between them,
// and the leader's loss.
func TestManagersOverIPv6Alone(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 4, Managers: 3, NoCluster: true})
	six := c.fabric6
	for _, h := range c.Hosts {
		switch h.Role {
		case lab.Manager, lab.Worker:
			c.must(h.Name, "sed -i 's/"+lab.RegistryAddress+"/["+six("registry")+"]:5000/' /var/lib/skep/registries.toml; ip -4 addr flush dev eth0")
		case lab.Client:
			c.must(h.Name, "ip -4 addr flush dev eth0")
		}
	}
	ok := func(host string, argv ...string) string {
		t.Helper()
		r := c.on(host, argv...)
		if r.Code != 0 {
			t.Fatalf("%s: %v: %d %s%s", host, argv, r.Code, r.Stdout, r.Stderr)
		}
		return r.Stdout
	}
	// Nothing has to be said where there is one address; in brackets and without a port it is one, too.
	out := ok("m1", slices.Concat([]string{"skep", "init"}, c.Flags)...)
	if want := "[" + six("m1") + "]:2377"; !strings.Contains(out, want) {
		t.Errorf("init says:\n%swant %s", out, want)
	}
	for host, args := range map[string][]string{"m2": {"[" + six("m1") + "]:2377"}, "m3": {"--advertise-addr", "[" + six("m3") + "]", six("m1")}, "w1": {"--advertise-addr", "eth0", "[" + six("m1") + "]"}} {
		role := "manager"
		if host == "w1" {
			role = "worker"
		}
		token := ok("m1", "skep", "join-token", role)
		if role == "manager" && !strings.Contains(token, "["+six("m1")+"]:2377") {
			t.Errorf("join-token says:\n%s", token)
		}
		argv := slices.Concat([]string{"skep", "join"}, c.Flags, []string{"--token", strings.TrimSpace(ok("m1", "skep", "join-token", "-q", role))}, args)
		ok(host, argv...)
	}
	for _, h := range c.Hosts {
		h.Joined = h.Role == lab.Manager || h.Role == lab.Worker
	}
	leader := c.awaitLeader("m1", 3, time.Minute)
	for _, host := range []string{"m2", "w1"} {
		if out := c.skep("node", "inspect", "--format", "{{.Status.Addr}}", host); out != six(host) {
			t.Errorf("%s is at %s, want %s", host, out, six(host))
		}
	}
	c.await("the worker knows three managers", time.Minute, func() string {
		r := c.on("w1", "cat", "/var/lib/skep/node.json").Stdout
		for _, m := range []string{"m1", "m2", "m3"} {
			if !strings.Contains(r, "["+six(m)+"]:2377") {
				return r
			}
		}
		return ""
	})

	// A context on a host outside.
	text := ok("m1", "skep", "context", "issue", "-o", "-", "ann")
	if r, err := c.RunInput(c.ctx, "client", text, "skep", "context", "import", "-", "six"); err != nil || r.Code != 0 {
		t.Fatalf("import: %v %s", err, r.Stderr)
	}
	if out := ok("client", "skep", "--context", "six", "node", "ls"); strings.Count(out, "Ready") != 4 {
		t.Errorf("node ls from outside:\n%s", out)
	}

	// The mesh: names and virtual addresses over a network of tasks, published ports from outside, through every node.
	c.skep("network", "create", "net1")
	c.skep("network", "create", "--opt", "encrypted", "vault")
	c.skep("service", "create", "--name", "front", "--replicas", "2", "--network", "net1", "--network", "vault", "--publish", "8080:80", "whoami:v1")
	c.skep("service", "create", "--name", "probe", "--mode", "global", "--network", "net1", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.skep("service", "create", "--name", "sealed", "--mode", "global", "--network", "vault", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	reached := func(hosts ...string) {
		t.Helper()
		for _, host := range hosts {
			c.await("port 8080 of "+host, 30*time.Second, func() string {
				r := c.on("client", "curl", "-sS", "--max-time", "3", fmt.Sprintf("http://[%s]:8080/", six(host)))
				if r.Code != 0 {
					return r.Stderr
				}
				if got := strings.Trim(parseAnswer(r.Stdout).client, "[]"); got != six("client") {
					return "the service sees " + got
				}
				return ""
			})
		}
	}
	reached(c.members()...)
	for _, from := range []string{"probe", "sealed"} {
		for host, ts := range c.running(from) {
			c.await(fmt.Sprintf("%s on %s reaches front", from, host), 30*time.Second, func() string {
				if out, ok := c.inTask(ts[0].ID, "timeout", "3", "wget", "-q", "-O", "-", "http://front/"); !ok {
					return out
				}
				return ""
			})
		}
	}
	c.awaitWell(time.Minute)

	// The leader loses its power.
	front := "m1"
	if leader == front {
		front = "m2"
	}
	if err := c.Kill(c.ctx, leader); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.await("a change is taken", time.Minute, func() string {
		return c.on(front, "skep", "service", "update", "--detach", "--label-add", "a=b", "front").Stderr
	})
	t.Logf("without %s changes are taken after %.1f s", leader, time.Since(began).Seconds())
	var rest []string
	for _, m := range c.members() {
		if m != leader {
			rest = append(rest, m)
		}
	}
	c.await("both replicas elsewhere", time.Minute, func() string {
		r := c.on(front, "skep", "service", "ps", "--filter", "desired-state=running", "--format", taskFormat, "front")
		n := 0
		for _, v := range parseTasks(r.Stdout) {
			if strings.HasPrefix(v.State, "Running") && v.Node != leader {
				n++
			}
		}
		if n != 2 {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	reached(rest...)
	if r := c.on("client", "skep", "--context", "six", "node", "ls"); r.Code != 0 || !strings.Contains(r.Stdout, "Unreachable") {
		t.Errorf("node ls from outside: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if err := c.Start(c.ctx, leader); err != nil {
		t.Fatal(err)
	}
	c.must(leader, "ip -4 addr flush dev eth0")
	c.awaitLeader(front, 3, time.Minute)
	reached(leader)
}
