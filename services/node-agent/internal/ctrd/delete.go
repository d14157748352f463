package ctrd

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"go.uber.org/zap"

	"skep.dev/services/node-agent/internal/task"
)

// shimPatience is how long a shim may take to remove a process that was told to end. One that takes longer hangs.
const shimPatience = 5 * time.Second

// deleteTask ends what runs in a container, its shim included. None is fine.
//
// A containerd that died while it started a container leaves a process that was made and never begun. A shim asked to
// delete that waits 10 s for its output to end, so it is killed first. A shim that does not answer is killed itself;
// containerd clears up after it.
func (r *Runtime) deleteTask(ctx context.Context, id string) error {
	r.made.Delete(id)
	r.endProcess(ctx, id)
	for try := 0; ; try++ {
		call, cancel := context.WithTimeout(ctx, shimPatience)
		_, err := r.tasks.Delete(call, &tasks.DeleteTaskRequest{ContainerID: id})
		cancel()
		if err = errgrpc.ToNative(err); err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		// runc's shim gives the second one no code.
		runs := errdefs.IsFailedPrecondition(err) || strings.Contains(err.Error(), "cannot delete a running process")
		hangs := ctx.Err() == nil && timedOut(err)
		if !runs && !hangs || try > 50 {
			return trouble(fmt.Errorf("delete the process of container %s: %w", id, err))
		}
		if hangs {
			r.killShim(id)
		} else if err := r.kill(ctx, id, 9); err != nil {
			return err
		}
		pause(ctx, min(time.Duration(try+1)*5*time.Millisecond, 200*time.Millisecond))
		if ctx.Err() != nil {
			return trouble(fmt.Errorf("delete the process of container %s: %w", id, ctx.Err()))
		}
	}
}

// endProcess kills a container's process unless it has ended. What goes wrong here, the deletion meets again and tells.
func (r *Runtime) endProcess(ctx context.Context, id string) {
	call, cancel := context.WithTimeout(ctx, shimPatience)
	defer cancel()
	reply, err := r.tasks.Get(call, &tasks.GetRequest{ContainerID: id})
	if err == nil && reply.Process.Status != tasktypes.Status_STOPPED {
		err = r.kill(call, id, 9)
	}
	if err != nil && call.Err() != nil && ctx.Err() == nil {
		r.killShim(id)
	}
}

// killShim ends a shim that does not answer, and what runs under it.
func (r *Runtime) killShim(id string) {
	pid := r.ShimPid(id)
	r.cfg.Log.Warn("a container's shim does not answer, ending it", zap.String("task", id), zap.Int("pid", pid))
	if pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
	}
	r.cg.Kill(r.CgroupPath(id))
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
