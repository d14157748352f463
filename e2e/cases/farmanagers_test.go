package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Managers that are far apart: 200 ms from each to the other, and of twenty frames one is lost. Writes go on, the leader stays,
// nobody is taken for dead, no task moves, and nothing is lost.
func TestManagersFarApart(t *testing.T) {
	c := up(t, lab.Options{Managers: 3, Hosts: 4})
	c.awaitSettled(3, 2*time.Minute)
	c.skep("service", "create", "--name", "web", "--replicas", "4", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitRunning("web", 4, time.Minute)
	before := ids(c.tasks("web"))
	managers := []string{"m1", "m2", "m3"}
	for _, m := range managers {
		// Both cables of a way have their half.
		if err := c.Impair(c.ctx, m, lab.Quality{Delay: 100 * time.Millisecond, Loss: 0.025}); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	w := c.writes("far", managers...)
	changes, seen := c.leaders("m1", 45*time.Second)
	c.skep("service", "scale", "--detach", "web=5")
	c.awaitRunning("web", 5, time.Minute)
	n, pause := w.end(managers...)
	t.Logf("in %.0f s %d writes, the longest pause %.1f s; led by %v", time.Since(began).Seconds(), n, pause.Seconds(), seen)
	if n < 30 {
		t.Errorf("%d writes were acknowledged", n)
	}
	if pause > 30*time.Second {
		t.Errorf("no write was acknowledged for %s", pause)
	}
	if changes > 4 {
		t.Errorf("another manager led %d times in 45 s: %v", changes, seen)
	}
	for _, m := range managers {
		if err := c.Repair(c.ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitLeader("m1", 3, time.Minute)
	for line := range strings.Lines(c.downs(began)) {
		if strings.Contains(line, "w1") { // a manager may be missed for a moment while the routes to it are made anew
			t.Errorf("a node was taken for dead: %s", line)
		}
	}
	c.skep("service", "scale", "web=4")
	c.awaitRunning("web", 4, time.Minute)
	if after := ids(c.tasks("web")); len(after) < len(before) {
		t.Errorf("tasks were replaced:\n%s\n%s", before, after)
	}
	c.awaitNoError("m1", 2*time.Minute)
}

// Of three managers one is heard by another and does not hear it; both hear the third. Somebody leads all the time or soon
// again, writes go on wherever they are made, and it heals by itself.
func TestHalfDeafManager(t *testing.T) {
	c := up(t, lab.Options{Managers: 3, Hosts: 4})
	managers := []string{"m1", "m2", "m3"}
	c.awaitSettled(3, 2*time.Minute)
	ip := map[string]string{"m1": "10.90.1.1", "m2": "10.90.1.2", "m3": "10.90.1.3"}
	c.skep("service", "create", "--name", "web", "--replicas", "4", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitRunning("web", 4, time.Minute)
	for _, v := range []struct {
		name    string
		leading bool // the one that turns deaf leads
	}{{"the leader turns deaf", true}, {"a follower turns deaf", false}} {
		t.Run(v.name, func(t *testing.T) {
			c := &cluster{c.Lab, t, c.ctx}
			leader := c.awaitLeader("m1", 3, time.Minute)
			var others []string
			for _, m := range managers {
				if m != leader {
					others = append(others, m)
				}
			}
			deaf, unheard, third := leader, others[0], others[1]
			if !v.leading {
				deaf, unheard = others[0], leader
			}
			began := time.Now()
			w := c.writes("deaf-"+slugOf(v.leading), managers...)
			c.must(deaf, "nft 'add table inet deaf; add chain inet deaf in { type filter hook prerouting priority -400; }; add rule inet deaf in iifname eth0 ip saddr "+ip[unheard]+" counter drop'")
			healed := false
			heal := func() {
				if !healed {
					healed = true
					c.must(deaf, "nft delete table inet deaf")
				}
			}
			defer heal()
			changes, seen := c.leaders(third, 40*time.Second)
			at := time.Now()
			c.await("writes at every manager", time.Minute, func() string {
				for _, m := range managers {
					if w.since(m, at) == 0 {
						return "none at " + m
					}
				}
				return ""
			})
			t.Logf("%s does not hear %s: led by %v, writes everywhere again %.1f s after 40 s", deaf, unheard, seen, time.Since(at).Seconds())
			if changes > 4 {
				t.Errorf("another manager led %d times in 40 s: %v", changes, seen)
			}
			heal()
			c.awaitLeader("m1", 3, time.Minute)
			n, pause := w.end(managers...)
			t.Logf("in %.0f s %d writes, the longest pause %.1f s", time.Since(began).Seconds(), n, pause.Seconds())
			if pause > 30*time.Second {
				t.Errorf("no write was acknowledged for %s", pause)
			}
			c.awaitRunning("web", 4, time.Minute)
			c.awaitContainers(4, time.Minute, c.members()...)
			c.awaitNoError("m1", 2*time.Minute)
		})
	}
}

func slugOf(leading bool) string {
	if leading {
		return "leader"
	}
	return "follower"
}
