package ctrd

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"
	"go.uber.org/zap"

	"skep.dev/services/node-agent/internal/task"
)

// exits hears of every container's end: one event stream for the node, not one call a container. What happens
// while the stream is down is found by listing when it is up again.
type exits struct {
	r  *Runtime
	mu sync.Mutex
	m  map[string]*waiting
}

type waiting struct {
	done  chan struct{}
	exit  task.Exit
	ended bool
	pid   uint32 // of the container that is meant, 0 until it has started
	// early are exits that came before the pid was known: this container's own, if it was quick, or those of an
	// earlier try to start it.
	early map[uint32]task.Exit
}

func newExits(r *Runtime) *exits { return &exits{r: r, m: map[string]*waiting{}} }

// expect registers a container before it can end.
func (x *exits) expect(id string) *waiting {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.expectLocked(id)
}

func (x *exits) expectLocked(id string) *waiting {
	w := x.m[id]
	if w == nil {
		w = &waiting{done: make(chan struct{}), early: map[uint32]task.Exit{}}
		x.m[id] = w
	}
	return w
}

// begun says which process is the container's.
func (x *exits) begun(id string, pid uint32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	w := x.expectLocked(id)
	w.pid = pid
	if e, ok := w.early[pid]; ok {
		w.endLocked(e)
	}
	w.early = nil
}

func (x *exits) forget(id string) {
	x.mu.Lock()
	delete(x.m, id)
	x.mu.Unlock()
}

func (x *exits) ended(id string, pid uint32, e task.Exit) {
	x.mu.Lock()
	defer x.mu.Unlock()
	w := x.m[id]
	switch {
	case w == nil:
	case w.pid == 0:
		w.early[pid] = e
	case w.pid == pid:
		w.endLocked(e)
	}
}

func (w *waiting) endLocked(e task.Exit) {
	if !w.ended {
		w.exit, w.ended = e, true
		close(w.done)
	}
}

func (x *exits) wait(ctx context.Context, id string) (task.Exit, error) {
	w := x.expect(id)
	select {
	case <-ctx.Done():
		return task.Exit{}, ctx.Err()
	case <-w.done:
		return w.exit, nil
	}
}

func (x *exits) run(ctx context.Context) {
	down := false
	for ctx.Err() == nil {
		sub, cancel := context.WithCancel(ctx)
		msgs, errs := x.r.client.Subscribe(sub, `topic=="/tasks/exit"`)
		if err := x.relist(ctx); err != nil && ctx.Err() == nil {
			if !down {
				x.r.cfg.Log.Debug("containerd does not answer yet", zap.Error(err))
			}
			down = true
			cancel()
			pause(ctx, 50*time.Millisecond)
			continue
		}
		open := true
		down = false
		for open {
			select {
			case <-ctx.Done():
				open = false
			case err := <-errs:
				if ctx.Err() == nil {
					x.r.cfg.Log.Warn("containerd's events ended, listening again", zap.Error(err))
				}
				open = false
			case m := <-msgs:
				if m == nil || m.Namespace != Namespace {
					continue
				}
				v, err := typeurl.UnmarshalAny(m.Event)
				if err != nil {
					x.r.cfg.Log.Warn("unreadable containerd event", zap.Error(err))
					continue
				}
				if e, ok := v.(*events.TaskExit); ok && e.ID == e.ContainerID {
					x.ended(e.ContainerID, e.Pid, x.r.exitOf(e.ContainerID, e.ExitStatus, e.ExitedAt.AsTime()))
				}
			}
		}
		cancel()
		pause(ctx, 20*time.Millisecond)
	}
}

// relist settles everybody who waits against what there is.
func (x *exits) relist(ctx context.Context) error {
	x.mu.Lock()
	started := map[string]uint32{}
	for id, w := range x.m {
		if w.pid != 0 && !w.ended {
			started[id] = w.pid
		}
	}
	x.mu.Unlock()
	procs, err := x.r.processes(ctx)
	if err != nil {
		return err
	}
	for id, pid := range started {
		p := procs[id]
		if e, ok := x.r.ears.exit(id); ok && e.pid == pid {
			x.ended(id, pid, x.r.exitOf(id, e.code, e.at))
			continue
		}
		switch {
		case p == nil:
			x.ended(id, pid, task.Exit{Code: -1, Lost: "the container's shim died, its exit code is not known"})
		case p.Status == tasktypes.Status_STOPPED:
			x.ended(id, p.Pid, x.r.exitOf(id, p.ExitStatus, p.ExitedAt.AsTime()))
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
