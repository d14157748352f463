package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// A machine is started from a copy of another's disk. It is refused by name and address, starts nothing and disturbs nothing,
// although the node has more to run now; the node itself starts again without waiting, once the copy is gone.
func TestACopyOfANode(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "one", "--constraint", "node.hostname==w1", "--replicas", "2", "busybox", "sleep", "200000")
	if r := c.on("w2", "skep", "leave"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	c.skep("node", "rm", "--force", "w2")
	before := ids(c.tasks("one"))
	disk := c.must("w1", "tar -C /var/lib/skep -cz node.json certs | base64 -w0")
	if r, err := c.RunInput(c.ctx, "w2", disk, "sh", "-c", "base64 -d | tar -C /var/lib/skep -xz"); err != nil || r.Code != 0 {
		t.Fatal(err, r.Stderr)
	}
	id := c.skep("node", "inspect", "--format", "{{.ID}}", "w1")
	c.must("w2", "setsid skep node run >>/var/lib/skep/skep.log 2>&1 </dev/null & true")
	c.await("the copy is told of", time.Minute, func() string {
		r := c.on("m1", "skep", "events", "--since", "10m", "--until", "0s", "--json")
		if !strings.Contains(r.Stdout, `"duplicate"`) || !strings.Contains(r.Stdout, fabric["w1"]) || !strings.Contains(r.Stdout, fabric["w2"]) {
			return r.Stdout + r.Stderr + c.on("w2", "tail", "-n", "30", "/var/lib/skep/skep.log").Stdout
		}
		return ""
	})
	if log := c.must("w2", "cat /var/lib/skep/skep.log"); !strings.Contains(log, "another machine runs as this node") || !strings.Contains(log, fabric["w1"]) {
		t.Errorf("the copy's log:\n%s", log)
	}
	// More to run, pushed to both.
	c.skep("service", "scale", "one=4")
	c.awaitRunning("one", 4, time.Minute)
	if n := strings.Count(c.must("w1", "pgrep -fx 'sleep 200000'"), "\n"); n != 4 {
		t.Errorf("%d containers run on the node", n)
	}
	if out := c.on("w2", "pgrep", "-fx", "sleep 200000").Stdout; out != "" {
		t.Errorf("the copy runs containers: %s", out)
	}
	if after := ids(c.tasks("one")); !strings.Contains(after, strings.TrimSpace(before)) {
		t.Logf("tasks before: %s, after: %s", before, after)
	}
	if got := c.nodeStates()["w1"]; got != "Ready Active" {
		t.Errorf("the node: %s", got)
	}
	if addr := c.skep("node", "inspect", "--format", "{{.Status.Addr}}", id); addr != fabric["w1"] {
		t.Errorf("its address: %s", addr)
	}
	// The copy goes; the node starts again, killed as it is, and does not wait for itself.
	tasks := ids(c.tasks("one"))
	c.kill9("w2", "skep", true)
	c.kill9("w1", "skep", true)
	began := time.Now()
	if err := c.StartDaemon(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("w1", "Ready", 30*time.Second)
	c.skep("service", "update", "--detach", "--replicas", "5", "one")
	c.awaitRunning("one", 5, time.Minute)
	t.Logf("the node has its tasks %s after it was started again", time.Since(began).Round(time.Millisecond))
	for _, id := range strings.Fields(tasks) {
		if !strings.Contains(ids(c.tasks("one")), id) {
			t.Errorf("task %s was replaced", id)
		}
	}
}

// TestACopyOfAManager: a machine whose disk is a copy of a manager's serves nothing, has no part in the group and begins nothing
// while the first one is there. Both are named: in the log of each, in an event, and by every command on the copy.
func TestACopyOfAManager(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 4, Managers: 3})
	c.skep("service", "create", "--name", "one", "--mode", "global", "busybox", "sleep", "300000")
	if r := c.on("w1", "skep", "leave"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	c.skep("node", "rm", "--force", "w1")
	c.kill9("m2", "skep", true)
	disk := c.must("m2", "tar -C /var/lib/skep -cz node.json certs bus vault | base64 -w0")
	if err := c.StartDaemon(c.ctx, "m2"); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("m2", "Ready", time.Minute)
	if r, err := c.RunInput(c.ctx, "w1", disk, "sh", "-c", "base64 -d | tar -C /var/lib/skep -xz"); err != nil || r.Code != 0 {
		t.Fatal(err, r.Stderr)
	}
	before := ids(c.tasks("one"))
	c.must("w1", "setsid skep node run >>/var/lib/skep/skep.log 2>&1 </dev/null & true")
	c.await("the copy is told of", time.Minute, func() string {
		r := c.on("m1", "skep", "events", "--since", "10m", "--until", "0s", "--json")
		if !strings.Contains(r.Stdout, `"duplicate"`) || !strings.Contains(r.Stdout, fabric["m2"]) || !strings.Contains(r.Stdout, fabric["w1"]) {
			return r.Stdout + r.Stderr + c.on("w1", "tail", "-n", "30", "/var/lib/skep/skep.log").Stdout
		}
		return ""
	})
	text := "another machine runs as this manager: m2 at " + fabric["m2"]
	c.await("a command on the copy says what it is", time.Minute, func() string {
		r := c.on("w1", "skep", "node", "ls")
		if r.Code == 0 || !strings.Contains(r.Stderr, text) || !strings.Contains(r.Stderr, fabric["w1"]) {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	if log := c.must("w1", "cat /var/lib/skep/skep.log"); !strings.Contains(log, text) {
		t.Errorf("the copy's log:\n%s", log)
	}
	// The cluster changes as ever, and nothing of it happens on the copy.
	c.skep("service", "create", "--name", "two", "--replicas", "6", "busybox", "sleep", "300001")
	if out := c.on("w1", "pgrep", "-f", "sleep 30000[01]").Stdout; out != "" {
		t.Errorf("the copy runs containers: %s", out)
	}
	if after := ids(c.tasks("one")); !strings.Contains(after, strings.TrimSpace(before)) {
		t.Errorf("tasks before: %s, after: %s", before, after)
	}
	for host, state := range c.nodeStates() {
		if host != "w1" && !strings.HasPrefix(state, "Ready") {
			t.Errorf("node %s: %s", host, state)
		}
	}
	// The first one is gone, and what was its copy takes its place; back again, the first one is refused.
	c.kill9("m2", "skep", true)
	c.await("the copy serves", 2*time.Minute, func() string {
		r := c.on("w1", "skep", "node", "ls")
		if r.Code != 0 {
			return r.Stderr
		}
		return ""
	})
	if err := c.StartDaemon(c.ctx, "m2"); err == nil {
		t.Log("the first one's daemon says that it is ready")
	}
	c.await("the first one is refused", time.Minute, func() string {
		r := c.on("m2", "skep", "node", "ls")
		if r.Code == 0 || !strings.Contains(r.Stderr, "another machine runs as this manager") {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	c.kill9("w1", "skep", true)
}
