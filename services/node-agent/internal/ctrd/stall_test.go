package ctrd

import (
	"strings"
	"testing"
	"time"
)

// A pull is given up when its registry owes it something and sends nothing for long, and for nothing else.
func TestStall(t *testing.T) {
	at := time.UnixMilli(0)
	s := stall{patience: 2 * time.Minute}
	look := func(after time.Duration, bytes int64, parts int, waits, want bool) {
		t.Helper()
		at = at.Add(after)
		if got := s.look(at, bytes, parts, waits); got != want {
			t.Errorf("at %s: %v, want %v", at.Sub(time.UnixMilli(0)), got, want)
		}
	}
	look(0, 0, 0, true, false)
	look(119*time.Second, 0, 0, true, false)
	look(0, 0, 3, true, false) // the manifest came
	look(119*time.Second, 1, 3, true, false)
	look(119*time.Second, 1, 3, true, false)
	look(time.Second, 1, 3, false, false) // all is here, it unpacks
	look(time.Hour, 1, 3, false, false)
	look(time.Second, 1, 3, true, false)
	look(2*time.Minute, 1, 3, true, true)

	p, err := parseRef("registry.example.com:5000/team/web:9")
	if err != nil {
		t.Fatal(err)
	}
	if text := stalled(p, pullPatience).Error(); !strings.Contains(text, "registry.example.com:5000 has sent nothing for 2m0s") || !strings.Contains(text, "team/web:9") {
		t.Error(text)
	}
}
