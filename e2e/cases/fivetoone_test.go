package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// copies is what doctor says of the streams and their copies.
func (c *cluster) copies() string {
	c.t.Helper()
	r := c.on("m1", "sh", "-c", `skep doctor --format '{{.Check}} {{.Text}}' | grep '^streams '`)
	return strings.TrimSpace(r.Stdout)
}

// One manager grows to five by a join and promotions, and shrinks to one by demotions, leaving and removal, while writes go on at
// m1: copies follow, nothing acknowledged is lost, and `node ls` is right at each step.
func TestFiveManagersToOne(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 4})
	w := c.writes("five", "m1")
	token := c.skep("join-token", "-q", "manager")
	step := func(what string, copies int, managers ...string) {
		t.Helper()
		took := c.awaitManagers(2*time.Minute, managers...)
		all := c.await(fmt.Sprintf("%s: %d copies of every stream", what, copies), 2*time.Minute, func() string {
			if out := c.copies(); !strings.HasSuffix(out, fmt.Sprintf("(%s each)", map[int]string{1: "1 copy", 3: "3 copies", 5: "5 copies"}[copies])) {
				return out
			}
			return ""
		})
		at := time.Now()
		c.await("a write after "+what, 30*time.Second, func() string {
			if w.since("m1", at) == 0 {
				return "none"
			}
			return ""
		})
		t.Logf("%s: node ls right after %.1f s, copies after %.1f s more", what, took.Seconds(), all.Seconds())
	}
	h, err := c.Add(c.ctx) // w4
	if err != nil {
		t.Fatal(err)
	}
	step("one", 1, "m1")
	if err := c.Join(c.ctx, h, token); err != nil {
		t.Fatal(err)
	}
	step("a manager joins", 1, "m1", "w4")
	c.skep("node", "promote", "w1")
	step("w1 is promoted", 3, "m1", "w1", "w4")
	c.skep("node", "promote", "w2")
	step("w2 is promoted", 3, "m1", "w1", "w2", "w4")
	c.skep("node", "promote", "w3")
	step("w3 is promoted", 5, "m1", "w1", "w2", "w3", "w4")

	c.skep("node", "demote", "w3")
	step("w3 is demoted", 3, "m1", "w1", "w2", "w4")
	if r := c.on("w2", "skep", "leave", "--force"); r.Code != 0 {
		t.Fatalf("leave: %s%s", r.Stdout, r.Stderr)
	}
	step("w2 leaves", 3, "m1", "w1", "w4")
	c.awaitNode("w2", "Down", time.Minute)
	c.skep("node", "rm", "w2")
	c.skep("node", "demote", "w4")
	step("w4 is demoted", 1, "m1", "w1")
	// A change that is not through keeps the next one waiting: the copies of two managers are one a moment before the name is gone.
	c.await("managers that do not change", time.Minute, func() string {
		if r := c.on("m1", "skep", "node", "ls"); strings.Contains(r.Stderr, "are changing") {
			return r.Stderr
		}
		return ""
	})
	c.skep("node", "demote", "w1")
	step("w1 is demoted", 1, "m1")
	for host, state := range c.nodeStates() {
		if want := map[string]string{"m1": "Ready Active Leader", "w1": "Ready Active", "w3": "Ready Active", "w4": "Ready Active"}[host]; state != want {
			t.Errorf("%s is %q, want %q", host, state, want)
		}
	}
	n, pause := w.end("m1")
	t.Logf("%d writes, the longest pause %.1f s", n, pause.Seconds())
	if pause > 30*time.Second {
		t.Errorf("no write was acknowledged for %s", pause)
	}
	c.awaitNoError("m1", 2*time.Minute)
}
