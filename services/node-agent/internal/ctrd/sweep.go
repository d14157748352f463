package ctrd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Sweep removes what belongs to no known task: containers, snapshots, leases, networks, anonymous volumes, cgroups, shims.
func (r *Runtime) Sweep(ctx context.Context, known func(task string) bool) error {
	err := r.sweepLeases(r.ns(ctx))
	if err != nil {
		err = fmt.Errorf("sweep leases: %w", err)
	}
	return errors.Join(err, r.Tidy(ctx, known))
}

// Tidy is Sweep while tasks are being made: whatever belongs to a known task, and every lease, is left alone. A
// containerd that died while it made a container may leave a shim behind that neither it nor the task knows of.
func (r *Runtime) Tidy(ctx context.Context, known func(task string) bool) error {
	ctx = r.ns(ctx)
	var failed []error
	note := func(what string, err error) {
		if err != nil {
			failed = append(failed, fmt.Errorf("sweep %s: %w", what, err))
		}
	}
	all, err := r.client.ContainerService().List(ctx)
	note("containers", err)
	unlisted := err != nil
	var stays sync.Map // of these the container could not be removed: it may use its volumes still
	var g errgroup.Group
	g.SetLimit(4)
	for _, c := range all {
		if known(c.ID) {
			continue
		}
		r.cfg.Log.Info("removing a container of no known task", zap.String("task", c.ID))
		g.Go(func() error {
			err := r.discard(ctx, c.ID)
			if err != nil {
				stays.Store(c.ID, true)
			}
			return err
		})
	}
	note("containers", g.Wait())
	note("snapshots", r.sweepSnapshots(ctx, known))
	nets, err := r.cfg.Attacher.List(ctx)
	note("networks", err)
	for _, id := range nets {
		if !known(id) {
			note("networks", r.cfg.Attacher.Detach(ctx, id))
		}
	}
	note("volume subpaths", r.subpaths.sweep(known))
	note("secrets", r.files.Sweep(known))
	if !unlisted {
		note("volumes", r.cfg.Volumes.Sweep(ctx, func(id string) bool {
			_, is := stays.Load(id)
			return is || known(id)
		}))
	}
	r.sweepShims(known)
	for _, id := range r.cg.Groups("/skep/" + r.cfg.NodeID) {
		if !known(id) {
			note("cgroups", r.removeCgroup(ctx, r.CgroupPath(id)))
		}
	}
	return errors.Join(failed...)
}

func (r *Runtime) sweepLeases(ctx context.Context) error {
	list, err := r.client.LeasesService().List(ctx)
	if err != nil {
		return err
	}
	for _, l := range list {
		// Whatever was being made under it is made again.
		if err := r.client.LeasesService().Delete(ctx, leases.Lease{ID: l.ID}); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func (r *Runtime) sweepSnapshots(ctx context.Context, known func(string) bool) error {
	snap := r.client.SnapshotService(snapshotter)
	var gone []string
	err := snap.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		// Committed ones are images' layers; active ones with other names are layers being unpacked.
		if i.Kind == snapshots.KindActive && len(i.Name) == 25 && !known(i.Name) {
			gone = append(gone, i.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range gone {
		if err := snap.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// shims finds the shims of our containers, pid by task id. A containerd that is not ours alone has others, in other
// namespaces.
func (r *Runtime) shims() map[string]int {
	out := map[string]int{}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return out
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", p.Name(), "cmdline"))
		if err != nil || !strings.Contains(string(b), "containerd-shim-runc-v2") {
			continue
		}
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		var id, address, namespace string
		for i := 0; i+1 < len(args); i++ {
			switch args[i] {
			case "-id":
				id = args[i+1]
			case "-address":
				address = args[i+1]
			case "-namespace":
				namespace = args[i+1]
			}
		}
		if address == r.cfg.Address && namespace == Namespace && id != "" {
			out[id] = pid
		}
	}
	return out
}

func (r *Runtime) sweepShims(known func(string) bool) {
	for id, pid := range r.shims() {
		if known(id) {
			continue
		}
		r.cfg.Log.Info("ending a shim of no known task", zap.String("task", id), zap.Int("pid", pid))
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			r.cfg.Log.Warn("end shim", zap.Int("pid", pid), zap.Error(err))
		}
	}
}

// removeCgroup ends what is still in a group of ours and removes it; the kernel takes a moment to let go.
func (r *Runtime) removeCgroup(ctx context.Context, group string) error {
	for try := 0; ; try++ {
		r.cg.Kill(group)
		err := r.cg.Remove(group)
		if err == nil || try == 100 || ctx.Err() != nil {
			return err
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// Clean removes every trace of skep's containers from the node: for leaving a cluster.
func (r *Runtime) Clean(ctx context.Context) error {
	err := r.Sweep(ctx, func(string) bool { return false })
	if cerr := r.removeCgroup(ctx, "/skep/"+r.cfg.NodeID); cerr != nil {
		err = errors.Join(err, cerr)
	}
	return errors.Join(err, Unmount(r.cfg.RunDir))
}

// Unmount detaches every mount at or below a folder, the innermost first.
func Unmount(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var failed []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			failed = append(failed, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(failed...)
}

// Stats is what a task uses.
func (r *Runtime) Stats(id string) (cpu, memory, limit, pids uint64) {
	s := r.cg.Read(r.CgroupPath(id))
	return s.CPUNanos, s.Memory, s.MemoryLimit, s.Pids
}

// ShimPid is the process that watches over a task's container, 0 if there is none.
func (r *Runtime) ShimPid(id string) int { return r.shims()[id] }

// SysResource tells whether limits above this process's own may be given.
func (r *Runtime) SysResource() bool { return r.host.SysResource }
