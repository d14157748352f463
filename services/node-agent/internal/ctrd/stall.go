package ctrd

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// pullPatience is how long a registry may send nothing before a pull fails. What came stays, and the next pull goes on there.
const pullPatience = 2 * time.Minute

var errStalled = errors.New("has sent nothing")

// stall watches whether a pull gets on. Unpacking is not the registry's affair and takes what it takes.
type stall struct {
	patience time.Duration
	since    time.Time // of the last step
	bytes    int64     // received of what is under way
	parts    int       // that are known of
}

// look takes in what a pull has, and tells whether it is to be given up. waits: the registry owes it something.
func (s *stall) look(now time.Time, bytes int64, parts int, waits bool) bool {
	if s.since.IsZero() || !waits || bytes != s.bytes || parts != s.parts {
		s.since, s.bytes, s.parts = now, bytes, parts
		return false
	}
	return now.Sub(s.since) >= s.patience
}

// stalled is the end of a pull of p that got nothing for so long.
func stalled(p parsed, patience time.Duration) error {
	host, _, _ := strings.Cut(p.name(), "/")
	return fmt.Errorf("image %s: its registry %s %w for %s", p.familiar(), host, errStalled, patience)
}
