package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// A worker is made a manager and, before its services have all started, a worker again: it goes on as one, and its tasks run.
func TestDemotedWhileItStarts(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 4, Managers: 3, Race: true})
	c.skep("service", "create", "--name", "stay", "--mode", "global", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	before := c.running("stay")["w1"][0].ID
	for _, pause := range []string{"0", "0.5", "1", "1.5", "2"} {
		c.must("m1", "skep node promote w1; sleep "+pause+"; skep node demote w1")
		c.await("w1 is a worker after "+pause+" s", time.Minute, func() string {
			return strings.TrimSpace(c.on("m1", "skep", "node", "ls", "--filter", "name=w1", "--filter", "role=manager", "-q").Stdout)
		})
		c.await("its daemon says so", time.Minute, func() string {
			r := c.on("w1", "curl", "-sS", "--unix-socket", "/run/skep/node.sock", "http://node/info")
			if !strings.Contains(r.Stdout, `"role":"worker"`) || !strings.Contains(r.Stdout, `"state":"ready"`) {
				return r.Stdout + r.Stderr
			}
			return ""
		})
	}
	c.awaitNode("w1", "Ready", time.Minute)
	if now := c.running("stay")["w1"]; len(now) != 1 || now[0].ID != before {
		t.Errorf("its task was %s, and is %v", before, now)
	}
}
