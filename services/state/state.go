// Package state owns what people asked for: services and their revisions, nodes, the cluster, and the names, ports
// and node numbers they take up. It serves the object API, takes the agents' descriptions and status reports, and
// answers what an agent needs to start.
//
// It refuses to schedule, to judge whether a node is alive and to keep secrets: tasks are the scheduler's,
// liveness health-monitor's, secrets the vault's; it only shows the first two next to its own.
//
// Failure story: everything is in JetStream, the index here is a copy that is rebuilt at start. Several instances
// run at once; every write is a compare-and-set or the creation of a key, so the losers of a race see a conflict,
// look again and either succeed or say whose name it is now. Without JetStream's quorum nothing is written and reads
// go on from the last picture.
package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/kv"
	"skep.dev/libs/life"
	"skep.dev/libs/limit"
	"skep.dev/libs/quorum"
	"skep.dev/libs/rpc"
	"skep.dev/libs/stack"
	"skep.dev/libs/subject"
	"skep.dev/services/state/internal/index"
)

// Config is everything the service is given.
type Config struct {
	NC     *nats.Conn
	Log    *zap.Logger
	NodeID string
	// Instance names it in the lease of stacks, unique among all that run (default NodeID).
	Instance string
	Version  string
	// ManagerAddrs lists where nodes reach the managers (host:port) while the bus has not written down the group. Without it
	// the managers' advertised addresses and the default port are told.
	ManagerAddrs func() []string
	// ResolveTimeout bounds asking for an image's digest (default 10 s).
	ResolveTimeout time.Duration
	// KeepRevisions is how many revisions of a service stay (default 50).
	KeepRevisions int
	// LeaseTTL is for how long an instance that dies keeps the others from seeing to the stacks (default: the lease's).
	LeaseTTL time.Duration
	// Metrics is where the service shows what it does and holds, nil = nowhere.
	Metrics prometheus.Registerer

	beforeStep func(context.Context, *stack.Op) // of a stack: for tests, which die or change something there
}

// Service is one instance.
type Service struct {
	*life.Span // ready once the indexes have caught up and the endpoints answer

	cfg Config
	log *zap.Logger
	js  jetstream.JetStream

	ix                       *index.Index
	spec, rev, status, nodes *kv.Bucket
	feeds                    kv.Feeds

	reports *reportWriter
	events  *eventWriter

	describes  *limit.PerKey
	identities sync.Map // by node, *identity: see sole
	duplicates sync.Map // by node, duplicate
	claimed    sync.Map // by node, the host name of another that it says is its own

	admitMu   sync.Mutex // node numbers are handed out one after the other
	networkMu sync.Mutex // networks are made one after the other

	replicas, replicasAt atomic.Int64 // of the spec bucket, and when that was looked up (unix ms)

	left, differ lasting // keys of what is gone after a sweep, what the audit found: see clusterCheck
}

// New checks the configuration and starts nothing.
func New(cfg Config) (*Service, error) {
	js, err := kv.Store(cfg.NC, "state")
	if err != nil {
		return nil, err
	}
	cfg.Log = cmp.Or(cfg.Log, zap.NewNop())
	if cfg.ResolveTimeout <= 0 {
		cfg.ResolveTimeout = 10 * time.Second
	}
	if cfg.KeepRevisions <= 0 {
		cfg.KeepRevisions = 50
	}
	s := &Service{
		cfg: cfg, log: cfg.Log, js: js, ix: index.New(),
		spec: kv.Open(js, subject.Spec), rev: kv.Open(js, subject.Rev),
		status: kv.Open(js, subject.Status), nodes: kv.Open(js, subject.NodeB),
		Span: life.New(), describes: limit.New(describesPerSec, describesAtOnce),
	}
	s.reports = newReportWriter(s)
	s.events = newEventWriter(cfg.NC, cfg.Log)
	return s, nil
}

// Run serves until ctx ends or Close.
func (s *Service) Run(ctx context.Context) error {
	ctx, cancel := s.Begin(ctx)
	defer cancel()
	s.feeds = kv.FollowAll(ctx, s.js,
		kv.Source{Bucket: subject.Spec, Apply: s.ix.ApplySpec},
		kv.Source{Bucket: subject.Rev, Apply: s.ix.ApplyRev},
		kv.Source{Bucket: subject.Task, Apply: s.ix.ApplyTask},
		kv.Source{Bucket: subject.Status, Apply: s.ix.ApplyStatus},
		kv.Source{Bucket: subject.NodeB, Apply: s.ix.ApplyNode},
		kv.Source{Bucket: subject.Lease, Apply: s.ix.ApplyLease},
	)
	defer s.feeds.Close()
	if !s.feeds.Caught(ctx) {
		return nil
	}

	// The actors outlast ctx, as the feeds do: requests in work need them, and end before.
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end()
	for _, actor := range []func(context.Context){s.reports.run, s.events.run, s.sweep, s.followStacks, s.unfence, s.listen, s.followDuplicates, s.tellRoles, s.tellLate} {
		wg.Go(func() { actor(work) })
	}
	srv, err := rpc.NewServer(s.cfg.NC, rpc.Config{
		Name: "skep-state", Version: s.cfg.Version, Description: "desired objects, nodes and task status", Log: s.log, Metrics: s.cfg.Metrics,
		Quorum: quorum.Follow(s.cfg.NC, s.log),
	})
	if err != nil {
		return err
	}
	defer srv.Close() //nolint:errcheck // the connection is closing with us
	if err := s.endpoints(srv); err != nil {
		return err
	}
	if err := s.register(); err != nil {
		return err
	}
	if err := s.cfg.NC.FlushWithContext(flushContext(ctx)); err != nil && ctx.Err() == nil {
		return fmt.Errorf("subscribe endpoints: %w", err)
	}
	s.Begun()
	s.log.Info("serving", zap.Int("services", s.ix.ServiceCount()), zap.Int("nodes", len(s.ix.NodeIDs())))
	<-ctx.Done()
	return nil
}

// flushContext gives Flush the deadline it insists on; it ends by itself.
func flushContext(ctx context.Context) context.Context {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	context.AfterFunc(ctx, cancel)
	return ctx
}

func (s *Service) endpoints(srv *rpc.Server) error {
	return errors.Join(
		api.Handle(srv, api.ServiceCreate, s.createService),
		api.Handle(srv, api.ServiceUpdate, s.updateService),
		api.Handle(srv, api.ServiceRollout, s.steerRollout),
		api.Handle(srv, api.ServiceScale, s.scaleService),
		api.Handle(srv, api.ServiceRun, s.runService),
		api.Handle(srv, api.ServiceInspect, s.inspectService),
		api.Handle(srv, api.ServiceList, s.listServices),
		api.Handle(srv, api.ServiceRemove, s.removeService),
		api.Handle(srv, api.ServiceRevisions, s.listRevisions),
		api.Handle(srv, api.FilesUses, s.secretUses),
		api.Handle(srv, api.FilesOfTasks, s.taskFiles),
		api.Handle(srv, api.FilesRoll, s.rollSecret),
		api.Handle(srv, api.TaskList, s.listTasks),
		api.Handle(srv, api.TaskUnknown, s.unknownTasks),
		api.Handle(srv, api.TaskInspect, s.inspectTask),
		api.Handle(srv, api.NodeList, s.listNodes),
		api.Handle(srv, api.NodeInspect, s.inspectNode),
		api.Handle(srv, api.NodeUpdate, s.updateNode),
		api.Handle(srv, api.NodeRemove, s.removeNode),
		api.Handle(srv, api.NodeFence, s.fenceNode),
		api.Handle(srv, api.NodeAdmit, s.admitNode),
		api.Handle(srv, api.NodeSettle, s.settleNode),
		api.Handle(srv, api.NetworkCreate, s.createNetwork),
		api.Handle(srv, api.NetworkList, s.listNetworks),
		api.Handle(srv, api.NetworkInspect, s.inspectNetwork),
		api.Handle(srv, api.NetworkRemove, s.removeNetwork),
		api.Handle(srv, api.StackDeploy, s.deployStack),
		api.Handle(srv, api.StackRollback, s.rollbackStack),
		api.Handle(srv, api.StackRemove, s.removeStack),
		api.Handle(srv, api.StackInspect, s.inspectStack),
		api.Handle(srv, api.StackList, s.listStacks),
		api.Handle(srv, api.StackRevisions, s.listStackRevisions),
		api.Handle(srv, api.ClusterInit, s.initCluster),
		api.Handle(srv, api.ClusterRefound, s.refound),
		api.Handle(srv, api.ClusterInspect, s.inspectCluster),
		api.Handle(srv, api.ClusterUpdate, s.updateCluster),
		api.Handle(srv, api.EventList, s.listEvents),
		api.Handle(srv, api.AuditList, s.listAudit),
		api.Handle(srv, api.ClusterCheck, s.clusterCheck),
		api.HandleNode(srv, api.StateDescribe, s.describeNode),
		api.HandleNode(srv, api.StateSnapshot, s.snapshot),
		api.HandleNode(srv, api.StateSpecs, s.specs),
		api.HandleNode(srv, api.StateManagers, s.nodeManagers),
		api.HandleNode(srv, api.StateTold, s.told),
		api.HandleNode(srv, api.StateStatus, s.reportStatus),
	)
}
