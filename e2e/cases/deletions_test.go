package cases

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// What was removed stays removed when the manager is killed after the deletions' markers were retired: a service with its
// port and name, a network, a node that was expelled.
func TestDeletionsOutliveACrash(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Env: []string{"SKEP_RETIRE_AFTER=2s"}})
	c.skep("network", "create", "ghostnet")
	c.skep("service", "create", "--name", "ghost", "-p", "8080:80", "--network", "ghostnet", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitRunning("ghost", 1, time.Minute)
	c.skep("service", "rm", "ghost")
	c.skep("network", "rm", "ghostnet")
	c.skep("service", "create", "--name", "alive", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitRunning("alive", 1, time.Minute)
	expelled := strings.TrimSpace(c.skep("node", "inspect", "--format", "{{.ID}}", "w2"))
	c.kill9("w2", "skep", true)
	// The manager's log has a line for every pass that retired something, with how many are left.
	passes := func() []string {
		out := c.on("m1", "sh", "-c", `grep 'bucket compacted' /var/lib/skep/skep.log | grep '"spec"'; true`).Stdout
		return strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
	}
	before := len(passes())
	c.skep("node", "rm", "--force", "w2")
	c.await("the deletions are retired", 30*time.Second, func() string {
		now := append([]string{""}, passes()...)
		if last := now[len(now)-1]; len(now)-1 <= before || !regexp.MustCompile(`"markers": ?0\b`).MatchString(last) {
			return "the last pass says: " + last
		}
		return ""
	})
	c.skep("service", "scale", "alive=2")
	for range 2 {
		c.kill9("m1", "skep", true)
		if err := c.StartDaemon(c.ctx, "m1"); err != nil {
			t.Fatal(err)
		}
		c.awaitAPI(time.Minute)
		c.awaitRunning("alive", 2, time.Minute)
		for _, look := range []struct{ what, is string }{
			{"services", c.skep("service", "ls", "--format", "{{.Name}}")},
			{"networks", c.skep("network", "ls", "--format", "{{.Name}}")},
			{"nodes", c.skep("node", "ls", "--format", "{{.ID}}")},
		} {
			for _, gone := range []string{"ghost", "ghostnet", expelled} {
				if strings.Contains(look.is, gone) {
					t.Errorf("%s after a crash of the manager: %s is back", look.what, gone)
				}
			}
		}
	}
	c.skep("service", "create", "--name", "ghost", "-p", "8080:80", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
}
