package state

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

const (
	// attempts and conflictPatience: it is given up when both are used up. Of many who write one object at a time one wins
	// each round.
	attempts         = 20
	conflictPatience = 10 * time.Second
	catchUpWait      = 250 * time.Millisecond
	// jitter keeps those who lost from all coming back at one time; it grows with every try, to its 20-fold.
	jitter = 2 * time.Millisecond
)

// retry runs attempt, which looks at the index and writes, until it does not meet a conflict. Between attempts the
// index gets the time to show what we ran into.
func (s *Service) retry(ctx context.Context, attempt func() error) error {
	began := time.Now()
	for i := 0; ; i++ {
		changed := s.ix.Changed()
		err := attempt()
		if !errors.Is(err, kv.ErrConflict) {
			return err
		}
		if i >= attempts && time.Since(began) > conflictPatience {
			return fault.Unavailable("too many changes at the same time: try again (%v)", err)
		}
		wait := time.NewTimer(catchUpWait)
		select {
		case <-changed:
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		}
		wait.Stop()
		wait.Reset(rand.N(jitter * time.Duration(min(i+1, attempts))))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		}
		if i > 0 {
			// A picture that stands still would meet the same conflict again and again: its watcher is looked after.
			for _, b := range []subject.Bucket{subject.Spec, subject.Rev} {
				catchUp(ctx, s.feeds.Of(b))
			}
		}
	}
}

// seen waits until the index shows a write of ours.
func seen(ctx context.Context, f *kv.Feed, rev uint64) error {
	if err := f.Wait(ctx, rev); err != nil {
		return fault.Unavailable("the change is stored but this manager has not caught up with it: look again (%v)", err)
	}
	return nil
}
