package lease

import (
	"errors"
	"testing"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

// A fence that moves ends what was conditional on it, and goes back to nobody of an earlier epoch.
func TestFence(t *testing.T) {
	n := kvtest.Server(t)
	b := kv.Open(n.JS(t), subject.Task)
	move := func(holder string, epoch uint64) uint64 {
		t.Helper()
		rev, err := MoveFence(t.Context(), b, "fence", holder, epoch)
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	first := move("a", 3)
	second := move("b", 4)
	if _, err := b.Update(t.Context(), "fence", nil, first); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("a write over a's fence: %v", err)
	}
	if _, err := MoveFence(t.Context(), b, "fence", "a", 3); !errors.Is(err, ErrDeposed) {
		t.Errorf("a takes it back: %v", err)
	}
	if again := move("b", 4); again <= second {
		t.Error("its own holder cannot move it again")
	}
}
