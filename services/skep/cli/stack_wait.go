package cli

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/wait"
)

// stackAPI is the part of the API that waiting for a stack needs.
type stackAPI struct {
	waitAPI
	id, name string
}

func (w stackAPI) Stack(ctx context.Context) (*skepv1.Stack, error) {
	return w.a.stack(impatient(ctx), w.id)
}

func (w stackAPI) Services(ctx context.Context) ([]*skepv1.Service, error) {
	return w.a.servicesOf(impatient(ctx), w.name)
}

func (w stackAPI) TasksOf(ctx context.Context, ids []string) ([]*skepv1.Task, error) {
	return w.a.tasks(impatient(ctx), filter("service", ids...))
}

// reachableStack leaves out the tasks of nodes that are down, as reachable does.
type reachableStack struct {
	stackAPI
	nodes reachable
}

func (r reachableStack) TasksOf(ctx context.Context, ids []string) ([]*skepv1.Task, error) {
	list, err := r.stackAPI.TasksOf(ctx, ids)
	if err != nil {
		return nil, err
	}
	return r.nodes.of(ctx, list)
}

func (a *app) stackOptions(s *skepv1.Stack, w *waitFlags) wait.StackOptions {
	return wait.StackOptions{Options: a.waitOptions(nil, w), Stack: s}
}

// watchStack wakes whenever an event names the stack, or something whose name begins with the stack's.
func (a *app) watchStack(ctx context.Context, s *skepv1.Stack) (<-chan struct{}, func(), error) {
	return a.watch(ctx, s.GetMeta().GetId(), `"`+s.GetName()+`_`)
}

// convergeStack waits until a changed stack runs as it was asked to.
func (a *app) convergeStack(ctx context.Context, r *skepv1.DeployStackReply, was map[string]*skepv1.Service, f *stackFollow) error {
	s := r.GetStack()
	wake, stop, err := a.watchStack(ctx, s)
	if err != nil {
		return err
	}
	defer stop()
	o := a.stackOptions(s, f.wait)
	o.Wake, o.Was, o.Changed, o.Rollback = wake, was, changedServices(r.Changes), f.rollback
	o.Watch = func(was, now *skepv1.Service) time.Duration {
		if was == nil {
			return stableFor
		}
		return updateHold(was.GetSpec(), now.GetSpec())
	}
	err = wait.Deployed(ctx, stackAPI{waitAPI{a}, s.GetMeta().GetId(), s.GetName()}, o)
	var failed *wait.StackError
	switch {
	case err == nil:
		if !f.wait.quiet && len(o.Changed) > 0 {
			a.tellf("verify: Stack %s converged\n", s.GetName())
		}
		return nil
	case errors.As(err, &failed):
		return a.stackFailed(ctx, s, failed)
	case errors.Is(err, context.Canceled):
		a.tellf("The deploy of stack %s, revision %d, goes on in the background.\nUse `skep stack ps %s` to see how far it is.\n", s.GetName(), s.GetRevision(), s.GetName())
		return &Failure{Code: ExitCancelled}
	case errors.Is(err, wait.ErrTimeout):
		return &Failure{ExitTimeout, plain.Errorf("%w\nThe deploy goes on; use `skep stack ps %s` to see where it stands", err, s.GetName())}
	}
	return err
}

// stackFailed tells which services failed, each with how its newest task ended and an exit status; the worst one wins.
func (a *app) stackFailed(ctx context.Context, s *skepv1.Stack, e *wait.StackError) error {
	var errs []error
	for _, f := range e.Failures {
		a.postMortem(ctx, f.Service)
		err := a.outcome(wait.Options{Service: f.Service}, f.Err)
		code := ExitError
		if of := (*Failure)(nil); errors.As(err, &of) {
			code, err = of.Code, of.Err
		}
		errs = append(errs, &Failure{code, plain.Errorf("%s: %w", f.Service.GetSpec().GetName(), err)})
	}
	if len(e.Blocked) > 0 {
		errs = append(errs, fault.Unavailable("not started, for they depend on what failed: %s", strings.Join(e.Blocked, ", ")))
	}
	errs = append(errs, fault.Unavailable("stack %s, revision %d: %d of %d services failed", s.GetName(), s.GetRevision(), len(e.Failures), len(s.GetSpec().GetServices())))
	return joined(errs)
}

// stackGone waits until a removed stack has nothing left.
func (a *app) stackGone(ctx context.Context, s *skepv1.Stack, w *waitFlags) error {
	wake, stop, err := a.watchStack(ctx, s)
	if err != nil {
		return err
	}
	defer stop()
	o := a.stackOptions(s, w)
	o.Wake = wake
	of := waitAPI{a}
	r := reachableStack{stackAPI{of, s.GetMeta().GetId(), s.GetName()}, reachable{of, map[string]bool{}}}
	err = wait.StackGone(ctx, r, o)
	switch {
	case errors.Is(err, context.Canceled):
		a.tellf("The removal of stack %s goes on in the background.\n", s.GetName())
		return &Failure{Code: ExitCancelled}
	case errors.Is(err, wait.ErrTimeout):
		return &Failure{ExitTimeout, plain.Errorf("%w\nThe removal of stack %s goes on; use `skep stack ps %s` to see what is left", err, s.GetName(), s.GetName())}
	case err != nil:
		return err
	}
	for _, node := range slices.Sorted(maps.Keys(r.nodes.down)) {
		a.warnf("node %s is down: what it runs of %s stops when it returns; if it never will: skep node rm %s", node, s.GetName(), node)
	}
	return nil
}
