// Package probe asks tasks how they are: a command inside the container, an HTTP request, a TCP connection or gRPC's
// health service, each at its interval, and tells when the verdict changes.
//
// It refuses to act on a verdict: an unhealthy task runs on until the scheduler replaces it, and one that is not ready
// until it is ready again. It knows nothing of containerd: commands run behind Commands.
//
// Failure story: what the node itself cannot do (containerd restarts, the task has just ended) is no verdict on the task
// and counts for nothing. A probe that hangs ends at its timeout with all it started; the next one begins only then, so
// probes of one task and kind never overlap. An agent that restarts goes on from the verdict it wrote down.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
)

// Kind is what a probe decides about.
type Kind string

// The kinds. They are also the names under which a probe's command is known in its container.
const (
	Health Kind = "health"
	Ready  Kind = "ready"
)

// Verdict is what is known of a task.
type Verdict int

// The verdicts.
const (
	Unknown Verdict = iota // no probe has decided yet
	Pass
	Fail
)

// OutputLimit is how much of a probe's output is kept, bytes: its end.
const OutputLimit = 4096

const (
	// running bounds the commands that run at a time on a node; those beyond it wait. It is above what a node's tasks
	// need unless most of their commands hang.
	running = 64
)

// Commands runs probe commands in containers.
type Commands interface {
	// Probe runs args as name in a task's container and writes what it prints to out, standard output and errors at the
	// same time. It returns once nothing the command started is left. started is called when the command has begun. When
	// ctx ends, the command and all it started are killed. The error is a *CommandError when the container cannot run that
	// command, ctx's when it was killed; any other says that the node could not do it.
	Probe(ctx context.Context, taskID, name string, args []string, out io.Writer, started func()) (code int, err error)
}

// CommandError says that a container cannot run the command it is probed with.
type CommandError struct{ Reason string }

func (e *CommandError) Error() string { return e.Reason }

// Prober runs the probes of one node.
type Prober struct {
	commands Commands
	starts   *semaphore.Weighted // starting a command is what costs the node
	runs     *semaphore.Weighted
	home     *home
	log      *zap.Logger
}

// New opens the node's own network namespace, to which every thread returns.
func New(c Commands, log *zap.Logger) (*Prober, error) {
	h, err := openHome()
	if err != nil {
		return nil, err
	}
	return &Prober{commands: c, starts: semaphore.NewWeighted(int64(max(2, runtime.NumCPU()))), runs: semaphore.NewWeighted(running), home: h, log: log}, nil
}

// Close lets go of the namespace. No Watch may run any more.
func (p *Prober) Close() error { return p.home.close() }

// Watch is one check of one task.
type Watch struct {
	Kind    Kind
	Check   *Check
	Target  Target
	Started time.Time // when the task began to run
	Verdict Verdict   // what was known of it before
	// Report is told of every change of verdict, and once, with Unknown, of the first failure that does not count. output
	// is what the probe said, OutputLimit at most.
	Report func(v Verdict, output string)
}

// Run probes until ctx ends. Nothing of a probe is left when it returns.
func (p *Prober) Run(ctx context.Context, w Watch) {
	n := p.home.enter(w.Target)
	defer n.close()
	w.loop(ctx, func(ctx context.Context) result { return p.once(ctx, w, n) })
}

// result is what one probe came to; Unknown: nothing can be said.
type result struct {
	verdict Verdict
	output  string
}

func (w *Watch) loop(ctx context.Context, once func(context.Context) result) {
	verdict, streak, told := w.Verdict, 0, false
	began, age := time.Now(), time.Since(w.Started)
	older := func() time.Duration { return age + time.Since(began) }
	timer := time.NewTimer(w.Check.first(verdict))
	defer timer.Stop()
	for tries := 1; ; tries++ {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		r := once(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case r.verdict == Pass:
			streak = 0
			if verdict != Pass {
				verdict = Pass
				w.Report(verdict, r.output)
			}
		case r.verdict == Fail && verdict == Unknown && older() < w.Check.grace():
			if !told {
				told = true
				w.Report(Unknown, r.output)
			}
		case r.verdict == Fail:
			if streak++; streak >= w.Check.Retries && verdict != Fail {
				verdict = Fail
				w.Report(verdict, r.output)
			}
		}
		timer.Reset(jitter(w.Check.pause(verdict, older(), tries)))
	}
}

// jitter makes a pause up to a tenth longer, so that tasks that began together do not stay together.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/10+1) }

// once makes one probe.
func (p *Prober) once(ctx context.Context, w Watch, n *network) result {
	c := w.Check
	if c.Command != nil {
		return p.command(ctx, w)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var err error
	var out string
	switch {
	case c.HTTP != nil:
		out, err = n.http(ctx, c.HTTP.GetPort(), c.HTTP.GetPath())
	case c.GRPC != nil:
		out, err = n.grpc(ctx, c.GRPC.GetPort(), c.GRPC.GetService())
	default:
		out, err = n.tcp(ctx, c.TCP)
	}
	switch {
	case err == nil:
		return result{Pass, tail(out)}
	case errors.Is(err, errNoNetwork):
		return result{Unknown, err.Error()}
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return result{Fail, timedOut(c, err.Error())}
	}
	return result{Fail, tail(err.Error())}
}

func timedOut(c *Check, output string) string {
	text := fmt.Sprintf("Health check exceeded timeout (%v)", c.Timeout)
	if output == "" {
		return text
	}
	if room := OutputLimit - len(text) - 2; len(output) > room {
		output = output[len(output)-room:]
	}
	return text + ": " + output
}

// command runs the check's command. Its time counts from when it has begun: a node that is slow to start it is not the
// task's fault.
func (p *Prober) command(ctx context.Context, w Watch) result {
	if err := p.runs.Acquire(ctx, 1); err != nil {
		return result{}
	}
	defer p.runs.Release(1)
	if err := p.starts.Acquire(ctx, 1); err != nil {
		return result{}
	}
	begun := false
	started := func() {
		if !begun {
			begun = true
			p.starts.Release(1)
		}
	}
	defer started()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var limit *time.Timer
	defer func() {
		if limit != nil {
			limit.Stop()
		}
	}()
	var out tailWriter
	code, err := p.commands.Probe(ctx, w.Target.TaskID, string(w.Kind), w.Check.Command, &out, func() {
		started()
		limit = time.AfterFunc(w.Check.Timeout, func() { cancel(errTimeout) })
	})
	var cannot *CommandError
	switch {
	case errors.As(err, &cannot):
		return result{Fail, tail(cannot.Reason)}
	case errors.Is(context.Cause(ctx), errTimeout) && err != nil:
		return result{Fail, timedOut(w.Check, out.String())}
	case err != nil:
		if ctx.Err() == nil {
			p.log.Debug("no verdict on a task", zap.String("task", w.Target.TaskID), zap.String("check", string(w.Kind)), zap.Error(err))
		}
		return result{Unknown, err.Error()}
	case code != 0:
		text := out.String()
		if text == "" {
			text = fmt.Sprintf("exit status %d", code)
		}
		return result{Fail, text}
	}
	return result{Pass, out.String()}
}

var errTimeout = errors.New("the command took longer than the check's timeout")
