package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// service is the shape all of skep's services share (docs/contracts.md).
type service interface {
	Run(ctx context.Context) error
	Ready() <-chan struct{}
	Close() error
}

// group runs services in one process: each starts when the one before it is ready, the first to fail ends them
// all, and they stop in reverse order, each completely before the next.
type group struct {
	log    *zap.Logger
	actors []*actor
	once   sync.Once
	failed chan struct{} // closed with err set
	err    error
}

type actor struct {
	name   string
	svc    service
	cancel context.CancelFunc
	done   chan struct{}
}

func newGroup(log *zap.Logger) *group { return &group{log: log, failed: make(chan struct{})} }

// start runs a service and returns once it is ready.
func (g *group) start(ctx context.Context, name string, svc service) error {
	select {
	case <-g.failed:
		return g.err
	default:
	}
	began := time.Now()
	run, cancel := context.WithCancel(context.Background())
	a := &actor{name: name, svc: svc, cancel: cancel, done: make(chan struct{})}
	g.actors = append(g.actors, a)
	go func() {
		defer close(a.done)
		err := svc.Run(run)
		if run.Err() == nil {
			if err == nil {
				err = errors.New("it ended by itself")
			}
			g.fail(fmt.Errorf("%s: %w", name, err))
		} else if err != nil && !errors.Is(err, context.Canceled) {
			g.log.Warn("service stopped with an error", zap.String("service", name), zap.Error(err))
		}
	}()
	select {
	case <-svc.Ready():
		g.log.Info("service ready", zap.String("service", name), zap.Duration("dur", time.Since(began)))
		return nil
	case <-g.failed:
		return g.err
	case <-ctx.Done():
		return fmt.Errorf("start %s: %w", name, context.Cause(ctx))
	}
}

func (g *group) fail(err error) {
	g.once.Do(func() {
		g.err = err
		close(g.failed)
	})
}

// stop ends all services, the last started first.
func (g *group) stop() {
	for len(g.actors) > 0 {
		g.stopLast()
	}
}

// stopLast ends the service that was started last. It gets a bounded time: what hangs is named and left.
func (g *group) stopLast() {
	const patience = 15 * time.Second
	a := g.actors[len(g.actors)-1]
	g.actors = g.actors[:len(g.actors)-1]
	a.cancel()
	select {
	case <-a.done:
	case <-time.After(patience):
		g.log.Error("service does not stop", zap.String("service", a.name), zap.Duration("waited", patience))
	}
	if err := a.svc.Close(); err != nil {
		g.log.Warn("close service", zap.String("service", a.name), zap.Error(err))
	}
}
