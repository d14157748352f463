// Package scheduler decides which tasks exist, where they run and what is desired of them: it is the sole writer of
// bucket task. It follows the other buckets into an in-memory picture (libs/reconcile), plans whenever that changes,
// and commits each plan as atomic batches under a fence.
//
// It refuses to store objects (state does), to judge nodes (health-monitor does) and to run anything (agents do).
//
// Failure story: any number of instances run, one leads by a lease. A leader first writes task/fence, and every commit
// is conditional on the fence being as that leader wrote it, so a deposed one cannot write, whatever it believes about
// time. Plans are made from records alone and a batch never leaves two records that contradict each other, so a leader
// may die between any two commits and the next one goes on from there. While no scheduler runs, everything that runs
// keeps running. See DESIGN.md.
package scheduler

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/lease"
	"skep.dev/libs/life"
	"skep.dev/libs/quorum"
	"skep.dev/libs/reconcile"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// Config is all a scheduler needs.
type Config struct {
	NC      *nats.Conn
	Log     *zap.Logger
	NodeID  string // names the instance in the lease and the fence
	Version string
	// LeaseTTL is how long the cluster waits for a crashed leader; 0 = the lease's default.
	LeaseTTL time.Duration
	// Metrics is where the scheduler shows what it does, nil = nowhere.
	Metrics prometheus.Registerer

	// failpoint, set by tests, is called around every commit; an error stops the leader on the spot.
	failpoint func(at string) error
	// firstPause is the constant of the same name; 0 = that.
	firstPause time.Duration
	// batchWrites is the most keys one commit writes; 0 = as many as the server takes.
	batchWrites int
}

// Service is one scheduler, leading or standing by.
type Service struct {
	*life.Span // ready, leading or not, once the picture is complete and the endpoints answer

	cfg   Config
	js    jetstream.JetStream
	fence *lease.Writer // of bucket task; only the leading loop uses it
	ids   *reconcile.IDs
	meter *meter

	mu    sync.Mutex // over state
	state *reconcile.State

	question chan struct{} // held by the one question being answered

	releases chan release // of claims, by a person's word

	asking  inFlight // services of which state is asked a rollback or a run
	refused refusals // jobs of which state took no run

	wake  chan struct{}
	feeds kv.Feeds
}

// New checks the configuration and starts nothing.
func New(cfg Config) (*Service, error) {
	js, err := kv.Store(cfg.NC, "scheduler")
	if err != nil {
		return nil, err
	}
	cfg.Log = cmp.Or(cfg.Log, zap.NewNop())
	if cfg.NodeID == "" {
		cfg.NodeID = id.New()
	}
	if cfg.batchWrites == 0 {
		cfg.batchWrites = maxWrites
	}
	if cfg.firstPause == 0 {
		cfg.firstPause = firstPause
	}
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("scheduler: seed the task identifiers: %w", err)
	}
	return &Service{
		cfg: cfg, js: js, fence: lease.NewWriter(kv.Open(js, subject.Task), keys.TaskFence.Key(), cfg.NodeID), ids: reconcile.NewIDs(seed), state: reconcile.NewState(), meter: newMeter(cfg.Metrics),
		refused:  refusals{first: cfg.firstPause},
		question: make(chan struct{}, 1), releases: make(chan release),
		wake: make(chan struct{}, 1), Span: life.New(),
	}, nil
}

// Run follows, answers and campaigns until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ctx, cancel := s.Begin(ctx)
	defer cancel()
	s.feeds = kv.FollowAll(ctx, s.js, s.sources()...)
	defer s.feeds.Close()
	if !s.feeds.Caught(ctx) {
		return nil
	}
	srv, err := rpc.NewServer(s.cfg.NC, rpc.Config{
		Name: "skep-scheduler", Version: s.cfg.Version, Log: s.cfg.Log, Description: "places, replaces and updates tasks; explains and plans", Metrics: s.cfg.Metrics,
		Quorum: quorum.Follow(s.cfg.NC, s.cfg.Log),
	})
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	defer srv.Close() //nolint:errcheck // the connection ends with it
	if err := s.serve(srv); err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	if err := s.register(); err != nil {
		return err
	}
	s.Begun()
	l := lease.New(s.js, lease.Config{Name: "scheduler", Holder: s.cfg.NodeID, TTL: s.cfg.LeaseTTL, Log: s.cfg.Log})
	return l.Run(ctx, s.lead)
}

// nudge wakes the loop; more nudges before it looks are one.
func (s *Service) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
