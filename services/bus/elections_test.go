package bus

import (
	"slices"
	"testing"
	"time"
)

// The variables that are set are those of nats-server: they held its documented values before.
func TestElectionsAreSet(t *testing.T) {
	want := []time.Duration{4 * time.Second, 9 * time.Second, time.Second, 10 * time.Second, 10 * time.Second}
	if !slices.Equal(theirs, want) {
		t.Errorf("nats-server had %v, want %v: its variables have other names or values now, look at raft.go", theirs, want)
	}
}
