package agent

import (
	"context"
	"sync"
	"time"

	"skep.dev/libs/containers"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/ctrd"
)

// Local is the agent for who runs in the same process, nil until it has taken over what runs, and once it has ended.
func (s *Service) Local() containers.Node {
	if !s.Serves() {
		return nil
	}
	return &local{s}
}

// local implements containers.Node.
type local struct{ s *Service }

func (l *local) ID() string               { return l.s.cfg.NodeID }
func (l *local) Hostname() string         { return l.s.cfg.Hostname }
func (l *local) Changed() <-chan struct{} { return l.s.changes.next() }

func (l *local) Containers() []containers.Container {
	var out []containers.Container
	for _, st := range l.s.set.Statuses() {
		if c, ok := l.Container(st.GetTaskId()); ok {
			out = append(out, c)
		}
	}
	return out
}

func (l *local) Container(id string) (containers.Container, bool) {
	j, st := l.s.set.Job(id)
	if j == nil || j.Revision == nil || st.GetContainerId() == "" {
		return containers.Container{}, false
	}
	return containers.Container{Record: j.Record, Revision: j.Revision, Status: st}, true
}

func (l *local) Process(ctx context.Context, id string) (*containers.Process, error) {
	return l.s.runtime.Process(ctx, id)
}

// endWithin is how long after the end of its log a container is awaited to have ended.
const endWithin = 10 * time.Second

func (l *local) Logs(ctx context.Context, req *skepv1.LogsRequest, each func(*skepv1.LogEntry) error, idle func() error) error {
	if err := l.s.readLogs(ctx, req, each, idle); err != nil || !req.GetFollow() || req.GetUntil() != nil {
		return err
	}
	// Who followed asks next whether the container still runs, and would follow it from now on if it were told so.
	late := time.NewTimer(endWithin)
	defer late.Stop()
	for {
		changed := l.Changed()
		if _, st := l.s.set.Job(req.GetTaskId()); st.GetState() != skepv1.TaskState_TASK_STATE_RUNNING {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-late.C:
			return fault.Unavailable("the log of task %s ended, and the task has not", req.GetTaskId())
		}
	}
}

func (l *local) Exec(ctx context.Context, req *skepv1.ExecRequest, io containers.ExecIO) (int32, error) {
	if err := l.s.mayExec(req); err != nil {
		return 0, err
	}
	l.s.tellExec(ctx, req)
	return l.s.runtime.Exec(ctx, req, ctrd.ExecIO{Stdin: io.Stdin, Stdout: io.Stdout, Stderr: io.Stderr, Control: io.Control})
}

func (l *local) Stats(id string) *skepv1.TaskStats { return l.s.statsOf(id) }

func (l *local) Processes(id string) ([]int, error) {
	if _, st := l.s.set.Job(id); st.GetState() != skepv1.TaskState_TASK_STATE_RUNNING {
		return nil, fault.Conflict("task %s is not running", id)
	}
	return l.s.runtime.Processes(id), nil
}

func (l *local) Images(ctx context.Context) ([]*skepv1.Image, error) {
	r, err := l.s.listImages(ctx, &skepv1.ListImagesRequest{})
	return r.GetImages(), err
}

func (l *local) Volumes(ctx context.Context) ([]*skepv1.Volume, []string) { return l.s.allVolumes(ctx) }

// changes tells any number of listeners that something changed.
type changes struct {
	mu sync.Mutex
	ch chan struct{} // nil: nobody listens
}

func (c *changes) next() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch == nil {
		c.ch = make(chan struct{})
	}
	return c.ch
}

func (c *changes) tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch != nil {
		close(c.ch)
		c.ch = nil
	}
}
