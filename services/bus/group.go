package bus

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// beatEvery is how often a broker says that it is there, heardFor how long that holds.
	beatEvery = time.Second
	heardFor  = 4 * time.Second
)

// group is this manager's part in the group of managers. What is known of it comes from node/managers (the set), from the
// beats of the others and, for a start without a quorum, from group.json.
type group struct {
	b   *Bus
	log *zap.Logger

	over chan struct{} // closed when the group has let this node go: see end
	wake chan struct{} // something changed that the leader of the group may act on

	mu    sync.Mutex
	mine  *Place
	set   *skepv1.ManagerSet
	rev   uint64 // of set
	beats map[string]heard
	end   error

	session string // of this start: it tells two machines with one identity apart
	boss    *nats.Conn
	doubled map[string]time.Time // by node and address: when a second machine was told of

	witness sync.Mutex // one change of the witness at a time

	toldFull time.Time // when it was last said that the store has stopped (here's goroutine)

	stepped func() error // tests: called after each step
}

// heard is the last beat of a server.
type heard struct {
	*skepv1.ManagerBeat
	at time.Time
}

func newGroup(b *Bus) *group {
	return &group{b: b, log: b.log.Named("group"), over: make(chan struct{}), wake: make(chan struct{}, 1), beats: map[string]heard{}, set: &skepv1.ManagerSet{}, session: id.New(), doubled: map[string]time.Time{}}
}

// Names of servers: <node>-<number>, of witnesses <node>-w<number>. A node's numbers only grow, over both.
func serverName(node string, n uint32) string  { return fmt.Sprintf("%s-%d", node, n) }
func witnessName(node string, n uint32) string { return fmt.Sprintf("%s-w%d", node, n) }

// numberOf is the number in the name of a node's server or witness, 0 for that of an older version's server.
func numberOf(name, node string) int {
	rest, ok := strings.CutPrefix(name, node+"-")
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimPrefix(rest, "w"))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// begin takes the place this start goes by.
func (g *group) begin(p *Place) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mine, g.set, g.rev = p, p.set(), p.Revision
}

// nudge has the leader of the group look.
func (g *group) nudge() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// follow keeps the set as it is in the store.
func (g *group) follow(ctx context.Context, feed func(apply func(kv.Delta)) *kv.Feed) *kv.Feed {
	return feed(func(d kv.Delta) {
		for _, e := range d.Entries {
			if e.Key != keys.Managers.Key() || e.Deleted {
				continue
			}
			set := &skepv1.ManagerSet{}
			if err := proto.Unmarshal(e.Value, set); err != nil {
				g.log.Error("the group of managers is unreadable", zap.Uint64("rev", e.Revision), zap.Error(err))
				continue
			}
			g.learn(ctx, set, e.Revision)
		}
	})
}

// learn takes a set that was read from the store: group.json follows it, the witness follows it, and this node ends with it.
func (g *group) learn(ctx context.Context, set *skepv1.ManagerSet, rev uint64) {
	g.mu.Lock()
	if rev < g.rev {
		g.mu.Unlock()
		return
	}
	g.set, g.rev = set, rev
	changed := g.mine.follow(set, rev)
	place := *g.mine
	if changed && g.end == nil {
		if err := place.Write(g.b.cfg.DataDir); err != nil {
			g.log.Error("group.json is not up to date: a restart without a quorum goes by an older one", zap.Error(err))
		}
	}
	g.mu.Unlock()
	if memberOf(set, place.Server) == nil {
		switch {
		case set.GetEpoch() > place.Epoch:
			g.finish(ErrOver)
		case gone(set, g.b.cfg.NodeID, place.Server):
			g.finish(ErrRetired)
		}
	}
	g.nudge()
	go g.tend(ctx)
}

// finish ends Run with err, once what is answered now has been answered.
func (g *group) finish(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.end == nil {
		g.end = err
		close(g.over)
	}
}

// left is what Run returns: the server has ended.
func (g *group) left(err error) error {
	g.mu.Lock()
	end := g.end
	g.mu.Unlock()
	switch end {
	case nil:
		return err
	case ErrRetired:
		if werr := wipe(g.b.cfg.DataDir); werr != nil {
			return fmt.Errorf("%w, but for: %w", ErrRetired, werr)
		}
		g.log.Info("this node is no manager any more: its broker left the group, its store was removed", zap.String("server", g.mine.Server))
	}
	return end
}

// known is the group as it was last known, and the revision of that.
func (g *group) known() (*skepv1.ManagerSet, uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.set, g.rev
}

// me is the name of this manager's server.
func (g *group) me() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mine.Server
}

// here tells the others every second that this broker is there, until ctx ends.
func (g *group) here(ctx context.Context, nc *nats.Conn) {
	t := time.NewTicker(beatEvery)
	defer t.Stop()
	for {
		g.storeStopped()
		if body, err := proto.Marshal(g.beat()); err == nil {
			m := nats.NewMsg(subject.ManagerBeat(g.b.cfg.NodeID))
			m.Data = body
			m.Header.Set(rpc.HeaderContentType, rpc.TypeProto)
			if err := nc.PublishMsg(m); err != nil {
				g.log.Debug("beat", zap.Error(err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (g *group) beat() *skepv1.ManagerBeat {
	cfg := &g.b.cfg
	g.mu.Lock()
	server, epoch := g.mine.Server, g.mine.Epoch
	g.mu.Unlock()
	leader, _ := g.b.metaLeader()
	return &skepv1.ManagerBeat{
		NodeId: cfg.NodeID, Server: server, Version: cfg.Version, Hostname: cfg.Hostname, Addr: cfg.Advertise, Route: cfg.RouteAddr(),
		Epoch: epoch, UnixMs: time.Now().UnixMilli(), Led: leader != "", Leader: leader != "" && (leader == server || leader == g.b.witnessName()),
	}
}

// hear takes a beat of a manager, this one's own too. Only managers may publish there.
func (g *group) hear(m *nats.Msg) {
	b := &skepv1.ManagerBeat{}
	if err := proto.Unmarshal(m.Data, b); err != nil || b.GetServer() == "" || m.Subject != subject.ManagerBeat(b.GetNodeId()) {
		return
	}
	now := time.Now()
	g.mu.Lock()
	was, again := g.beats[b.GetServer()]
	g.beats[b.GetServer()] = heard{b, now}
	news := !again || now.Sub(was.at) > heardFor || was.GetAddr() != b.GetAddr()
	for s, h := range g.beats {
		if now.Sub(h.at) > time.Hour {
			delete(g.beats, s)
		}
	}
	g.mu.Unlock()
	if news {
		g.nudge()
	}
}

// heardOf are the last beats by server.
func (g *group) heardOf() map[string]heard {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make(map[string]heard, len(g.beats))
	for s, h := range g.beats {
		out[s] = h
	}
	return out
}
