package cases

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// witnessOf makes w1 a witness: it joined as a worker, leaves, and joins to vote. It returns when it does.
func (c *cluster) witnessOf(separate bool) {
	c.t.Helper()
	token := strings.TrimSpace(c.skep("join-token", "-q", "manager"))
	c.refusedOn("m1", 1, []string{"part of a swarm"}, "skep", "join", "--witness", "--token", token, "10.90.1.1:2377")
	if separate {
		for _, name := range lab.Programs(lab.Worker) {
			if err := c.KillProcess(c.ctx, "w1", name, true); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	if r := c.on("w1", "skep", "leave"); r.Code != 0 {
		c.t.Fatal(r.Stderr)
	}
	c.awaitNode("w1", "Down", time.Minute)
	c.skep("node", "rm", "w1")
	c.refusedOn("w1", 1, []string{"takes the managers' token"}, "skep", "join", "--witness", "--token", strings.TrimSpace(c.skep("join-token", "-q", "worker")), "10.90.1.1:2377")
	c.refusedOn("w1", 2, []string{"--availability is for nodes that run tasks"}, "skep", "join", "--witness", "--availability", "active", "--token", token, "10.90.1.1:2377")
	began := time.Now()
	join := []string{"skep", "join", "--witness", "--token", token, "--advertise-addr", "10.90.2.1", "10.90.1.1:2377"}
	if separate {
		join = slices.Insert(join, 2, "--no-start")
	}
	r := c.on("w1", join...)
	if r.Code != 0 || r.Stdout != "This node joined a swarm as a witness.\n" {
		c.t.Fatalf("join: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if separate {
		c.refusedOn("w1", 1, []string{"this node is a witness: skep-bus runs on it and nothing else"}, "skep-agent")
		c.start("w1", "skep-bus")
	}
	c.t.Logf("joined in %.1f s", time.Since(began).Seconds())
}

// awaitWitness waits until m1, m2 and the witness w1 vote and one of the managers leads.
func (c *cluster) awaitWitness(limit time.Duration) {
	c.t.Helper()
	c.await("three voters", limit, func() string {
		now, why := c.managers("m1")
		both := now["m1"] + " " + now["m2"]
		if why != "" || now["w1"] != "Reachable (witness)" || both != "Leader Reachable" && both != "Reachable Leader" {
			return fmt.Sprint(now, why)
		}
		return ""
	})
}

// The same where every service is a process of its own: of a witness's there is one.
func TestWitnessSeparate(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 3, Managers: 2, Separate: true})
	c.witnessOf(true)
	c.awaitWitness(time.Minute)
	c.awaitNode("w1", "Ready", 30*time.Second)
	c.signal("w1", "skep-bus", 1, "KILL")
	c.skep("service", "create", "--name", "web", "--replicas", "2", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.start("w1", "skep-bus")
	c.awaitWitness(time.Minute)
	c.awaitCopies()
	if err := c.Kill(c.ctx, "m2"); err != nil {
		t.Fatal(err)
	}
	t.Logf("a change without m2 after %.1f s", c.changeAt("m1").Seconds())
}

// awaitCopies waits until every stream's copies are up to date: who is lost before that was one too many already.
func (c *cluster) awaitCopies() {
	c.t.Helper()
	c.await("copies that are up to date", time.Minute, func() string {
		r := c.on("m1", "skep", "doctor")
		if !strings.Contains(r.Stdout, "every replica is up to date") {
			return r.Stdout + r.Stderr
		}
		return ""
	})
}

// changeAt makes a change at a host, as often as it takes.
func (c *cluster) changeAt(host string) time.Duration {
	c.t.Helper()
	n := 0
	return c.await("a change at "+host, time.Minute, func() string {
		n++
		return c.on(host, "timeout", "3", "skep", "service", "scale", "--detach", fmt.Sprint("web=", 4+n%2)).Stderr
	})
}

// Two real machines and one that votes: either real one may be lost, and then changes go on and tasks move; the witness
// may be lost and nobody notices.
func TestWitness(t *testing.T) {
	c := up(t, lab.Options{Hosts: 3, Managers: 2})
	c.witnessOf(false)
	votes := c.awaitWitness
	votes(time.Minute)
	c.awaitNode("w1", "Ready", 30*time.Second)
	if out := c.skep("node", "ls", "--format", "{{.Hostname}} {{.Availability}}"); !strings.Contains(out, "w1 Drain") {
		t.Errorf("node ls: %s", out)
	}
	c.refused(1, []string{"w1 is a witness"}, "node", "update", "--availability", "active", "w1")
	c.refusedOn("w1", 1, []string{"This node is a witness", "10.90.1.1:2377"}, "skep", "node", "ls")
	c.refusedOn("w1", 1, []string{"This node is a witness", "no cluster can be run from it"}, "skep", "init", "--force-new-cluster")
	c.refusedOn("w1", 1, []string{"This node is a witness", "--force"}, "skep", "leave")
	if r := c.on("w1", "sh", "-c", "ls /run/skep/skep.sock /var/lib/skep/vault /var/lib/skep/containerd; ip link show skep0"); r.Stdout != "" {
		t.Errorf("it has what it has no use for: %s", r.Stdout)
	}

	// No task goes there, of a global service neither.
	c.skep("service", "create", "--name", "all", "--mode", "global", "--stop-signal", "SIGKILL", "busybox", "sleep", "200000")
	c.skep("service", "create", "--name", "web", "--replicas", "6", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	if out := c.skep("service", "ps", "--format", "{{.Node}}", "web") + c.skep("service", "ps", "--format", "{{.Node}}", "all"); strings.Contains(out, "w1") {
		t.Errorf("tasks run on the witness:\n%s", out)
	}
	if out := c.skep("service", "ls", "--format", "{{.Name}} {{.Replicas}}"); !strings.Contains(out, "all 2/2") || !strings.Contains(out, "web 6/6") {
		t.Errorf("service ls: %s", out)
	}
	if out := c.skep("doctor"); strings.Contains(out, "mesh of w1") || !strings.Contains(out, "3 of 3 reachable") || strings.Contains(out, "WARN") {
		t.Errorf("doctor: %s", out)
	}
	pid := strings.TrimSpace(c.on("w1", "cat", "/var/lib/skep/skep.pid").Stdout)
	rss := c.on("w1", "sh", "-c", "grep -E 'VmRSS|RssAnon' /proc/"+pid+"/status; du -sk /var/lib/skep/bus | cut -f1").Stdout
	t.Logf("the witness takes:\n%s", rss)

	// The witness is lost: nothing happens.
	before := c.sleepers()
	if err := c.Kill(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"m1", "m2"} {
		t.Logf("without the witness a change at %s took %.1f s", host, c.changeAt(host).Seconds())
	}
	if err := c.Start(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	votes(time.Minute)
	if now := c.sleepers(); strings.Count(now, "\n") < strings.Count(before, "\n")-2 {
		t.Errorf("containers went with the witness:\n%s\n%s", before, now)
	}

	// Either real one is lost: the other one goes on, and has all tasks.
	for _, lost := range []string{"m2", "m1"} {
		stays := map[string]string{"m1": "m2", "m2": "m1"}[lost]
		c.skep("service", "scale", "web=6")
		c.awaitCopies()
		if err := c.Kill(c.ctx, lost); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		c.changeAt(stays)
		t.Logf("a change without %s: %.1f s", lost, time.Since(began).Seconds())
		took := c.await("the tasks on "+stays, time.Minute, func() string {
			r := c.on(stays, "skep", "service", "ls", "--format", "{{.Name}} {{.Replicas}}")
			ps := c.on(stays, "skep", "service", "ps", "--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}", "web")
			var want string
			for _, l := range strings.Split(strings.TrimSpace(ps.Stdout), "\n") {
				if !strings.HasPrefix(l, stays+" Running") {
					want = l
				}
			}
			if r.Code != 0 || want != "" || ps.Stdout == "" {
				return r.Stdout + r.Stderr + ps.Stdout
			}
			return ""
		})
		t.Logf("all tasks on %s %.1f s after the change, %.1f s after the loss", stays, took.Seconds(), time.Since(began).Seconds())
		if err := c.Start(c.ctx, lost); err != nil {
			t.Fatal(err)
		}
		votes(2 * time.Minute)
		c.awaitNode(lost, "Ready", time.Minute)
	}

	// It gives its vote back and takes it again, and leaves.
	c.await("its demotion", time.Minute, func() string {
		r := c.on("m1", "skep", "node", "demote", "w1") // refused until both managers are heard of
		if !strings.Contains(r.Stdout, "It is a witness, and without its vote it does nothing") {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	noVote := func() {
		t.Helper()
		c.await("no vote", time.Minute, func() string {
			if now := c.managerStatus(); now["w1"] != "No vote (witness)" {
				return fmt.Sprint(now)
			}
			return ""
		})
	}
	noVote()
	c.skep("node", "promote", "w1")
	votes(time.Minute)
	if r := c.on("w1", "skep", "leave", "--force"); r.Code != 0 || r.Stderr != "" {
		t.Errorf("leave: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	c.awaitNode("w1", "Down", 30*time.Second)
	noVote()
	c.skep("node", "rm", "w1")
	c.awaitManagers(time.Minute, "m1", "m2")
}
