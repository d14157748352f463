// Package health decides which nodes are alive and writes it down.
//
// It owns the keys live.* of the node bucket. Every instance listens to all heartbeats and keeps a verdict on every
// member (internal/verdict); only the one that holds the lease "health" writes, so a standby that takes over has
// heard everything already and has nothing to wait for.
//
// It also tells, as events, what probes say of tasks (probes.go). It keeps no verdict on them: the agent's report is the
// truth, and what becomes of an unhealthy task is the scheduler's decision.
//
// It refuses to judge by its own absence: while the bus is away nothing is decided, and after it everyone gets a
// grace. Strangers' heartbeats count for nothing.
//
// Failure story: if every instance stops, the verdicts stay as they are, and tasks with them. A deposed leader's late
// write meets a compare-and-set on the key's revision. Writes that fail are made again from the present verdicts.
package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/lease"
	"skep.dev/libs/life"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	"skep.dev/services/health-monitor/internal/verdict"
)

// Config is everything the service needs.
type Config struct {
	NC      *nats.Conn
	Log     *zap.Logger
	NodeID  string // the manager it runs on: holder of the lease
	Version string
	// LeaseTTL is how long a crashed leader blocks the standby (default lease.DefaultTTL).
	LeaseTTL time.Duration
	// Limits other than the heartbeat period, which the cluster object has; zero fields are the defaults.
	Limits Limits
	// Metrics is where the monitor shows what it sees, nil = nowhere.
	Metrics prometheus.Registerer
}

// Limits are the tolerances of the verdicts.
type Limits = verdict.Config

// beats is the room for heartbeats between the connection and the loop: 5,000 nodes for three seconds.
const beats = 16384

// Service is one instance.
type Service struct {
	*life.Span // ready once the instance knows the members and hears heartbeats

	cfg  Config
	log  *zap.Logger
	js   jetstream.JetStream
	live *kv.Bucket

	// Everything below belongs to the loop's goroutine.
	core    *verdict.Core
	period  time.Duration
	members map[string]string // id → name
	hosts   map[string]string // id → host name
	record  map[string]stored // what live.* holds
	dirty   map[string]bool   // verdicts that may differ from the record
	leading bool
	writing bool
	retryAt time.Time
	away    bool // the bus is not connected
	beats   uint64
	paths   map[string]path // by node: whom it does not reach
	clocks  clocks
	fences  fences

	pathLife, pathEvery, settles time.Duration // see the constants; tests have less patience
}

// stored is a record as the bucket has it.
type stored struct {
	live *skepv1.NodeLive
	rev  uint64
}

// New checks the configuration and starts nothing.
func New(cfg Config) (*Service, error) {
	js, err := kv.Store(cfg.NC, "health")
	if err != nil {
		return nil, err
	}
	if cfg.NodeID == "" {
		return nil, errors.New("health: a node id is needed")
	}
	cfg.Log = cmp.Or(cfg.Log, zap.NewNop())
	s := &Service{
		cfg: cfg, log: cfg.Log, js: js, live: kv.Open(js, subject.NodeB), Span: life.New(),
		members: map[string]string{}, hosts: map[string]string{}, record: map[string]stored{}, dirty: map[string]bool{}, paths: map[string]path{}, clocks: clocks{}, pathLife: pathLife, pathEvery: pathEvery, settles: settles,
	}
	s.fences.begin()
	return s, nil
}

// Run listens, and decides while it holds the lease, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ctx, cancel := s.Begin(ctx)
	var wg sync.WaitGroup
	var feeds kv.Feeds
	defer func() {
		cancel() // first: a feed may be waiting to hand something over
		feeds.Close()
		s.fences.running.Wait()
		wg.Wait()
	}()

	srv, err := rpc.NewServer(s.cfg.NC, rpc.Config{Name: "skep-health", Version: s.cfg.Version, Description: "node liveness", Log: s.log, Metrics: s.cfg.Metrics})
	if err != nil {
		return err
	}
	defer srv.Close()

	// The feeds' goroutines hand over what they see; the loop alone touches the state.
	do := make(chan func(), 64)
	hand := func(f func(kv.Delta)) func(kv.Delta) {
		return func(d kv.Delta) {
			select {
			case do <- func() { f(d) }:
			case <-ctx.Done():
			}
		}
	}
	s.core = verdict.New(s.cfg.Limits, time.Now())
	s.period = time.Second
	probes := newProbes(s)
	wg.Go(func() { probes.run(ctx) })
	for _, src := range []kv.Source{
		// Records first: a member is admitted with its recorded verdict.
		{Bucket: subject.NodeB, Apply: hand(s.applyNodes)},
		{Bucket: subject.Spec, Filter: keys.Cluster.Key(), Apply: hand(s.applyCluster)},
		{Bucket: subject.Spec, Filter: keys.Node.Key("*"), Apply: hand(s.applyMembers)},
		{Bucket: subject.Task, Filter: keys.Claim.Key("*"), Apply: hand(s.applyClaims)},
		// Not through the loop: thousands of reports must not hold up heartbeats.
		{Bucket: subject.Status, Apply: probes.apply},
	} {
		feed := kv.FollowAll(ctx, s.js, src)
		feeds = append(feeds, feed...)
		if err := s.drain(ctx, do, feed[0].Ready()); err != nil {
			return nil // ctx ended
		}
	}

	hb := newGate("heartbeats", s.log, beats)
	sub, err := hb.open(s.cfg.NC, subject.AllHeartbeats)
	if err != nil {
		return fmt.Errorf("subscribe to heartbeats: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // a closed connection has none left
	paths := newGate("reports of blocked peers", s.log, beats)
	heard, err := paths.open(s.cfg.NC, subject.Path("*"))
	if err != nil {
		return fmt.Errorf("subscribe to reports of blocked peers: %w", err)
	}
	defer func() { _ = heard.Unsubscribe() }()
	s.core.Restart(time.Now())
	if err := s.register(ctx, do); err != nil {
		return err
	}
	err = api.Handle(srv, api.HealthClocks, func(asked context.Context, r *skepv1.ClocksRequest) (*skepv1.ClocksReply, error) {
		return s.tellClocks(ctx, asked, do, r)
	})
	if err != nil {
		return err
	}
	s.Begun()

	l := lease.New(s.js, lease.Config{Name: "health", Holder: s.cfg.NodeID, TTL: s.cfg.LeaseTTL, Log: s.log})
	wg.Go(func() {
		_ = l.Run(ctx, func(lead context.Context, _ uint64) error {
			s.send(ctx, do, s.lead)
			probes.lead(true)
			<-lead.Done()
			probes.lead(false)
			s.send(ctx, do, func() { s.leading = false })
			return nil
		})
	})
	s.loop(ctx, do, hb, paths.out)
	return nil
}

func (s *Service) send(ctx context.Context, do chan func(), f func()) {
	select {
	case do <- f:
	case <-ctx.Done():
	}
}

// drain runs what the feeds hand over until one is ready.
func (s *Service) drain(ctx context.Context, do chan func(), until <-chan struct{}) error {
	for {
		select {
		case f := <-do:
			f()
		case <-until:
			for len(do) > 0 { // handed over before it said ready
				(<-do)()
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Service) loop(ctx context.Context, do chan func(), hb *gate, paths chan *nats.Msg) {
	status := s.cfg.NC.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.DISCONNECTED)
	defer s.cfg.NC.RemoveStatusListener(status)
	every := s.tickEvery()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-do:
			f()
		case m := <-hb.out:
			s.beat(m)
		case m := <-paths:
			s.hear(m)
		case st := <-status:
			s.connection(st)
		case <-tick.C:
			// What arrived before the tick must count before time passes; what comes meanwhile is the next one's.
			for range len(hb.out) {
				s.beat(<-hb.out)
			}
			if n := hb.lost.Swap(0); n > 0 {
				s.log.Warn("heartbeats came faster than they were heard: nodes get a grace", zap.Uint64("lost", n))
				s.core.Restart(time.Now())
			}
			if s.away && s.cfg.NC.IsConnected() {
				s.connection(nats.CONNECTED) // the listener drops what it cannot hold
			}
			if s.away {
				break
			}
			s.core.Tick(time.Now())
			s.expirePaths(time.Now())
			if e := s.tickEvery(); e != every {
				every = e
				tick.Reset(e)
			}
		}
		s.collect()
		s.write(ctx, do)
		s.fence(ctx, do, time.Now())
	}
}

// tickEvery keeps the verdict within a twentieth of the period.
func (s *Service) tickEvery() time.Duration {
	return max(20*time.Millisecond, min(s.period/20, 250*time.Millisecond))
}

func (s *Service) connection(st nats.Status) {
	if st != nats.CONNECTED {
		if !s.away {
			s.log.Warn("the bus is away: no node is judged until it is back")
		}
		s.away = true
		return
	}
	if s.away {
		s.away = false
		s.renewPaths(time.Now())
		s.core.Restart(time.Now())
	}
}

func (s *Service) beat(m *nats.Msg) {
	var h skepv1.Heartbeat
	if err := proto.Unmarshal(m.Data, &h); err != nil {
		s.log.Debug("unreadable heartbeat", zap.String("subject", m.Subject), zap.Error(err))
		return
	}
	// The subject is what the broker let the node publish to; the body could say anything.
	s.beats++
	id, now := lastToken(m.Subject), time.Now()
	if h.Restarting && !h.Leaving {
		s.core.Restarts(id, h.Session, now)
	} else {
		s.core.Beat(id, h.Session, h.Leaving, now)
	}
	if _, ok := s.members[id]; ok {
		s.clocks.hear(id, h.SentUnixMs, now)
	}
}

// collect notes whose verdict changed.
func (s *Service) collect() {
	for _, id := range s.core.Changed() {
		s.dirty[id] = true
		s.accused(id)
	}
}

// lead begins to write: whatever differs from the records.
func (s *Service) lead() {
	s.leading = true
	for id := range s.record {
		s.dirty[id] = true
	}
	for id := range s.members {
		s.dirty[id] = true
	}
}
