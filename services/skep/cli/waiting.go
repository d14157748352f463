package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"skep.dev/libs/api"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/wait"
)

// stableFor is how long tasks must run before create and scale call it done. It is short on purpose: a service that is
// to be watched longer says so with --update-monitor.
const stableFor = time.Second

// defaultMonitor is an update's own watch, Swarm's default.
const defaultMonitor = 5 * time.Second

// waitFlags are those of every command that waits.
type waitFlags struct {
	detach, quiet bool
	timeout       time.Duration
}

func (w *waitFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&w.detach, "detach", "d", false, "Return at once instead of waiting for the tasks")
	f.BoolVarP(&w.quiet, "quiet", "q", false, "Do not show progress")
	f.Var((*timeoutFlag)(&w.timeout), "timeout", "Stop waiting after this long, with exit status 4 (0 = wait as long as it takes)")
}

// timeoutFlag is a duration that is refused before anything changes when it makes no sense.
type timeoutFlag time.Duration

func (t *timeoutFlag) String() string {
	if *t == 0 {
		return "" // help shows no default
	}
	return time.Duration(*t).String()
}

func (t *timeoutFlag) Type() string { return "duration" }

func (t *timeoutFlag) Set(s string) error {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a duration: write it as 10s, 1m30s or 500ms", s)
	case d < 0:
		return errors.New("timeout cannot be negative")
	}
	*t = timeoutFlag(d)
	return nil
}

// waitAPI is the part of the API that waiting needs.
type waitAPI struct{ a *app }

func (w waitAPI) Service(ctx context.Context, id string) (*skepv1.Service, error) {
	return w.a.service(impatient(ctx), id)
}

func (w waitAPI) Tasks(ctx context.Context, id string) ([]*skepv1.Task, error) {
	return w.a.tasks(impatient(ctx), filter("service", id))
}

// reachable leaves out the tasks of nodes that are down: nobody can say when those have stopped, so a removal does not wait for them.
type reachable struct {
	waitAPI
	down map[string]bool // the nodes it left out, by name
}

func (r reachable) Tasks(ctx context.Context, id string) ([]*skepv1.Task, error) {
	list, err := r.waitAPI.Tasks(ctx, id)
	if err != nil {
		return nil, err
	}
	return r.of(ctx, list)
}

func (r reachable) of(ctx context.Context, list []*skepv1.Task) ([]*skepv1.Task, error) {
	if len(list) == 0 {
		return nil, nil
	}
	nodes, err := r.a.nodes(impatient(ctx))
	if err != nil {
		return nil, err
	}
	down := map[string]string{}
	for _, n := range nodes {
		if n.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_DOWN {
			down[n.GetMeta().GetId()] = n.GetDescription().GetHostname()
		}
	}
	return slices.DeleteFunc(list, func(t *skepv1.Task) bool {
		name, is := down[t.GetNodeId()]
		if is {
			r.down[name] = true
		}
		return is
	}), nil
}

func (w waitAPI) Revisions(ctx context.Context, id string) ([]*skepv1.Revision, error) {
	return w.a.revisions(impatient(ctx), id)
}

func (w waitAPI) Explain(ctx context.Context, id string) (*skepv1.ExplainReply, error) {
	return call(impatient(ctx), w.a, api.ServiceExplain, &skepv1.ExplainRequest{Ref: id})
}

// watch wakes whenever an event names one of the words, ids mostly, or a node changes.
func (a *app) watch(ctx context.Context, words ...string) (<-chan struct{}, func(), error) {
	nc, err := a.conn(ctx)
	if err != nil {
		return nil, nil, err
	}
	wake := make(chan struct{}, 1)
	nodes := strings.TrimSuffix(subject.Event("node", "", ""), "..") + "."
	sub, err := nc.Subscribe(subject.AllEvents, func(m *nats.Msg) {
		named := func(word string) bool {
			return bytes.Contains(m.Data, []byte(word)) || strings.Contains(m.Subject, word)
		}
		if !slices.ContainsFunc(words, named) && !strings.HasPrefix(m.Subject, nodes) {
			return
		}
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("watch the events of %s: %w", strings.Join(words, ", "), err)
	}
	return wake, func() { _ = sub.Unsubscribe() }, nil // the connection may be gone by then
}

func (a *app) waitOptions(s *skepv1.Service, w *waitFlags) wait.Options {
	fd, terminal := terminalOf(a.Err)
	return wait.Options{
		Service: s, Hold: stableFor, Timeout: w.timeout, Out: a.Err, Quiet: w.quiet, Now: a.Now, Terminal: terminal,
		Width: func() int {
			if width, _, err := term.GetSize(fd); terminal && err == nil {
				return width
			}
			return 80
		},
	}
}

// terminalOf is the terminal behind a stream, if there is one.
func terminalOf(v any) (fd int, ok bool) {
	if w, is := v.(*plain.Writer); is {
		v = w.Raw()
	}
	f, is := v.(*os.File)
	if !is {
		return 0, false
	}
	fd = int(f.Fd())
	return fd, term.IsTerminal(fd)
}

// converge waits for a changed service.
func (a *app) converge(ctx context.Context, w *waitFlags, o wait.Options) error {
	if w.detach {
		return nil
	}
	wake, stop, err := a.watch(ctx, o.Service.GetMeta().GetId())
	if err != nil {
		return err
	}
	defer stop()
	o.Wake = wake
	err = wait.Converge(ctx, waitAPI{a}, o)
	if errors.Is(err, wait.ErrPaused) || errors.Is(err, wait.ErrRolledBack) || errors.Is(err, wait.ErrGaveUp) {
		a.postMortem(ctx, o.Service)
	}
	return a.outcome(o, err)
}

// waitRemoved waits until a removed service's tasks are gone.
func (a *app) waitRemoved(ctx context.Context, s *skepv1.Service, w *waitFlags) error {
	if w.detach {
		return nil
	}
	o := a.waitOptions(s, w)
	wake, stop, err := a.watch(ctx, s.GetMeta().GetId())
	if err != nil {
		return err
	}
	defer stop()
	o.Wake = wake
	api := reachable{waitAPI{a}, map[string]bool{}}
	if err := a.outcome(o, wait.Gone(ctx, api, o)); err != nil {
		return err
	}
	for _, node := range slices.Sorted(maps.Keys(api.down)) {
		a.warnf("node %s is down: what it runs of %s stops when it returns; if it never will: skep node rm %s", node, s.GetSpec().GetName(), node)
	}
	return nil
}

// outcome turns how a wait ended into an exit status.
func (a *app) outcome(o wait.Options, err error) error {
	name := o.Service.GetSpec().GetName()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		a.tellf("Operation continuing in background.\nUse `skep service ps %s` to check progress.\n", name)
		return &Failure{Code: ExitCancelled}
	case errors.Is(err, wait.ErrTimeout) && o.Run != 0:
		return &Failure{ExitTimeout, plain.Errorf("%w\nThe run goes on; use `skep service runs %s` or `skep service ps %s` to see where it stands", err, name, name)}
	case errors.Is(err, wait.ErrTimeout):
		return &Failure{ExitTimeout, plain.Errorf("%w\nThe service was changed; use `skep service ps %s` or `skep service explain %s` to see where it stands", err, name, name)}
	case errors.Is(err, wait.ErrRolledBack):
		return &Failure{ExitRolledBack, err}
	case errors.Is(err, wait.ErrAway):
		return &Failure{ExitAway, err}
	case errors.Is(err, wait.ErrPaused):
		return plain.Errorf("%w\nGo on with `skep service update --resume %s`, or go back with `skep service rollback %s`", err, name, name)
	}
	return err
}

func (a *app) warnings(list []string) {
	for _, s := range list {
		a.warnf("%s", s)
	}
}
