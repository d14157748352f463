package lease

import (
	"testing"
	"time"
)

// A lease is over when its holder is neither heard nor renews; one that renews and is only not heard keeps it.
func TestIsOver(t *testing.T) {
	const ttl = 4 * time.Second
	for name, c := range map[string]struct {
		heard, seen time.Duration // ago; 0 = never
		revision    uint64
		over        bool
	}{
		"silent, and stands still":           {heard: 3500 * time.Millisecond, seen: 3 * time.Second, revision: 7, over: true},
		"heard a moment ago":                 {heard: time.Second, seen: 3 * time.Second, revision: 7},
		"silent, and seen a moment ago":      {heard: 10 * time.Second, seen: time.Second, revision: 7},
		"silent, and renewed since the look": {heard: 10 * time.Second, seen: 10 * time.Second, revision: 8},
		"never heard":                        {seen: time.Hour, revision: 7},
	} {
		l := New(nil, Config{Name: "x", TTL: ttl})
		l.seen = 7
		if c.seen > 0 {
			l.since = time.Now().Add(-c.seen)
		}
		if c.heard > 0 {
			l.heard.Store(time.Now().Add(-c.heard).UnixNano())
		}
		if got := l.isOver(c.revision); got != c.over {
			t.Errorf("%s: over %v, want %v", name, got, c.over)
		}
	}
}
