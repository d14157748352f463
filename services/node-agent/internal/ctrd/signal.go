package ctrd

import (
	"context"
	"errors"
	"syscall"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"
)

// target is a container's first process, held so that no other can be meant. containerd starts runc for every signal,
// which takes a tenth of a second and more on a busy node; a grace period is counted from when a signal arrives to when
// the next one does, so these go straight to the kernel. Where that cannot be, containerd sends them.
type target struct {
	r  *Runtime
	id string
	fd int // of the process, -1 = ask containerd
}

// aim holds the container's process; close the target after use.
func (r *Runtime) aim(ctx context.Context, id string, pid uint32) *target {
	t := &target{r: r, id: id, fd: -1}
	fd, err := unix.PidfdOpen(int(pid), 0)
	if err != nil {
		return t
	}
	// The number may have passed on to another process before it was opened, not after: as long as the container runs
	// nobody has collected it.
	reply, err := r.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil || reply.Process.Pid != pid || reply.Process.Status != tasktypes.Status_RUNNING {
		_ = unix.Close(fd) // nothing was written to it
		return t
	}
	t.fd = fd
	return t
}

// send sends a signal; a process that has ended already is fine.
func (t *target) send(ctx context.Context, sig syscall.Signal) error {
	if t.fd >= 0 {
		if err := unix.PidfdSendSignal(t.fd, sig, nil, 0); err == nil || errors.Is(err, unix.ESRCH) {
			return nil
		}
	}
	return t.r.kill(ctx, t.id, uint32(sig))
}

func (t *target) close() {
	if t.fd >= 0 {
		_ = unix.Close(t.fd) // nothing was written to it
	}
}
