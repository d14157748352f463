// Package controller is the mesh's controller role: it tells every node who is where on which network. It is the sole
// writer of bucket endpoint. Its records follow from what state, the scheduler and the agents wrote (internal/derive),
// and from the address blocks it leases to nodes, which stand in the records themselves.
//
// It refuses to decide anything else: networks, ports and virtual addresses are state's, tasks are the scheduler's.
//
// Failure story: any number of instances run and answer what nodes ask to compare; one leads by a lease, writes and
// leases blocks. A leader first writes endpoint/fence, then waits until it has seen everything that was written before
// that, and every write is conditional on the fence being as that leader wrote it: one that was deposed unnoticed
// cannot write, whatever it believes, so no block is leased twice. A write without an answer may stand or not: the fence
// is moved before the next one, which makes it certain, and the feed tells which. A crash between two writes leaves
// records that are each right or old; the next leader writes the difference. Which tasks drain is known to the leader
// alone: a new one goes by what is desired of them. While none leads, nodes go on with what they know.
package controller

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
	"golang.org/x/time/rate"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/lease"
	"skep.dev/libs/life"
	"skep.dev/libs/limit"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	"skep.dev/services/ingress-mesh/internal/derive"
)

// Config is all a controller needs.
type Config struct {
	NC      *nats.Conn
	Log     *zap.Logger
	NodeID  string // names the instance in the lease
	Version string
	// LeaseTTL is how long the cluster waits for a crashed leader; 0 = the lease's default.
	LeaseTTL time.Duration
	// Metrics is where the controller shows what it does, nil = nowhere.
	Metrics prometheus.Registerer

	// failpoint, set by tests, is called before ("write") and after ("written") every write, where errKilled stops the
	// leader on the spot and any other error is as if NATS had given it; and by every feed ("feed <bucket>"), to hold it up.
	failpoint func(at string) error
}

// Service is one controller, leading or standing by.
type Service struct {
	*life.Span // ready, leading or not, once the picture is complete and the endpoints answer

	cfg   Config
	js    jetstream.JetStream
	meter *meter
	feeds kv.Feeds // of the buckets the records depend on, and of the records

	mu  sync.Mutex // over pic
	pic *derive.Picture

	writing sync.Mutex    // held by who plans and commits, taken before mu
	fence   *lease.Writer // of the records; under writing

	wake chan struct{}

	acted *acted
	looks *rounds       // at the newest tasks, for requests that seem to ask for too much
	syncs *rounds       // at the newest records
	paces *limit.PerKey // of changes that nodes ask for, by key of the record
	told  *limit.PerKey // of changes after nodes' reports, by node

	actFor, idleFor time.Duration // the constants; tests have less patience
}

// New checks the configuration and starts nothing.
func New(cfg Config) (*Service, error) {
	js, err := kv.Store(cfg.NC, "mesh controller")
	if err != nil {
		return nil, err
	}
	if cfg.NodeID == "" {
		return nil, errors.New("mesh controller: a name for the lease is needed")
	}
	cfg.Log = cmp.Or(cfg.Log, zap.NewNop())
	return &Service{
		cfg: cfg, js: js, fence: lease.NewWriter(kv.Open(js, subject.Endpoint), keys.EndpointFence.Key(), cfg.NodeID), pic: derive.New(), meter: newMeter(cfg.Metrics),
		wake: make(chan struct{}, 1), Span: life.New(), acted: newActed(), looks: newRounds(), syncs: newRounds(), paces: limit.New(rate.Every(paceEvery), paceBurst), told: limit.New(rate.Every(reportEvery), reportBurst), actFor: actFor, idleFor: idleFor,
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
	srv, err := s.serve("skep-mesh-controller", "who is where on which network", s.endpoints)
	if err != nil {
		return err
	}
	defer srv.Close() //nolint:errcheck // the connection ends with it
	s.Begun()
	l := lease.New(s.js, lease.Config{Name: "mesh", Holder: s.cfg.NodeID, TTL: s.cfg.LeaseTTL, Log: s.cfg.Log})
	return l.Run(ctx, s.lead)
}

func (s *Service) serve(name, about string, endpoints func(*rpc.Server) error) (*rpc.Server, error) {
	srv, err := rpc.NewServer(s.cfg.NC, rpc.Config{Name: name, Version: s.cfg.Version, Log: s.cfg.Log, Description: about})
	if err != nil {
		return nil, fmt.Errorf("mesh controller: %w", err)
	}
	if err := endpoints(srv); err != nil {
		_ = srv.Close()
		return nil, fmt.Errorf("mesh controller: %w", err)
	}
	return srv, nil
}

// sources are the buckets that the records depend on, and theirs. A step of theirs wakes the loop when it concerns one.
func (s *Service) sources() []kv.Source {
	fold := kv.Fold{Lock: &s.mu, Log: s.cfg.Log, Then: func() {
		if s.pic.Dirty() {
			s.nudge()
		}
	}}
	source := func(bucket subject.Bucket, put func(string, []byte) error, reset func()) kv.Source {
		return fold.Source(bucket, func(e kv.Entry) error { return put(e.Key, e.Stored()) }, func(kv.Delta) { reset() })
	}
	// Revisions, reports and what nodes say of themselves are only ever replaced: a feed that begins anew needs no reset.
	added := func() {}
	stored := fold.Source(subject.Endpoint, func(e kv.Entry) error { return s.pic.PutStored(e.Key, e.Stored(), e.Revision) }, func(kv.Delta) { s.pic.ResetStored() })
	sources := []kv.Source{
		source(subject.Spec, s.pic.PutSpec, s.pic.ResetSpec),
		source(subject.Rev, s.pic.PutRevision, added),
		source(subject.NodeB, s.pic.PutNode, added),
		source(subject.Status, s.pic.PutStatus, added),
		source(subject.Task, s.pic.PutTasks, s.pic.ResetTasks),
		stored,
	}
	for i, src := range sources {
		sources[i].Apply = func(d kv.Delta) {
			_ = s.fail("feed " + string(src.Bucket)) // it may only take its time
			src.Apply(d)
		}
	}
	return sources
}

// nudge wakes the loop; more nudges before it looks are one.
func (s *Service) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
