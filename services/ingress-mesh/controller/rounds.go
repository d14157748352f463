package controller

import (
	"context"
	"sync/atomic"
)

// rounds is work that many may want at the same time: whoever comes while a round is under way waits for the next one,
// which does for all of them. So a flood of requests costs one round after the other.
type rounds struct {
	turn  chan struct{} // of one: held by who does a round
	begun atomic.Uint64
	last  error // of the newest round; for who holds the turn
}

func newRounds() *rounds { return &rounds{turn: make(chan struct{}, 1)} }

// share returns when a round that began after the call has ended well, its caller's or another's; otherwise with the
// error of the caller's round, or of ctx.
func (r *rounds) share(ctx context.Context, round func(context.Context) error) error {
	came := r.begun.Load()
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-r.turn }()
	if r.begun.Load() > came && r.last == nil {
		return nil
	}
	r.begun.Add(1)
	r.last = round(ctx)
	return r.last
}
