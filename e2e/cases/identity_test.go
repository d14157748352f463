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
