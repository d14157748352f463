package bus

import (
	"context"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"
)

const (
	// lookEvery is how often the broker's connections are looked at; a deaf one on this machine takes 12 MB a second.
	lookEvery = 100 * time.Millisecond
	// lookShare bounds what looking costs: with thousands of connections it is done as much less often as it takes longer.
	lookShare = 50
)

// watch cuts off identities that take too much, until ctx ends. nats-server bounds what a connection takes, with the same
// numbers for all; it has no bound for an identity with many.
func (b *Bus) watch(ctx context.Context, main *instance) {
	pause := time.NewTimer(lookEvery)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		began := time.Now()
		b.look(main, began)
		pause.Reset(max(lookEvery, lookShare*time.Since(began)))
	}
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
