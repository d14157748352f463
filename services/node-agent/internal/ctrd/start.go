package ctrd

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
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

// Start implements task.Runtime.
func (r *Runtime) Start(ctx context.Context, j *task.Job) (uint32, error) {
	ctx = r.ns(ctx)
	id := j.ID()
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return 0, err
	}
	defer r.slots.Release(1)
	// Half a start is worse than a late end: the agent's own stop does not cut it in two.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	pid, err := r.start(ctx, j)
	if errdefs.IsAlreadyExists(err) {
		if err = r.deleteTask(ctx, id); err == nil {
			pid, err = r.start(ctx, j)
		}
	}
	if err != nil {
		t := trouble(err)
		if derr := r.deleteTask(ctx, id); derr != nil && !task.IsTemporary(t) {
			r.cfg.Log.Warn("clear up after a failed start", zap.String("task", id), zap.Error(derr))
		}
		r.exits.forget(id)
		if task.IsTemporary(t) {
			return 0, t
		}
		return 0, startError(err)
	}
	return pid, nil
}

func (r *Runtime) start(ctx context.Context, j *task.Job) (uint32, error) {
	id := j.ID()
	root, err := r.client.SnapshotService(snapshotter).Mounts(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("root file system: %w", err)
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
	if _, err := r.tasks.Create(ctx, req); err != nil {
		return 0, errgrpc.ToNative(err)
	}
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

// Adopt makes a container that runs already waited for and its output followed.
func (r *Runtime) Adopt(j *task.Job, pid uint32) {
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
	sig, err := signal.ParseSignal(signalName(j.Container(), r.imageStopSignal(ctx, j)))
	if err != nil {
		r.cfg.Log.Warn("unknown stop signal, sending SIGTERM", zap.String("task", id), zap.Error(err))
		sig, _ = signal.ParseSignal("SIGTERM")
	}
	if err := r.kill(ctx, id, uint32(sig)); err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, time.Duration(grace(j.Container())*float64(time.Second)))
	exit, err := r.exits.wait(wait, id)
	cancel()
	if err == nil {
		return &exit, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err := r.kill(ctx, id, 9); err != nil {
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

func (r *Runtime) kill(ctx context.Context, id string, sig uint32) error {
	_, err := r.tasks.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: sig})
	if err != nil {
		if err = errgrpc.ToNative(err); !errdefs.IsNotFound(err) {
			return task.Soon(fmt.Errorf("signal container %s: %w", id, err))
		}
	}
	return nil
}

// deleteTask ends what runs in a container, its shim included. None is fine.
func (r *Runtime) deleteTask(ctx context.Context, id string) error {
	for try := 0; ; try++ {
		_, err := r.tasks.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
		if err = errgrpc.ToNative(err); err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		// runc's shim gives this one no code.
		runs := errdefs.IsFailedPrecondition(err) || strings.Contains(err.Error(), "cannot delete a running process")
		if !runs || try > 50 {
			return trouble(fmt.Errorf("delete the process of container %s: %w", id, err))
		}
		// It runs: end it.
		if err := r.kill(ctx, id, 9); err != nil {
			return err
		}
		pause(ctx, min(time.Duration(try+1)*5*time.Millisecond, 200*time.Millisecond))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// Release implements task.Runtime.
func (r *Runtime) Release(ctx context.Context, id string) error {
	ctx = r.ns(ctx)
	if err := r.discard(ctx, id); err != nil {
		return err
	}
	// Only now has the shim written the last of the output.
	if err := r.cfg.Logs.Finish(id); err != nil {
		return err
	}
	r.exits.forget(id)
	r.ears.forget(id)
	if err := r.cfg.Attacher.Detach(ctx, id); err != nil {
		return task.Temporary(fmt.Errorf("detach the network of %s: %w", id, err))
	}
	return r.cfg.Volumes.RemoveAnonymous(id)
}
