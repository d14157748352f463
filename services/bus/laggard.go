package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// stuckFor is how long a replica may come no nearer to its leader while its server is there.
const stuckFor = 5 * time.Second

// laggards notices replicas that come no nearer to their leaders.
//
// nats-server 2.15.2 was seen to take a new replica for a number of messages behind, and for one more with every write, that had
// every message: its leader did not get the replica's answers. Whoever waits for that replica waits for ever. A leader that
// is elected anew asks it what it has.
type laggards struct {
	now   func() time.Time
	leave string             // a server that is to leave: nobody waits for what it has
	seen  map[string]laggard // by stream and server
}

type laggard struct {
	lag   uint64    // the least so far
	since time.Time // when it was that first, or was told of
	told  int
}

func newLaggards(leave string) *laggards {
	return &laggards{now: time.Now, leave: leave, seen: map[string]laggard{}}
}

// stuck returns the server of a replica of the stream that has come no nearer for stuckFor, "" when there is none. It is
// told once, and again after twice as long each time.
func (l *laggards) stuck(s *jetstream.StreamInfo) string {
	for _, r := range s.Cluster.Replicas {
		key, now := s.Config.Name+" "+r.Name, l.now()
		was, known := l.seen[key]
		switch {
		case r.Current || r.Offline || r.Name == l.leave:
			delete(l.seen, key)
		case !known || r.Lag < was.lag:
			l.seen[key] = laggard{lag: r.Lag, since: now}
		case now.Sub(was.since) >= stuckFor<<was.told:
			l.seen[key] = laggard{lag: was.lag, since: now, told: was.told + 1}
			return r.Name
		}
	}
	return ""
}

// push has the stream elect a leader anew when one of its replicas is stuck.
func (b *Bus) push(ctx context.Context, nc *nats.Conn, l *laggards, s *jetstream.StreamInfo) {
	if s.Cluster == nil || s.Cluster.Leader == "" {
		return
	}
	on := l.stuck(s)
	if on == "" {
		return
	}
	err := request(ctx, nc, fmt.Sprintf(server.JSApiStreamLeaderStepDownT, s.Config.Name), nil)
	b.log.Warn("a replica of a stream comes no nearer to its leader, which is to be elected anew", zap.String("stream", s.Config.Name),
		zap.String("replica", on), zap.String("leader", s.Cluster.Leader), zap.Error(err))
}
