package health

import (
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
)

const (
	// maxWord bounds a heartbeat, and a report of blocked peers, of a node: forty peers with their names are 8 KiB.
	maxWord = 16 << 10
	// mostWords is how many of either a node gets heard in a second; it says one, or a few when it starts.
	mostWords = 100
	// scoldEvery is how often a node that says more is named in the log.
	scoldEvery = time.Hour
)

// gate is what stands between one kind of the nodes' words and the loop, so that one node's flood does not drown the
// others' words. It is used by one goroutine, that of its subscription.
type gate struct {
	what  string
	log   *zap.Logger
	out   chan *nats.Msg
	lost  atomic.Uint64 // words of nodes that kept the measure, for want of room
	since time.Time
	heard map[string]int // in the second since then
	told  map[string]time.Time
}

func newGate(what string, log *zap.Logger, room int) *gate {
	return &gate{what: what, log: log, out: make(chan *nats.Msg, room), heard: map[string]int{}, told: map[string]time.Time{}}
}

// take hands a word on, or drops it.
func (g *gate) take(m *nats.Msg, now time.Time) {
	if now.Sub(g.since) >= time.Second {
		g.since = now
		clear(g.heard)
	}
	node := lastToken(m.Subject) // as the broker let it publish
	g.heard[node]++
	if g.heard[node] > mostWords || len(m.Data) > maxWord {
		if now.Sub(g.told[node]) > scoldEvery {
			if len(g.told) > 1000 {
				clear(g.told)
			}
			g.told[node] = now
			g.log.Warn("a node says too much, the rest of it is not heard: is it one of yours? `skep node rm` takes its certificate's rights",
				zap.String("node", node), zap.String("what", g.what), zap.Int("this second", g.heard[node]), zap.Int("bytes", len(m.Data)))
		}
		return
	}
	select {
	case g.out <- m:
	default:
		g.lost.Add(1)
	}
}

// open subscribes; what comes is in out.
func (g *gate) open(nc *nats.Conn, subject string) (*nats.Subscription, error) {
	return nc.Subscribe(subject, func(m *nats.Msg) { g.take(m, time.Now()) })
}
