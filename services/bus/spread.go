package bus

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/subject"
)

// After a restart of a manager all nodes hang on the others, and stay there: a connection has no reason to move. So a broker
// that has clearly more than its share of them, for a while, ends a few idle ones at a time. A node connects to another
// manager within milliseconds (libs/dial) and repairs what it missed by asking.
//
// A broker that has had no leader for long is cut off from the others, perhaps, and its nodes are not: it lets them try
// elsewhere, each once in a while. With them their heartbeats reach the managers that decide.
const (
	spreadEvery = time.Second
	// spreadAfter is how long a broker has had too many.
	spreadAfter = 30 * time.Second
	// spreadAtOnce bounds how many connections end in a second. Each costs the next broker a handshake, 1 ms.
	spreadAtOnce = 10
	// spreadAge is how old a connection is before it is moved: what just came here does not go on.
	spreadAge = time.Minute
	// cutOffAfter outlasts an election.
	cutOffAfter = 12 * time.Second
	// countsKept is how long another broker's count holds.
	countsKept = 5 * time.Second
)

// nodeCounts is where brokers tell one another, in the system account, how many nodes' connections they have.
const nodeCounts = "skep.nodes"

type nodeCount struct {
	Server string `json:"server"`
	Nodes  int    `json:"nodes"`

	at time.Time
}

// crowd decides how many connections a broker has too many. It is pure.
type crowd struct {
	after time.Duration // how long there must have been too many

	over  time.Time // since when there are clearly too many
	unled time.Time // since when there is no leader
	met   bool      // there are other brokers
}

// surplus is how many of mine to end in this round, when the other brokers have that many.
func (c *crowd) surplus(now time.Time, mine int, others []int, led bool) int {
	if led {
		c.unled = time.Time{}
	} else if c.unled.IsZero() {
		c.unled = now
	}
	c.met = c.met || len(others) > 0
	if c.met && !c.unled.IsZero() && now.Sub(c.unled) >= cutOffAfter {
		return min(mine, spreadAtOnce)
	}
	sum := mine
	for _, n := range others {
		sum += n
	}
	share := (sum + len(others)) / (len(others) + 1) // rounded up
	switch over := mine - share; {
	case len(others) == 0 || over <= 0:
		c.over = time.Time{}
		return 0
	case c.over.IsZero():
		if over <= max(3, share/5) {
			return 0
		}
		c.over = now
		return 0
	case now.Sub(c.over) < c.after:
		return 0
	default:
		// Begun, it goes on until this broker has its share: a part at a time, for the others see to theirs too.
		return min((over+1)/2, spreadAtOnce)
	}
}

// spreader is one broker's part in it.
type spreader struct {
	name  string
	nc    *nats.Conn // of the system account
	log   *zap.Logger
	after time.Duration
	led   func() bool
	// nodes are the connections of nodes, the oldest first.
	nodes func() []nodeConn
	idle  func(cid uint64) bool
	end   func(cid uint64)

	mu     sync.Mutex
	counts map[string]nodeCount
}

type nodeConn struct {
	cid   uint64
	since time.Time
}

// spread runs until ctx ends.
func (b *Bus) spread(ctx context.Context, main *instance, sys *nats.Conn) {
	s := &spreader{
		name: b.cfg.Name, nc: sys, log: b.log, led: b.led, end: b.kick, after: spreadAfter,
		nodes: func() []nodeConn { return b.guests.workers(b.alive) },
		idle:  func(cid uint64) bool { return idle(main.Server, cid) },
	}
	s.run(ctx, spreadEvery, spreadAge)
}

func (s *spreader) run(ctx context.Context, every, age time.Duration) {
	s.counts = map[string]nodeCount{}
	sub, err := s.nc.Subscribe(nodeCounts, s.heard)
	if err != nil {
		s.log.Warn("nodes are not spread over the managers", zap.Error(err))
		return
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection ends with the broker
	tick := time.NewTicker(every)
	defer tick.Stop()
	c := crowd{after: s.after}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		conns, now := s.nodes(), time.Now()
		s.tell(len(conns))
		s.move(conns, now.Add(-age), c.surplus(now, len(conns), s.others(now), s.led()))
	}
}

func (s *spreader) heard(m *nats.Msg) {
	var n nodeCount
	if json.Unmarshal(m.Data, &n) != nil || n.Nodes < 0 || n.Server == s.name {
		return
	}
	n.at = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[n.Server] = n
}

func (s *spreader) tell(n int) {
	body, err := json.Marshal(nodeCount{Server: s.name, Nodes: n})
	if err == nil {
		err = s.nc.Publish(nodeCounts, body)
	}
	if err != nil {
		s.log.Debug("tell how many nodes there are", zap.Error(err))
	}
}

// others is what the other brokers told lately.
func (s *spreader) others(now time.Time) (out []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, n := range s.counts {
		if now.Sub(n.at) > countsKept {
			delete(s.counts, name)
			continue
		}
		out = append(out, n.Nodes)
	}
	return out
}

// move ends n idle connections, the oldest ones, of those that began before.
func (s *spreader) move(conns []nodeConn, before time.Time, n int) {
	ended := 0
	for _, c := range conns {
		if ended == n || c.since.After(before) {
			break
		}
		if s.idle(c.cid) {
			s.end(c.cid)
			ended++
		}
	}
	if ended > 0 {
		s.log.Info("nodes move to other managers", zap.Int("connections", ended), zap.Int("of", len(conns)))
	}
}

// idle reports whether nothing that a reconnect would break goes over a connection: no byte stream, nothing that waits.
func idle(srv *server.Server, cid uint64) bool {
	z, err := srv.Connz(&server.ConnzOptions{CID: cid, Subscriptions: true})
	if err != nil || len(z.Conns) != 1 || z.Conns[0].Pending > 0 {
		return false
	}
	return !slices.ContainsFunc(z.Conns[0].Subs, func(s string) bool { return strings.HasPrefix(s, streams) })
}

// streams begins the subjects of byte streams.
var streams = strings.TrimSuffix(subject.IO("", "", ""), "...") + "."

// workers are the open connections of workers, the oldest first.
func (g *guests) workers(alive func(cid uint64) bool) (out []nodeConn) {
	g.mu.Lock()
	for _, x := range g.conns {
		if x.role == RoleWorker {
			out = append(out, nodeConn{x.cid, x.since})
		}
	}
	g.mu.Unlock()
	out = slices.DeleteFunc(out, func(c nodeConn) bool { return !alive(c.cid) })
	slices.SortFunc(out, func(a, b nodeConn) int { return a.since.Compare(b.since) })
	return out
}
