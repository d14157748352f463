package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// A node whose containerd hangs says so within half a minute: it gets no tasks, what it prepares goes elsewhere, what it
// runs goes on, and it is as before when containerd answers again.
func TestContainerdHangs(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "old", "--replicas", "3", "whoami:v1")
	c.awaitRunning("old", 3, time.Minute)
	before := c.running("old")["w1"]
	c.must("w1", "kill -STOP $(pgrep -n -x containerd)")
	defer c.on("w1", "sh", "-c", "kill -CONT $(pgrep -n -x containerd)")
	c.skep("service", "create", "--detach", "--name", "new", "--replicas", "3", "whoami:v2")
	took := c.await("the node is sick", time.Minute, func() string {
		if out := c.skep("node", "ls", "--format", "{{.Hostname}} {{.Status}}"); !strings.Contains(out, "w1 Sick") {
			return out
		}
		return ""
	})
	t.Logf("the node was sick %s after containerd stopped", took)
	c.awaitRunning("new", 3, time.Minute, "w1")
	if out := c.skep("node", "inspect", "--pretty", "w1"); !strings.Contains(out, "containerd does not answer") {
		t.Errorf("inspect does not say why:\n%s", out)
	}
	if out := c.on("m1", "skep", "doctor").Stdout; !strings.Contains(out, "it begins no tasks") || !strings.Contains(out, "containerd does not answer") {
		t.Errorf("doctor does not say it:\n%s", out)
	}
	c.skep("service", "scale", "--detach", "new=6")
	c.awaitRunning("new", 6, time.Minute, "w1")
	if now := c.running("old")["w1"]; len(before) == 0 || len(now) != len(before) || now[0].ID != before[0].ID {
		t.Errorf("what ran there was %v, and is %v", before, now)
	}
	c.must("w1", "kill -CONT $(pgrep -n -x containerd)")
	c.await("the node is well", time.Minute, func() string {
		if out := c.skep("node", "ls", "--format", "{{.Hostname}} {{.Status}}"); !strings.Contains(out, "w1 Ready") {
			return out
		}
		return ""
	})
	c.skep("service", "create", "--name", "later", "--mode", "global", "whoami:v1")
	c.awaitRunning("later", 3, time.Minute)
	c.skep("service", "rm", "old", "new", "later")
	c.awaitContainers(0, time.Minute, "m1", "w1", "w2")
}
