package kv

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// leaderElected begins the subjects on which the store says that a stream has a new leader.
const leaderElected = "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED."

// settled is how long after an election a write that was on its way may still be acknowledged: the old leader may have handed
// it on to the new one, which says so, and a new leader begins to listen a moment after it was elected.
const settled = 50 * time.Millisecond

// elections tells a bucket's writes that its stream has a new leader: what the old one had not come to is lost, without a word.
type elections struct {
	begin sync.Once
	mu    sync.Mutex
	next  chan struct{} // closed at the next one
}

// election is closed at the next one. The first call begins to listen, until the connection ends; a connection that cannot
// is told of none, and its writes look what became of them a little later.
func (b *Bucket) election() <-chan struct{} {
	e := &b.elections
	e.begin.Do(func() {
		e.next = make(chan struct{})
		_, _ = b.js.Conn().Subscribe(leaderElected+b.name.Stream(), func(*nats.Msg) { //nolint:errcheck // see above
			e.mu.Lock()
			defer e.mu.Unlock()
			close(e.next)
			e.next = make(chan struct{})
		})
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.next
}

// underOneLeader is ctx for one try of a write: it ends a moment after the stream has another leader, and after within, unless
// that is 0.
func (b *Bucket) underOneLeader(ctx context.Context, within time.Duration) (context.Context, context.CancelFunc) {
	elected := b.election()
	cancel := context.CancelFunc(func() {})
	if within > 0 {
		ctx, cancel = context.WithTimeout(ctx, within)
	}
	ctx, stop := context.WithCancel(ctx)
	go func() {
		select {
		case <-elected:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(settled):
			stop()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { stop(); cancel() }
}
