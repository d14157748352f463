package mesh

import (
	"fmt"
	"slices"
	"testing"
)

// Every network has its turn within ten heals, and few tasks are all looked at in each.
func TestTurns(t *testing.T) {
	for _, c := range []struct{ networks, tasks, heals int }{
		{0, 5, 1}, {1, 1000, 1}, {6, 10, 1}, {7, 10, 1}, {100, 10, 10}, {3, 64, 3}, {1000, 0, 1}, {25, 64, 9},
	} {
		var ids []string
		for i := range c.networks {
			ids = append(ids, fmt.Sprintf("n%04d", i))
		}
		var turn turn
		seen := map[string]bool{}
		for range c.heals {
			for id := range turn.next(ids, func(string) int { return c.tasks }) {
				seen[id] = true
			}
		}
		if len(seen) != c.networks {
			t.Errorf("%d networks of %d tasks: %d had their turn in %d heals", c.networks, c.tasks, len(seen), c.heals)
		}
	}
	// A network that is gone does not hold the turn up.
	turn := turn{last: "b"}
	if got := turn.next([]string{"a", "c"}, func(string) int { return healTasks }); !got["c"] || len(got) != 1 {
		t.Errorf("after b comes %v", got)
	}
}

// Who is on a network follows what is known of the tasks.
func TestTasksByNetwork(t *testing.T) {
	s, err := New(Config{DataDir: t.TempDir(), RunDir: t.TempDir(), NodeID: "n1", Subnet: "100.64.4.0/23", Number: 2, Underlay: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	on := func(task string, networks ...string) {
		rec := record{Task: task}
		for _, n := range networks {
			rec.Networks = append(rec.Networks, membership{Network: n})
		}
		s.setLive(rec)
	}
	on("b", "x", "y")
	on("a", "x")
	on("b", "y", "z") // anew, without x
	want := map[string][]string{"x": {"a"}, "y": {"b"}, "z": {"b"}}
	for _, after := range []string{"", "b"} {
		if after != "" {
			s.forget(after)
			want = map[string][]string{"x": {"a"}}
		}
		for _, n := range []string{"x", "y", "z"} {
			var got []string
			for _, r := range s.tasksOn(n) {
				got = append(got, r.Task)
			}
			if !slices.Equal(got, want[n]) || s.tasksCount(n) != len(got) {
				t.Errorf("after %q network %s has %v, want %v", after, n, got, want[n])
			}
		}
	}
}
