// Package ctrd runs tasks on containerd: the daemon itself, images, containers, their exits, exec, and the removal of
// everything that belongs to nobody.
//
// It refuses to know why a task runs; that is package task. Failure story: containerd may be killed at any time:
// containers and shims live on, calls fail as temporary and are made again; exits that were missed are found by listing
// once it is back. The agent may be killed at any time: nothing here is remembered only in memory.
package ctrd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"skep.dev/libs/attach"
	"skep.dev/services/node-agent/internal/cgroup"
	"skep.dev/services/node-agent/internal/files"
	"skep.dev/services/node-agent/internal/logs"
	"skep.dev/services/node-agent/internal/ocispec"
	"skep.dev/services/node-agent/internal/registry"
	"skep.dev/services/node-agent/internal/task"
	"skep.dev/services/node-agent/internal/volume"
)

// Namespace is skep's in containerd.
const Namespace = "skep"

const runcRuntime = "io.containerd.runc.v2"

// Config is what a Runtime needs.
type Config struct {
	Address     string  // containerd's socket
	Daemon      *Daemon // ours, or nil
	NodeID      string
	Hostname    string
	RunDir      string
	BinDir      string
	Attacher    attach.Attacher
	Registries  registry.Config
	Volumes     *volume.Store
	Logs        *logs.Keeper
	Courier     task.Courier // nil: tasks with secrets, configs or registry credentials are rejected
	Parallelism int
	Log         *zap.Logger
	// Pulled, if set, is told of every pull that ended, what it took and why it failed.
	Pulled func(took time.Duration, err error)
}

// Runtime implements task.Runtime.
type Runtime struct {
	cfg      Config
	client   *containerd.Client
	tasks    tasks.TasksClient
	Images   *Images
	host     ocispec.Host
	cg       cgroup.Tree
	path     string
	runc     string
	slots    *semaphore.Weighted
	exits    *exits
	ears     *shimEars
	subpaths subpaths
	files    *files.Store
	made     sync.Map // ids of tasks whose process was made and not begun yet
}

// quiet silences the client library's own lines on standard error: what matters of them comes back as errors.
var quiet = sync.OnceFunc(func() { _ = log.SetLevel("panic") })

// New connects. containerd must answer.
func New(ctx context.Context, cfg Config) (*Runtime, error) {
	quiet()
	if cfg.Parallelism <= 0 {
		cfg.Parallelism = 2 * runtime.NumCPU()
	}
	c, err := containerd.New(cfg.Address, containerd.WithDefaultNamespace(Namespace), containerd.WithTimeout(10*time.Second),
		// Back within moments of a restart, not after grpc's default of seconds.
		containerd.WithExtraDialOpts([]grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 250 * time.Millisecond}, MinConnectTimeout: time.Second})}))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", cfg.Address, err)
	}
	if c, err = withDocuments(c); err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", cfg.Address, err)
	}
	r := &Runtime{
		cfg: cfg, client: c, tasks: c.TaskService(), Images: newImages(c, cfg.Registries, cfg.Log, cfg.Pulled),
		host: ocispec.ThisHost(), cg: cgroup.New("/sys/fs/cgroup"), path: SearchPath(cfg.BinDir),
		subpaths: subpaths{filepath.Join(cfg.RunDir, "subpaths")},
		slots:    semaphore.NewWeighted(int64(cfg.Parallelism)),
	}
	r.exits = newExits(r)
	r.ears = newShimEars(cfg.RunDir, cfg.Log)
	if cfg.Daemon != nil {
		r.ears = cfg.Daemon.ears
	}
	r.ears.onExit(func(id string, e shimExit) { r.exits.ended(id, e.pid, r.exitOf(id, e.code, e.at)) })
	// A runc beside our shim, not whatever the shim finds; without one, the shim's own choice.
	r.runc, _ = Find("runc", r.path)
	// The pipes of an agent that was killed lead nowhere any more.
	if err := os.RemoveAll(r.execDir()); err != nil {
		return nil, errors.Join(fmt.Errorf("clear the run directory: %w", err), c.Close())
	}
	if r.files, err = files.Open(filepath.Join(cfg.RunDir, "files")); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	for _, dir := range []string{r.execDir(), filepath.Join(cfg.RunDir, "runc")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, errors.Join(fmt.Errorf("make run directory: %w", err), c.Close())
		}
	}
	return r, nil
}

func (r *Runtime) execDir() string { return filepath.Join(r.cfg.RunDir, "exec") }

// Version is containerd's.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	v, err := r.client.Version(ctx)
	if err != nil {
		return "", fmt.Errorf("ask containerd's version: %w", err)
	}
	return v.Version, nil
}

// Close lets go of containerd. Containers run on.
func (r *Runtime) Close() error { return r.client.Close() }

// Follow hears of exits until ctx ends. It must run before Start is called.
func (r *Runtime) Follow(ctx context.Context) { r.exits.run(r.ns(ctx)) }

func (r *Runtime) ns(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, Namespace)
}

// CgroupPath is where a task's cgroup is, under each controller.
func (r *Runtime) CgroupPath(id string) string { return "/skep/" + r.cfg.NodeID + "/" + id }

// trouble marks what a restart of containerd cures.
func trouble(err error) error {
	if err == nil {
		return nil
	}
	switch {
	case errdefs.IsUnavailable(err), timedOut(err), strings.Contains(err.Error(), "ttrpc: closed"),
		strings.Contains(err.Error(), "connection reset"), strings.Contains(err.Error(), "error reading from server"):
		return task.Soon(fmt.Errorf("the container runtime is not answering: %w", err))
	case strings.Contains(err.Error(), "no space left on device"):
		return task.NoSpace(fmt.Errorf("no space left on this node's disk: %w", err))
	}
	return err
}

// timedOut: containerd or a shim did not answer in time. Where containerd notices that before we do, which is a race of two
// clocks with one end, its answer has the words and no code.
func timedOut(err error) bool {
	return errdefs.IsDeadlineExceeded(err) || strings.Contains(err.Error(), context.DeadlineExceeded.Error())
}

// List returns all containers and how far they are.
func (r *Runtime) List(ctx context.Context) (map[string]task.Found, error) {
	ctx = r.ns(ctx)
	all, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	out := make(map[string]task.Found, len(all))
	for _, c := range all {
		out[c.ID] = task.Found{Phase: task.PhaseCreated}
	}
	procs, err := r.processes(ctx)
	if err != nil {
		return nil, err
	}
	for id := range out {
		if e, ok := r.ears.exit(id); ok && procs[id] == nil {
			out[id] = task.Found{Phase: task.PhaseStopped, Pid: e.pid, Exit: r.exitOf(id, e.code, e.at)}
		}
	}
	for id, p := range procs {
		switch p.Status {
		case tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
			out[id] = task.Found{Phase: task.PhaseRunning, Pid: p.Pid}
		case tasktypes.Status_STOPPED:
			out[id] = task.Found{Phase: task.PhaseStopped, Pid: p.Pid, Exit: r.exitOf(id, p.ExitStatus, p.ExitedAt.AsTime())}
		}
	}
	return out, nil
}

func (r *Runtime) processes(ctx context.Context) (map[string]*tasktypes.Process, error) {
	reply, err := r.tasks.List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list running containers: %w", errgrpc.ToNative(err))
	}
	out := make(map[string]*tasktypes.Process, len(reply.Tasks))
	for _, p := range reply.Tasks {
		out[p.ID] = p
	}
	return out, nil
}

// exitOf reads the cause while it can be read: with the container, its cgroup goes.
func (r *Runtime) exitOf(id string, code uint32, at time.Time) task.Exit {
	e := task.Exit{Code: int32(code), At: at}
	if code == 137 {
		// The cgroup stays until the container is deleted: its own count tells an OOM kill from any other.
		e.OOM = r.cg.OOMKills(r.CgroupPath(id)) > 0
		e.Limit = r.cg.MemoryLimit(r.CgroupPath(id))
	}
	return e
}
