package ctrd

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	apitypes "github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/moby/sys/signal"
	"go.uber.org/zap"

	"skep.dev/services/node-agent/internal/task"
)

const (
	// createLimit is how long containerd and runc may take to start a container before it is tried again.
	createLimit = time.Minute
	// beginLimit is how long a process that was made may take to begin, many times what it needs.
	beginLimit = 10 * time.Second
	// clearUpLimit is how long the removal of a failed start may take.
	clearUpLimit = 20 * time.Second
)

// Make implements task.Runtime.
func (r *Runtime) Make(ctx context.Context, j *task.Job) error {
	if err := r.keepVolumes(ctx, j); err != nil {
		return err
	}
	ctx, done, err := r.inSlot(ctx)
	if err != nil {
		return err
	}
	defer done()
	err = r.makeProcess(ctx, j)
	if err != nil && !errdefs.IsUnavailable(err) {
		return r.clearUp(ctx, j.ID(), err)
	}
	r.made.Store(j.ID(), struct{}{}) // also where containerd died and did not say so any more: it may well be
	return trouble(err)
}

// Start implements task.Runtime.
func (r *Runtime) Start(ctx context.Context, j *task.Job) (uint32, error) {
	if err := r.keepVolumes(ctx, j); err != nil {
		return 0, err
	}
	ctx, done, err := r.inSlot(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	id := j.ID()
	if _, made := r.made.LoadAndDelete(id); made {
		pid, err := r.begin(ctx, j)
		switch {
		case err == nil:
			return pid, nil
		case errdefs.IsUnavailable(err):
			r.made.Store(id, struct{}{}) // shims outlive containerd
			return 0, trouble(err)
		}
		r.cfg.Log.Debug("begin the process that was made: making another", zap.String("task", id), zap.Error(err))
		// Whatever became of it: everything anew, and with the errors of that.
	}
	pid, err := r.start(ctx, j)
	if errdefs.IsAlreadyExists(err) {
		if err = r.deleteTask(ctx, id); err == nil {
			pid, err = r.start(ctx, j)
		}
	}
	if err != nil {
		return 0, r.clearUp(ctx, id, err)
	}
	return pid, nil
}

// keepVolumes has mounted again what is not any more after a restart of the machine. Before its turn, as in Prepare.
func (r *Runtime) keepVolumes(ctx context.Context, j *task.Job) error {
	_, err := r.attachVolumes(ctx, j, r.namesOf(j), func(string) {})
	return trouble(err)
}

// inSlot waits for its turn and gives the context of what is done in it; done ends both. Half a start is worse than a
// late end: the agent's own stop does not cut it in two.
func (r *Runtime) inSlot(ctx context.Context) (_ context.Context, done func(), err error) {
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ns(ctx)), createLimit)
	return ctx, func() { cancel(); r.slots.Release(1) }, nil
}

// clearUp removes what a failed start left and says why it failed, as the task's error.
func (r *Runtime) clearUp(ctx context.Context, id string, err error) error {
	// It may have failed because its time was over; the clearing up has its own.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearUpLimit)
	defer cancel()
	t := trouble(err)
	if derr := r.deleteTask(ctx, id); derr != nil && !task.IsTemporary(t) {
		r.cfg.Log.Warn("clear up after a failed start", zap.String("task", id), zap.Error(derr))
	}
	r.exits.forget(id)
	if task.IsTemporary(t) {
		return t
	}
	return startError(err)
}

func (r *Runtime) start(ctx context.Context, j *task.Job) (uint32, error) {
	if err := r.makeProcess(ctx, j); err != nil {
		return 0, err
	}
	return r.begin(ctx, j)
}

// makeProcess makes the container's process, which waits to be begun.
func (r *Runtime) makeProcess(ctx context.Context, j *task.Job) error {
	id := j.ID()
	if err := r.subpaths.check(id); err != nil {
		return err
	}
	root, err := r.client.SnapshotService(snapshotter).Mounts(ctx, id)
	if err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	req := &tasks.CreateTaskRequest{ContainerID: id, Terminal: j.Container().GetTty()}
	req.Stdout, req.Stderr = r.cfg.Logs.Raw(id, j.Dir, j.Revision.GetSpec().GetTask().GetLogDriver())
	if req.Terminal {
		req.Stderr = ""
	}
	for _, m := range root {
		req.Rootfs = append(req.Rootfs, &apitypes.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	r.exits.forget(id) // what an earlier try left
	r.exits.expect(id)
	r.ears.forget(id)
	_, err = r.tasks.Create(ctx, req)
	return errgrpc.ToNative(err)
}

// begin lets a process run that was made.
func (r *Runtime) begin(ctx context.Context, j *task.Job) (uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, beginLimit)
	defer cancel()
	id := j.ID()
	reply, err := r.tasks.Start(ctx, &tasks.StartRequest{ContainerID: id})
	if err != nil {
		return 0, errgrpc.ToNative(err)
	}
	r.exits.begun(id, reply.Pid)
	r.cfg.Logs.Follow(id, j.Dir, j.Revision.GetSpec().GetTask().GetLogDriver())
	return reply.Pid, nil
}

var execError = regexp.MustCompile(`(exec: .*|error mounting .*|mounting .* to rootfs .*|chdir to cwd .*|open executable.*|write sysctl key .*|sysctl .*)$`)

// startError keeps of runc's chain of words the part that helps.
func startError(err error) error {
	text := strings.TrimSuffix(strings.TrimSpace(err.Error()), ": unknown")
	for _, cut := range []string{": unknown", "\n"} {
		text, _, _ = strings.Cut(text, cut)
	}
	if m := execError.FindString(text); m != "" {
		text = m
	} else if i := strings.LastIndex(text, "unable to start container process: "); i >= 0 {
		text = text[i+len("unable to start container process: "):]
	}
	return errors.New("starting container failed: " + text)
}

// Wait implements task.Runtime.
func (r *Runtime) Wait(ctx context.Context, id string) (task.Exit, error) {
	return r.exits.wait(ctx, id)
}

// Adopt makes a container that runs already waited for and its output followed, and ends what a killed agent left of its
// probes there.
func (r *Runtime) Adopt(j *task.Job, pid uint32) {
	r.strayProbes(j.ID())
	r.exits.begun(j.ID(), pid)
	r.cfg.Logs.Follow(j.ID(), j.Dir, j.Revision.GetSpec().GetTask().GetLogDriver())
}

// Stop implements task.Runtime.
func (r *Runtime) Stop(ctx context.Context, j *task.Job) (*task.Exit, error) {
	ctx = r.ns(ctx)
	id := j.ID()
	reply, err := r.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
			if e, ok := r.ears.exit(id); ok {
				exit := r.exitOf(id, e.code, e.at)
				return &exit, nil
			}
			return nil, nil
		}
		return nil, task.Soon(fmt.Errorf("stop container %s: %w", id, err))
	}
	switch p := reply.Process; p.Status {
	case tasktypes.Status_STOPPED:
		e := r.exitOf(id, p.ExitStatus, p.ExitedAt.AsTime())
		return &e, nil
	case tasktypes.Status_CREATED:
		return nil, nil // Release deletes it
	}
	r.exits.begun(id, reply.Process.Pid)
	r.drain(ctx, id)
	sig, err := signal.ParseSignal(signalName(j.Container(), r.imageStopSignal(ctx, j)))
	if err != nil {
		r.cfg.Log.Warn("unknown stop signal, sending SIGTERM", zap.String("task", id), zap.Error(err))
		sig, _ = signal.ParseSignal("SIGTERM")
	}
	to := r.aim(ctx, id, reply.Process.Pid)
	defer to.close()
	if err := to.send(ctx, sig); err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, grace(j.Container()))
	exit, err := r.exits.wait(wait, id)
	cancel()
	if err == nil {
		return &exit, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err := to.send(ctx, syscall.SIGKILL); err != nil {
		return nil, err
	}
	wait, cancel = context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	exit, err = r.exits.wait(wait, id)
	if err != nil {
		return nil, task.Temporary(fmt.Errorf("container %s does not end after SIGKILL: %w", id, err))
	}
	return &exit, nil
}

// imageStopSignal is what the image wants to be ended with, noted when the container was made.
func (r *Runtime) imageStopSignal(ctx context.Context, j *task.Job) string {
	if j.Container().GetStopSignal() != "" {
		return ""
	}
	c, err := r.client.ContainerService().Get(ctx, j.ID())
	if err != nil {
		return ""
	}
	return c.Labels[labelStopSignal]
}

// Release implements task.Runtime.
func (r *Runtime) Release(ctx context.Context, id string) error {
	ctx = r.ns(ctx)
	if err := r.discard(ctx, id); err != nil {
		return err
	}
	if err := r.cfg.Volumes.Release(ctx, id); err != nil {
		return task.Temporary(err)
	}
	// Only now has the shim written the last of the output.
	if err := r.cfg.Logs.Finish(id); err != nil {
		return err
	}
	r.exits.forget(id)
	r.ears.forget(id)
	if err := r.files.Remove(id); err != nil {
		return err
	}
	if err := r.cfg.Attacher.Detach(ctx, id); err != nil {
		return task.Temporary(fmt.Errorf("detach the network of %s: %w", id, err))
	}
	return nil
}
