package limit

import (
	"fmt"
	"testing"
	"time"
)

func TestEachKeyHasItsOwn(t *testing.T) {
	p, now := New(2, 3), time.Unix(1000, 0)
	took := func(key string) (n int) {
		for p.Allow(key, now) {
			n++
		}
		return n
	}
	if p.Spent("a", now) {
		t.Error("spent before it began")
	}
	if a := took("a"); a != 3 || !p.Spent("a", now) || p.Spent("b", now) {
		t.Errorf("%d at once", a)
	}
	if b := took("b"); b != 3 {
		t.Errorf("the other key: %d", b)
	}
	now = now.Add(time.Second)
	if a := took("a"); a != 2 {
		t.Errorf("a second later: %d", a)
	}
}

// What is remembered of keys that are rested is bounded, and one that is not is not forgiven.
func TestRestedKeysAreForgotten(t *testing.T) {
	p, now := New(100, 1), time.Unix(1000, 0)
	for i := range 3 * kept {
		now = now.Add(time.Millisecond)
		p.Allow(fmt.Sprint(i), now)
		if len(p.all) > kept+1 {
			t.Fatalf("%d keys are remembered", len(p.all))
		}
	}
	if last := fmt.Sprint(3*kept - 1); p.Allow(last, now) {
		t.Error("a key that was used up may go on")
	}
}
