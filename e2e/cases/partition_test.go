package cases

import (
	"testing"
	"time"

	"skep.dev/e2e/lab"
	"skep.dev/libs/partition"
	"skep.dev/libs/spec"
)

// A task of a service with --on-partition stop is never there twice: its node, cut off, ends it before another is begun. One
// of another service goes on there.
func TestOnPartitionStop(t *testing.T) {
	t.Parallel()
	const grace = 2 * time.Second
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "keeps", "--constraint", "node.hostname==w1", "busybox", "sleep", "100000")
	c.skep("service", "create", "--name", "stops", "--on-partition", "stop", "--stop-grace-period", "2s", "--constraint", "node.role==worker",
		"--placement-pref", "spread=node.hostname", "busybox", "sleep", "200000")
	home := c.sole("stops")
	works := func(host string) bool { // by its containerd
		n := c.containers(host)
		if host == "w1" {
			n-- // what is kept
		}
		return n > 0
	}
	began := time.Now()
	if err := c.Cut(c.ctx, home); err != nil {
		t.Fatal(err)
	}
	var ended, begun time.Duration
	for begun == 0 {
		if time.Since(began) > 3*time.Minute {
			t.Fatalf("nothing took its place; it ended after %s", ended)
		}
		var at []string
		for _, host := range []string{"m1", "w1", "w2"} {
			if works(host) {
				at = append(at, host)
			}
		}
		switch {
		case len(at) > 1:
			t.Fatalf("after %s it runs on %v", time.Since(began), at)
		case len(at) == 0 && ended == 0:
			ended = time.Since(began)
		case len(at) == 1 && at[0] != home:
			begun = time.Since(began)
		}
		time.Sleep(100 * time.Millisecond) // the hosts are looked at, not waited for
	}
	if least := partition.Hold(spec.DefaultHeartbeat, grace); ended == 0 || begun < least {
		t.Errorf("ended after %s, begun elsewhere after %s, at least %s", ended, begun, least)
	}
	t.Logf("ended after %s, begun elsewhere after %s", ended, begun)
	if home == "w1" && c.containers("w1") != 1 {
		t.Error("what was to be kept has ended")
	}
	if err := c.Heal(c.ctx, home); err != nil {
		t.Fatal(err)
	}
	c.awaitNode(home, "Ready", time.Minute)
	c.awaitContainers(2, time.Minute, c.members()...) // keeps may have been begun anew on w1
	if c.sole("stops") == home {
		t.Errorf("it wakes on %s", home)
	}
}
