package ctrd

import (
	"context"
	"io"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"

	"skep.dev/libs/id"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/ocispec"
	"skep.dev/services/node-agent/internal/probe"
)

const (
	// probeMark is the environment variable that a probe's command and all it starts carry.
	probeMark = "SKEP_PROBE"
	// clearLimit bounds what clearing up after a probe waits for.
	clearLimit = 10 * time.Second
	// startLimit is how long the start of a command may take: a container's first processes take long on a busy node.
	startLimit = 30 * time.Second
	// lastOutput is how long the end of the output is waited for once every process of a probe has ended.
	lastOutput = time.Second
)

// Probe implements probe.Commands. The name makes the command's id in its container: what a killed agent left of an
// earlier probe of that name is found by it, and two at once cannot be.
func (r *Runtime) Probe(ctx context.Context, taskID, name string, args []string, out io.Writer, started func()) (int, error) {
	ctx = r.ns(ctx)
	req := &skepv1.ExecRequest{TaskId: taskID, Args: args}
	t, proc, err := r.execIn(ctx, req)
	if err != nil {
		return 0, err
	}
	left, before := r.leftovers(taskID, name), r.leftovers(taskID, name)
	// A mark of this run's own: one that was ended by the next, and clears up, must not end the next in turn.
	left.mark += "." + id.New()
	proc.Env = ocispec.SetEnv(proc.Env, left.mark)
	execID := "probe-" + name
	create := func() (containerd.Process, error) {
		return t.Exec(ctx, execID, proc, cio.NewCreator(cio.WithFIFODir(r.execDir()), cio.WithStreams(nil, out, out)))
	}
	p, err := create()
	// Whose it was may be clearing it up as well, and containerd takes its time over that.
	for end := time.Now().Add(clearLimit); errdefs.IsAlreadyExists(err) && ctx.Err() == nil && time.Now().Before(end); {
		before.kill(0)
		r.forgetProbe(ctx, t, execID)
		if p, err = create(); err != nil {
			pause(ctx, killPause)
		}
	}
	if err != nil {
		return 0, execFault(req, err)
	}
	clean, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel() // ends the wait of one that could not be deleted
	exited, err := p.Wait(clean)
	if err != nil {
		r.clearProbe(clean, p)
		return 0, execFault(req, err)
	}
	// A start that is cut off goes on in the shim: it is awaited, then ended.
	starting, stop := context.WithTimeout(clean, startLimit)
	err = p.Start(starting)
	stop()
	if err != nil {
		left.kill(0)
		r.clearProbe(clean, p)
		if reason := cannotRun(err); reason != "" {
			return 0, &probe.CommandError{Reason: reason}
		}
		return 0, execFault(req, err)
	}
	started()
	if st, ok := statOf(int(p.Pid())); ok {
		left.since = st.began
	}
	code, err := waitProbe(ctx, p, exited, left.since)
	left.kill(p.Pid())
	r.clearProbe(clean, p)
	return int(code), err
}

// lostCheck is how often a command that is waited for is looked for: an answer that containerd loses, as when the command
// was ended by another agent, must not become a timeout.
const lostCheck = time.Second

func waitProbe(ctx context.Context, p containerd.Process, exited <-chan containerd.ExitStatus, began uint64) (uint32, error) {
	tick := time.NewTicker(lostCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case st := <-exited:
			code, _, err := st.Result()
			return code, err
		case <-tick.C:
			if st, ok := statOf(int(p.Pid())); ok && !st.dead && st.began == began {
				continue
			}
			st, err := p.Status(ctx)
			switch {
			case err != nil:
				return 0, err
			case st.Status == containerd.Stopped:
				return st.ExitStatus, nil
			}
		}
	}
}

// cannotRun says why the container cannot run a command, as far as runc's words tell: it has no such program, may not run
// it, or has no process left for it. "" for what is the node's trouble.
func cannotRun(err error) string {
	if !strings.Contains(err.Error(), "exec failed") { // not runc's: containerd's socket may be no such file either
		return ""
	}
	text := startError(err).Error()
	for _, s := range []string{
		"executable file not found", "no such file", "permission denied", "exec format error", "is a directory", "chdir to cwd",
		"resource temporarily unavailable",
	} {
		if strings.Contains(text, s) {
			return strings.TrimPrefix(text, "starting container failed: ")
		}
	}
	return ""
}

// clearProbe reads the last of the output and makes containerd forget a command whose processes have been killed.
func (r *Runtime) clearProbe(ctx context.Context, p containerd.Process) {
	ctx, cancel := context.WithTimeout(ctx, clearLimit)
	defer cancel()
	read := make(chan struct{})
	go func() { defer close(read); p.IO().Wait() }()
	select {
	case <-read:
	case <-time.After(lastOutput): // something holds the other end that is not the probe's any more
	}
	_ = p.IO().Close() // ends the reading; Delete waits for it
	// It may take a moment to be seen dead. What cannot be deleted now is found by its name at the next probe.
	_, _ = p.Delete(ctx, containerd.WithProcessKill)
}

// forgetProbe makes containerd forget a command that an earlier agent began.
func (r *Runtime) forgetProbe(ctx context.Context, t containerd.Task, execID string) {
	ctx, cancel := context.WithTimeout(ctx, clearLimit)
	defer cancel()
	if p, err := t.LoadProcess(ctx, execID, nil); err == nil {
		_, _ = p.Delete(ctx, containerd.WithProcessKill) // the next try to begin one says what is wrong
	}
}

// strayProbes ends what a killed agent left of its probes in a task's container.
func (r *Runtime) strayProbes(taskID string) {
	for _, k := range []probe.Kind{probe.Health, probe.Ready} {
		r.leftovers(taskID, string(k)).kill(0)
	}
}

// leftovers finds what any run of a probe has left.
func (r *Runtime) leftovers(taskID, name string) leftovers {
	return leftovers{mark: probeMark + "=" + taskID + "." + name, processes: func() []int { return r.cg.Processes(r.CgroupPath(taskID)) }}
}
