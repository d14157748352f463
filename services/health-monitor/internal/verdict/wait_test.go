package verdict

import (
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// After a restore a node that was not heard yet is waited for; one that was heard and falls silent is down, as ever.
func TestRestoredNodesAreWaitedFor(t *testing.T) {
	now := time.Unix(1e9, 0)
	c := New(Config{}, now)
	c.Wait(true, now)
	for _, id := range []string{"a", "b", "c"} {
		c.Admit(id, &skepv1.NodeLive{State: ready, SinceUnixMs: now.UnixMilli()}, now)
	}
	for range 600 {
		now = now.Add(500 * time.Millisecond)
		c.Beat("a", "s", false, now)
		c.Tick(now)
	}
	if c.Live("a").State != ready || c.Live("b").State != unknown || c.Live("c").State != unknown {
		t.Fatal(c.Live("a"), c.Live("b"), c.Live("c"))
	}
	c.Beat("b", "s", false, now)
	for range 10 {
		now = now.Add(500 * time.Millisecond)
		c.Beat("a", "s", false, now)
		c.Tick(now)
	}
	if c.Live("b").State != down || c.Live("c").State != unknown {
		t.Fatal(c.Live("b"), c.Live("c"))
	}
	c.Wait(false, now)
	for range 40 {
		now = now.Add(500 * time.Millisecond)
		c.Beat("a", "s", false, now)
		c.Tick(now)
	}
	if c.Live("a").State != ready || c.Live("c").State != down {
		t.Fatal(c.Live("a"), c.Live("c"))
	}
}
