package vault

import (
	"context"
	"time"
)

// ledgerWithin is how long the ledger of a change may take after the record it belongs to.
const ledgerWithin = 2 * time.Second

// whole locks the index at a moment at which no change is half read: its record and the ledger that knows it are written in one
// batch, the ledger last, and are read one after the other. Between the two a good record looks like one that was put
// back. What has no ledger after a while was not written by a vault, and is taken as it is. The caller unlocks.
func (s *Service) whole(ctx context.Context) {
	for {
		s.idx.mu.Lock()
		x := &s.idx.objects
		if x.newest <= max(x.ledgerRevision, x.alone) {
			return
		}
		newest := x.newest
		s.idx.mu.Unlock()
		wait, cancel := context.WithTimeout(ctx, ledgerWithin)
		err := s.feed.Wait(wait, newest+1)
		cancel()
		if err == nil {
			// What came next was read, the ledger or not.
			s.idx.mu.Lock()
			if x.newest == newest && x.ledgerRevision < newest {
				x.alone = newest
			}
			s.idx.mu.Unlock()
			continue
		}
		s.idx.mu.Lock()
		if x.newest == newest && ctx.Err() == nil {
			x.alone = newest
		}
		return
	}
}
