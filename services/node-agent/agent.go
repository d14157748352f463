package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"skep.dev/libs/id"
	"skep.dev/libs/life"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/ctrd"
	"skep.dev/services/node-agent/internal/logs"
	"skep.dev/services/node-agent/internal/plugin"
	"skep.dev/services/node-agent/internal/probe"
	"skep.dev/services/node-agent/internal/task"
	"skep.dev/services/node-agent/internal/volume"
)

// Service is a node's agent.
type Service struct {
	*life.Span // ready once the containers there are have been taken over and the node answers

	cfg     Config
	log     *zap.Logger
	session string

	daemon  *ctrd.Daemon // nil with a containerd of somebody else's
	runtime *ctrd.Runtime
	keeper  *logs.Keeper
	volumes *volume.Store
	prober  *probe.Prober
	plugins *plugin.Plugins
	set     *task.Set

	specs   *specCache
	courier *courier
	report  *reporter
	changes changes // for who runs in the same process
	meter   *meter
	ask     chan struct{} // ask for a snapshot
	desc    chan struct{} // describe the node again
	trouble trouble
	paced   chan struct{} // the heartbeat period changed

	cluster atomic.Pointer[skepv1.ClusterSpec]
	leaving atomic.Bool
	granted atomic.Bool // a snapshot was given: this machine is the node
	refused atomic.Bool // another machine is, by the managers' last word
	running atomic.Bool
	manager atomic.Bool
	role    chan struct{} // manager changed
}

// New checks the configuration. Nothing is started.
func New(cfg Config) (*Service, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, log: cfg.Log, session: id.New(), Span: life.New(),
		ask: make(chan struct{}, 1), desc: make(chan struct{}, 1), paced: make(chan struct{}, 1), role: make(chan struct{}, 1),
	}
	s.manager.Store(cfg.Manager)
	s.meter = newMeter(cfg.Metrics, s.runsTasks, s.holdsVolumes)
	s.leaving.Store(cfg.Leaving)
	if cfg.ContainerdAddress == "" {
		d, err := ctrd.NewDaemon(ctrd.DaemonConfig{
			Dir: filepath.Join(cfg.DataDir, "containerd"), RunDir: cfg.RunDir, BinDir: cfg.BinDir, Log: cfg.Log.Named("containerd"),
		})
		if err != nil {
			return nil, fmt.Errorf("agent: %w", err)
		}
		s.daemon = d
	}
	s.specs, s.courier = newSpecCache(s), newCourier(s)
	s.report = newReporter(s)
	return s, nil
}

// Run works until ctx ends. Containers run on after it.
func (s *Service) Run(ctx context.Context) (err error) {
	ctx, end := s.Begin(ctx)
	defer end()
	s.running.Store(true)
	defer s.running.Store(false)
	if err := s.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.shutdown()) }()
	cmds, err := s.serve()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cmds.close()) }()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.runtime.Follow(gctx); return nil })
	g.Go(func() error { return s.sync(gctx) })
	g.Go(func() error { return s.refresh(gctx) })
	g.Go(func() error { s.report.run(gctx); return nil })
	g.Go(func() error { s.heartbeats(gctx); return nil })
	g.Go(func() error { s.describeLoop(gctx); return nil })
	g.Go(func() error { s.watchRuntime(gctx); return nil })
	g.Go(func() error { return s.resume(gctx) })
	g.Go(func() error { s.tidy(gctx); return nil })
	g.Go(func() error { return s.serveManager(gctx) })
	g.Go(func() error { s.watchBinds(gctx); return nil })
	g.Go(func() error { s.watchManagers(gctx); return nil })
	return g.Wait()
}

// start brings up containerd and opens what is on disk.
func (s *Service) start(ctx context.Context) error {
	for _, dir := range []string{s.dir(), s.cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("agent: make its directory: %w", err)
		}
	}
	address := s.cfg.ContainerdAddress
	if s.daemon != nil {
		if err := s.daemon.Start(ctx); err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		address = s.daemon.Address()
	}
	var err error
	if s.plugins, err = s.openPlugins(); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	s.volumes, err = volume.Open(volume.Config{Root: filepath.Join(s.dir(), "volumes"), Node: s.cfg.Hostname, Path: ctrd.SearchPath(s.cfg.BinDir), Log: s.log,
		Drivers: s.plugins.Driver, Plugins: s.plugins.Names})
	if err != nil {
		s.plugins.Close()
		return fmt.Errorf("agent: %w", err)
	}
	if s.keeper, err = logs.Open(s.log); err != nil {
		s.plugins.Close()
		return fmt.Errorf("agent: %w", err)
	}
	s.runtime, err = ctrd.New(ctx, ctrd.Config{
		Address: address, Daemon: s.daemon, NodeID: s.cfg.NodeID, Hostname: s.cfg.Hostname, RunDir: s.cfg.RunDir, BinDir: s.cfg.BinDir,
		Attacher: s.cfg.Attacher, Registries: *s.cfg.Registries, Volumes: s.volumes, Logs: s.keeper, Courier: s.courier,
		Parallelism: s.cfg.StartParallelism, Log: s.log, Pulled: s.meter.pulled,
	})
	if err != nil {
		s.plugins.Close()
		return fmt.Errorf("agent: %w", errors.Join(err, s.keeper.Close()))
	}
	if s.prober, err = probe.New(s.runtime, s.log.Named("probe")); err != nil {
		return fmt.Errorf("agent: %w", errors.Join(err, s.shutdown()))
	}
	s.set, err = task.Open(task.Config{Dir: s.dir(), Runtime: s.runtime, Probes: s.prober, Specs: s.specs.get, Log: s.log, Changed: func() { s.report.changed(); s.changes.tell() },
		Started: s.meter.started, Ended: s.meter.ended,
		Forgotten: func(id string) {
			if err := s.volumes.Forget(id); err != nil {
				s.log.Warn("remove a task's volumes", zap.String("task", id), zap.Error(err))
			}
		}})
	if err != nil {
		return fmt.Errorf("agent: %w", errors.Join(err, s.shutdown()))
	}
	return nil
}

func (s *Service) dir() string { return filepath.Join(s.cfg.DataDir, "agent") }

// resume takes over what runs, then removes what nobody knows.
func (s *Service) resume(ctx context.Context) error {
	began := time.Now()
	var found map[string]task.Found
	for said := (time.Time{}); ; {
		var err error
		if found, err = s.runtime.List(ctx); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(said) > 10*time.Second { // somebody else's containerd may be away for long
			said = time.Now()
			s.log.Warn("containerd does not answer yet", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
	running := 0
	for taskID, f := range found {
		j, _ := s.set.Job(taskID)
		if j == nil || j.Revision == nil || f.Phase == task.PhaseCreated {
			continue
		}
		s.runtime.Adopt(j, f.Pid)
		running++
	}
	s.set.Resume(found)
	s.log.Info("containers taken over", zap.Int("containers", running), zap.Duration("dur", time.Since(began)))
	if err := s.runtime.Sweep(ctx, s.set.Known); err != nil && ctx.Err() == nil {
		s.log.Warn("sweep leftovers", zap.Error(err))
	}
	s.reconcileVolumes(ctx)
	s.Begun()
	s.askSnapshot()
	return nil
}

// drainVolumes is how long a node that leaves waits for its volume plug-ins to unmount everything.
const drainVolumes = 30 * time.Second

// tidyEvery is how often leftovers are looked for while the agent runs.
const tidyEvery = 20 * time.Second

// tidy removes, again and again, what belongs to no task of the set.
func (s *Service) tidy(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.Ready():
	}
	for ctx.Err() == nil {
		wait(ctx, tidyEvery)
		if err := s.runtime.Tidy(ctx, s.set.Known); err != nil && ctx.Err() == nil {
			s.log.Warn("sweep leftovers", zap.Error(err))
		}
		s.reconcileVolumes(ctx)
	}
}

// shutdown lets go of everything and leaves the containers running.
func (s *Service) shutdown() error {
	var err error
	if s.set != nil {
		s.set.Close()
	}
	if s.plugins != nil {
		s.plugins.Close()
	}
	if s.prober != nil {
		err = errors.Join(err, s.prober.Close())
	}
	if s.keeper != nil {
		err = errors.Join(err, s.keeper.Close())
	}
	if s.runtime != nil {
		err = errors.Join(err, s.runtime.Close())
	}
	return err
}

// SetLeaving says whether the end of Run is reported as the node's leaving.
func (s *Service) SetLeaving(leaving bool) { s.leaving.Store(leaving) }

// Leave removes every container, shim, network, mount and containerd itself from a node that left its cluster. Run must have ended. Named volumes
// and images stay; they are under the data directory.
func (s *Service) Leave(ctx context.Context) error {
	if s.running.Load() {
		return errors.New("leave: the agent still runs")
	}
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	fctx, cancel := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() { defer close(followed); s.runtime.Follow(fctx) }()
	found, err := s.runtime.List(ctx)
	if err == nil {
		for taskID, f := range found {
			if j, _ := s.set.Job(taskID); j != nil && j.Revision != nil && f.Phase != task.PhaseCreated {
				s.runtime.Adopt(j, f.Pid)
			}
		}
		s.set.Resume(found)
		err = errors.Join(s.set.StopAll(ctx), s.plugins.Drain(ctx, drainVolumes))
	}
	cancel()
	<-followed
	err = errors.Join(err, s.runtime.Clean(ctx), s.shutdown())
	if s.daemon != nil {
		err = errors.Join(err, s.daemon.Stop(context.WithoutCancel(ctx)), ctrd.Unmount(s.cfg.RunDir))
	}
	err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir(), "tasks")))
	for _, name := range []string{"containerd", "runc", "exec", "files", "subpaths"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.cfg.RunDir, name)))
	}
	if rerr := os.Remove(filepath.Join(s.dir(), "generation")); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}
