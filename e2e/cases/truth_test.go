package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// What every node rejects: one attempt a delay, which ls, ps and explain tell with count, time and reason, and a wait that
// ends. What only some nodes lack settles on another.
func TestRejectedTasks(t *testing.T) {
	c := up(t, lab.Options{})
	began := time.Now()
	r := c.on("m1", "skep", "service", "create", "--name", "bad", "--no-resolve-image", "--restart-delay", "1s", "nosuchimage:v9")
	if r.Code != 1 || !strings.Contains(r.Stderr, "rejected") || !strings.Contains(r.Stderr, "in a row") || !strings.Contains(r.Stderr, "nosuchimage:v9") {
		t.Errorf("the wait ended with %d:\n%s", r.Code, r.Stderr)
	}
	t.Logf("the wait ended after %s:\n%s", time.Since(began), r.Stderr)
	for _, cmd := range []string{"ls", "ps bad", "explain bad"} {
		c.await("service "+cmd+" tells count, time and reason", time.Minute, func() string {
			out := c.skep(append([]string{"service"}, strings.Fields(cmd)...)...)
			if !strings.Contains(out, "in a row") || !strings.Contains(out, " in ") || !strings.Contains(out, "nosuchimage") {
				return out
			}
			t.Logf("service %s:\n%s", cmd, out)
			return ""
		})
	}
	// As many attempts as failures, history aside: none is spent while the delay runs.
	waiting, rejected := 0, 0
	for _, x := range c.tasks("bad") {
		switch {
		case strings.HasPrefix(x.State, "Rejected"):
			rejected++
		default:
			waiting++
		}
	}
	if waiting > 1 || rejected > 5 {
		t.Errorf("%d wait and %d were rejected:\n%s", waiting, rejected, c.skep("service", "ps", "bad"))
	}
	c.must("w2", "mkdir -p /srv/only-here")
	c.skep("service", "create", "--name", "one", "--restart-delay", "1s", "--mount", "type=bind,src=/srv/only-here,dst=/data", "whoami:v1")
	c.awaitRunning("one", 1, time.Minute, "m1", "w1")
	c.skep("service", "rm", "bad", "one")
}

// What a node says of itself when it was removed, or is cut off; and what is asked of one that is down.
func TestInfoTellsTheTruth(t *testing.T) {
	c := up(t, lab.Options{})
	info := func(host, want string) {
		t.Helper()
		c.await(host+" says "+want, time.Minute, func() string {
			if out := c.on(host, "skep", "info").Stdout; !strings.Contains(out, "State: "+want) {
				return out
			}
			return ""
		})
		t.Logf("%s", c.on(host, "skep", "info").Stdout)
	}
	info("m1", "ready\n")
	info("w1", "ready\n")
	if err := c.Cut(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	info("w1", "cut off: ")
	if err := c.Heal(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	info("w1", "ready\n")
	c.skep("node", "rm", "--force", "w1")
	info("w1", "refused: ")
	if err := c.Kill(c.ctx, "w2"); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("w2", "Down", time.Minute)
	for _, args := range []string{"image ls --node w2", "volume ls --node w2"} {
		began := time.Now()
		if r := c.on("m1", append([]string{"skep"}, strings.Fields(args)...)...); r.Code == 0 || !strings.Contains(r.Stderr, "node w2") {
			t.Errorf("%s: %d %s", args, r.Code, r.Stderr)
		} else {
			t.Logf("%s: after %s: %s", args, time.Since(began), r.Stderr)
		}
	}
}
