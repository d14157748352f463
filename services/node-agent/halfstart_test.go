package agent

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	apitypes "github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/ctrd"
)

// A containerd that is killed while it starts a container leaves one that was made and never begun, and sometimes a
// shim that answers nobody. Neither keeps the task from running, nor for as long as a shim waits for output to end.
func TestStartCutInHalf(t *testing.T) {
	n := up(t)
	for name, hang := range map[string]bool{"made and never begun": false, "the shim hangs": true} {
		t.Run(name, func(t *testing.T) {
			ids := n.add(1, n.spec("sleep", "1000"), func(r *skepv1.TaskRecord) { r.NotBeforeUnixMs = time.Now().Add(time.Hour).UnixMilli() })
			n.state(ready, ids...)
			shim := n.create(t, ids[0])
			if hang {
				if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			n.change(func(r *skepv1.TaskRecord) { r.NotBeforeUnixMs = 0 }, ids...)
			n.state(running, ids...)
			// A shim waits 10 s for the output of what was not ended; one that hangs is given 5 s.
			if took := time.Since(began); took > 9*time.Second {
				t.Errorf("the task ran only after %v", took)
			}
			if got := n.svc.runtime.ShimPid(ids[0]); got == shim || got == 0 {
				t.Errorf("shim %d, and %d before", got, shim)
			}
			n.want(shutdown, ids...)
			n.state(shutdown, ids...)
		})
	}
}

// A task that waits for another one to end has its process made meanwhile. Whatever happens to that process, the task
// runs when it may, or ends without having run.
func TestMadeWhileItWaits(t *testing.T) {
	n := up(t)
	made := func(t *testing.T) (id string, shim int) {
		t.Helper()
		ids := n.add(1, n.spec("sleep", "1000"), func(r *skepv1.TaskRecord) { r.Desired = ready })
		n.state(ready, ids...)
		n.awaitMade(t, ids[0])
		return ids[0], n.svc.runtime.ShimPid(ids[0])
	}
	for _, c := range []struct {
		what    string
		between func(t *testing.T, id string, shim int)
		same    bool // it is the process that was made
	}{
		{"nothing", func(*testing.T, string, int) {}, true},
		{"containerd is killed", func(t *testing.T, _ string, _ int) { kill(t, n.svc.daemon.Pid()) }, true},
		{"the agent restarts", func(*testing.T, string, int) { n.halt(); n.start() }, false},
		{"its process is killed", func(t *testing.T, _ string, shim int) { kill(t, child(t, shim)) }, false},
		{"its shim is killed", func(t *testing.T, _ string, shim int) { kill(t, shim) }, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			id, shim := made(t)
			c.between(t, id, shim)
			n.want(running, id)
			n.state(running, id)
			if got := n.svc.runtime.ShimPid(id); (got == shim) != c.same {
				t.Errorf("shim %d, and %d before; the same one: want %v", got, shim, c.same)
			}
			if out, _ := n.exec(id, "echo", "hello"); out != "hello\n" {
				t.Errorf("exec in it: %q", out)
			}
			n.want(shutdown, id)
			if st := n.state(shutdown, id); st.GetExitCode() != 137 && st.GetExitCode() != 143 {
				t.Errorf("how it ended: %v", st)
			}
		})
	}
	t.Run("it is not needed any more", func(t *testing.T) {
		id, shim := made(t)
		n.want(shutdown, id)
		if st := n.state(shutdown, id); st.ExitCode != nil {
			t.Errorf("a task that never ran has an exit code: %v", st)
		}
		awaitGone(t, fmt.Sprint("/proc/", shim))
	})
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// child is the one process a shim has started.
func child(t *testing.T, pid int) (child int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(strings.TrimSpace(string(b)), &child); err != nil {
		t.Fatalf("children of %d: %q: %v", pid, b, err)
	}
	return child
}

// client is containerd's, for what no agent does.
func (n *node) client(t *testing.T) *containerd.Client {
	t.Helper()
	c, err := containerd.New(n.svc.daemon.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// awaitMade returns when containerd has a task's process, which waits to be begun.
func (n *node) awaitMade(t *testing.T, id string) {
	t.Helper()
	ctx, c := namespaces.WithNamespace(t.Context(), ctrd.Namespace), n.client(t)
	await(t, "the process of held task "+id+" to be made", func() bool {
		r, err := c.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
		return err == nil && r.Process.Status == tasktypes.Status_CREATED
	})
}

// create makes a prepared task's process and does not begin it, as a start does that is cut off there. It returns the
// shim's pid.
func (n *node) create(t *testing.T, id string) int {
	t.Helper()
	ctx, c := namespaces.WithNamespace(t.Context(), ctrd.Namespace), n.client(t)
	root, err := c.SnapshotService("overlayfs").Mounts(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	out := "file://" + t.TempDir() + "/out"
	req := &tasks.CreateTaskRequest{ContainerID: id, Stdout: out, Stderr: out}
	for _, m := range root {
		req.Rootfs = append(req.Rootfs, &apitypes.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if _, err := c.TaskService().Create(ctx, req); err != nil {
		t.Fatal(err)
	}
	return n.svc.runtime.ShimPid(id)
}
