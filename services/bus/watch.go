package bus

import (
	"context"
	"runtime/metrics"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"
)

const (
	// tick is how soon it is noticed that something waits; a deaf connection on this machine takes 12 MB in that time.
	tick = 100 * time.Millisecond
	// lookAfter and lookEvery: the broker's connections are looked at once the process has allocated so many bytes since the
	// last time, as it does when they wait for somebody, or so long ago. Asking the runtime costs a microsecond, looking at
	// 200 connections 0.8 ms.
	lookAfter = 4 << 20
	lookEvery = 5 * time.Second
	// lookShare bounds what looking costs under load: with thousands of connections it is done as much less often as it takes
	// longer, up to lookAtLeast. A single look on a busy machine may wait long for a lock: it must not blind the watch.
	lookShare   = 50
	lookAtLeast = time.Second
)

// watch cuts off identities that take too much, until ctx ends. nats-server bounds what a connection takes, with the same
// numbers for all; it has no bound for an identity with many.
func (b *Bus) watch(ctx context.Context, main *instance) {
	pause := time.NewTimer(tick)
	defer pause.Stop()
	last, allocs := time.Now(), allocated()
	var roots trusted
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		roots.sweep(b)
		wait := tick
		if began := time.Now(); allocated()-allocs >= lookAfter || began.Sub(last) >= lookEvery {
			b.look(main, began)
			last, allocs = began, allocated()
			wait = min(lookAtLeast, max(tick, lookShare*time.Since(began)))
		}
		pause.Reset(wait)
	}
}

// allocated is how many bytes this process has ever allocated.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

func (b *Bus) look(main *instance, now time.Time) {
	if conns, _, _ := b.guests.count(); conns == 0 {
		return
	}
	z, err := main.Connz(&server.ConnzOptions{State: server.ConnOpen, Limit: b.cfg.MaxConn})
	if err != nil {
		b.log.Debug("look at the connections", zap.Error(err))
		return
	}
	open := make([]weight, len(z.Conns))
	for i, c := range z.Conns {
		open[i] = weight{cid: c.Cid, pending: int64(c.Pending), subs: c.NumSubs}
	}
	for _, id := range b.guests.weigh(now, open) {
		b.slips.Warn("connection closed: it does not read what it asked for, or asks for too much", zap.String("node", id))
	}
}
