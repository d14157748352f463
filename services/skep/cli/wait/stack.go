package wait

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// StackAPI is what waiting for a stack needs of the cluster.
type StackAPI interface {
	API
	// Stack is the stack as it is now, its spec included.
	Stack(ctx context.Context) (*skepv1.Stack, error)
	// Services are those the stack has now.
	Services(ctx context.Context) ([]*skepv1.Service, error)
	// TasksOf are the tasks of several services, also of those that are gone.
	TasksOf(ctx context.Context, serviceIDs []string) ([]*skepv1.Task, error)
}

// StackOptions of one wait for a stack. Of Options it takes how to wait and where to tell; Service, Hold, Before, Run and
// AnyRevision are each service's own and are found here.
type StackOptions struct {
	Options
	Stack *skepv1.Stack // as the deploy left it
	// Was holds the services from before the deploy, by name.
	Was map[string]*skepv1.Service
	// Changed holds the names of the services that the deploy makes or changes.
	Changed map[string]bool
	// Watch is how long a service that was changed must run before it counts.
	Watch func(was, now *skepv1.Service) time.Duration
}

// Failure is one service that did not become what was asked for, and why.
type Failure struct {
	Service *skepv1.Service
	Err     error // is one of ErrRolledBack, ErrPaused, ErrGaveUp, ErrStopped, ErrAway
}

// StackError is how a wait for a stack ends when the others are done and these failed.
type StackError struct {
	Failures []Failure
	// Blocked are the services that wait for one of those.
	Blocked []string
}

func (e *StackError) Error() string {
	var texts []string
	for _, f := range e.Failures {
		texts = append(texts, fmt.Sprintf("service %s: %v", f.Service.GetSpec().GetName(), f.Err))
	}
	return strings.Join(texts, "; ")
}

// ErrStuck ends a wait for objects of a stack that cannot be made or removed.
var ErrStuck = errors.New("stuck")

// stuckAfter is how long the same problems must stand before nobody is expected to solve them soon.
const stuckAfter = 30 * time.Second

// stackView is what a wait knows of a stack from look to look.
type stackView struct {
	api       StackAPI
	o         StackOptions
	followers map[string]*follower
	failed    map[string]Failure
	problems  string
	stuck     time.Time
}

// stackLook is what one look found.
type stackLook struct {
	stack    *skepv1.Stack
	services map[string]*skepv1.Service
	tasks    map[string][]*skepv1.Task // by service id
}

func lookStack(ctx context.Context, api StackAPI) (*stackLook, error) {
	st, err := api.Stack(ctx)
	if err != nil {
		return nil, err
	}
	list, err := api.Services(ctx)
	if err != nil {
		return nil, err
	}
	l := &stackLook{stack: st, services: map[string]*skepv1.Service{}, tasks: map[string][]*skepv1.Task{}}
	var ids []string
	for _, s := range list {
		l.services[s.GetSpec().GetName()] = s
		ids = append(ids, s.GetMeta().GetId())
	}
	if len(ids) == 0 {
		return l, nil
	}
	tasks, err := api.TasksOf(ctx, ids)
	for _, t := range tasks {
		l.tasks[t.ServiceId] = append(l.tasks[t.ServiceId], t)
	}
	return l, err
}

// Deployed waits until every service of a stack's revision runs as it asks.
func Deployed(ctx context.Context, api StackAPI, o StackOptions) error {
	ctx, cancel := withTimeout(ctx, o.Timeout)
	defer cancel()
	var (
		v        = &stackView{api: api, o: o, followers: map[string]*follower{}, failed: map[string]Failure{}}
		d        = newStackDisplay(o.Options)
		pace     = pacer{wake: o.Wake, next: 25 * time.Millisecond}
		lastGood = o.Now()
		rows     []row
	)
	for first := true; ; first = false {
		began := o.Now()
		l, err := lookStack(ctx, api)
		var left time.Duration
		if err == nil {
			if err = v.overtaken(l.stack); err != nil {
				return err
			}
			rows, left, err = v.judge(ctx, l, o.Now())
		}
		now := o.Now()
		pace.cost = now.Sub(began)
		switch {
		case ctx.Err() != nil:
			return interrupted(ctx, o.Timeout, reasonsOf(rows))
		case fault.Is(err, fault.CodeNotFound):
			return end(fault.NotFound("gone"), "stack %s was removed meanwhile", o.Stack.GetName())
		case err != nil && (!fault.Is(err, fault.CodeUnavailable) || now.Sub(lastGood) > outage):
			return err
		case err != nil:
			d.note("cannot reach the managers, trying again: " + err.Error())
			left = relist
		default:
			lastGood = now
			over, err := v.over(l.stack, rows, now)
			if !over || !first || err != nil {
				d.rows(rows, left, over) // what was all well at the first look needs no view
			}
			if over {
				return err
			}
		}
		if left == 0 {
			left = relist
		}
		if !pace.wait(ctx, left) {
			return interrupted(ctx, o.Timeout, reasonsOf(rows))
		}
	}
}

// overtaken is the error of a wait for what somebody else has changed meanwhile.
func (v *stackView) overtaken(st *skepv1.Stack) error {
	switch want := v.o.Stack; {
	case st.GetMeta().GetId() != want.GetMeta().GetId(), st.GetState() == skepv1.StackState_STACK_STATE_REMOVING:
		return end(ErrStopped, "stack %s was removed meanwhile", want.GetName())
	case st.GetRevision() > want.GetRevision():
		return end(ErrStopped, "revision %d of stack %s, by %s, took the place of this one, %d", st.Revision, st.Name, Who(st.Author, st.AuthorAddress), want.Revision)
	}
	return nil
}

// Who names an author with the address that the request came from.
func Who(author, address string) string {
	if address == "" || address == "local" {
		return orElse(author, "somebody")
	}
	return orElse(author, "somebody") + " (" + address + ")"
}

// judge makes a row of every service that the revision asks for; left is the shortest time that one must still be seen
// to run.
func (v *stackView) judge(ctx context.Context, l *stackLook, now time.Time) ([]row, time.Duration, error) {
	var rows []row
	var least time.Duration
	problems := map[string]string{}
	for _, p := range l.stack.GetProblems() {
		if p.Kind == "service" {
			problems[p.Name] = p.Text
		}
	}
	for _, want := range v.o.Stack.GetSpec().GetServices() {
		r := row{name: want.Name, dependsOn: want.DependsOn}
		s := l.services[want.Name]
		switch was := v.o.Was[want.Name]; {
		case s == nil:
			r.text, r.reason = "not created yet", problems[want.Name]
		case l.stack.GetState() == skepv1.StackState_STACK_STATE_DEPLOYING && v.o.Changed[want.Name] && was != nil && was.Revision == s.Revision:
			r.text, r.reason = "not changed yet", problems[want.Name]
		default:
			left, err := v.follow(ctx, &r, s, l.tasks[s.GetMeta().GetId()], now)
			if err != nil {
				return nil, 0, err
			}
			if left > 0 && (least == 0 || left < least) {
				least = left
			}
		}
		rows = append(rows, r)
	}
	block(rows)
	return rows, least, nil
}

// follow judges one service; the error is of the look, not of the service.
func (v *stackView) follow(ctx context.Context, r *row, s *skepv1.Service, tasks []*skepv1.Task, now time.Time) (time.Duration, error) {
	name := s.GetSpec().GetName()
	if s.GetSpec().GetSchedule() != nil {
		r.done, r.text = true, "runs at its times"
		return 0, nil
	}
	f := v.followers[name]
	if f == nil {
		o := Options{Service: s, Now: v.o.Now, Rollback: v.o.Rollback}
		if v.o.Changed[name] {
			was := v.o.Was[name]
			o.Before, o.Hold = was.GetUpdateStatus(), v.o.Watch(was, s)
		} else {
			// What is kept was rolled back before, if at all: to what is asked for now.
			o.Rollback = true
		}
		f = newFollower(o)
		v.followers[name] = f
	}
	if err := f.learn(ctx, v.api, s); err != nil {
		return 0, err
	}
	done, left, err := f.see(ctx, v.api, s, tasks, now)
	r.progress = f.p
	if was, is := v.failed[name]; is {
		err = was.Err // it is not over again because somebody looks into it
	}
	switch {
	case err != nil:
		v.failed[name] = Failure{s, err}
		r.failed, r.text = true, strings.SplitN(err.Error(), "\n", 2)[0]
	case done:
		r.done, r.text = true, "converged"
		r.reason = f.told
	case left > 0:
		r.text = "runs; watching it"
	default:
		r.text, r.reason = r.progressText()
	}
	return left, nil
}

// over: nothing more is to be expected. The error is what failed.
func (v *stackView) over(st *skepv1.Stack, rows []row, now time.Time) (bool, error) {
	made := st.GetState() == skepv1.StackState_STACK_STATE_DEPLOYED
	if err := v.stuckOn(st, now); err != nil && !made {
		return true, err
	}
	var blocked []string
	for _, r := range rows {
		switch {
		case r.blocked:
			blocked = append(blocked, r.name)
		case !r.done && !r.failed:
			return false, nil
		}
	}
	if len(v.failed) == 0 {
		return made, nil
	}
	e := &StackError{Blocked: blocked}
	for _, r := range rows {
		if f, is := v.failed[r.name]; is {
			e.Failures = append(e.Failures, f)
		}
	}
	return true, e
}

// stuckOn is the error of problems that stand for long.
func (v *stackView) stuckOn(st *skepv1.Stack, now time.Time) error {
	var texts []string
	for _, p := range st.GetProblems() {
		texts = append(texts, problemText(p))
	}
	if all := strings.Join(texts, "; "); all != v.problems {
		v.problems, v.stuck = all, now
	}
	if v.problems == "" || now.Sub(v.stuck) < stuckAfter {
		return nil
	}
	return end(ErrStuck, "stack %s is not as it was asked to be: %s\nIt is tried again and again; see `skep stack ps %s`.", st.GetName(), v.problems, st.GetName())
}

func problemText(p *skepv1.StackProblem) string {
	return fmt.Sprintf("%s %s: %s", p.GetKind(), p.GetName(), p.GetText())
}

// block marks the services that wait, directly or not, for one that failed.
func block(rows []row) {
	failed := map[string]bool{}
	for _, r := range rows {
		failed[r.name] = r.failed
	}
	for again := true; again; {
		again = false
		for i, r := range rows {
			if r.done || r.failed || r.blocked {
				continue
			}
			at := slices.IndexFunc(r.dependsOn, func(d *skepv1.Dependency) bool { return failed[d.Service] })
			if at >= 0 {
				rows[i].blocked, rows[i].text, rows[i].reason = true, "waits for "+r.dependsOn[at].Service+", which failed", ""
				failed[r.name], again = true, true
			}
		}
	}
}

// StackGone waits until nothing is left of a stack that is being removed: neither its objects nor tasks of its services.
func StackGone(ctx context.Context, api StackAPI, o StackOptions) error {
	ctx, cancel := withTimeout(ctx, o.Timeout)
	defer cancel()
	d := newDisplay(o.Options)
	pace := pacer{wake: o.Wake, next: 25 * time.Millisecond}
	lastGood := o.Now()
	var ids []string
	for _, m := range o.Stack.GetMembers() {
		if m.Kind == "service" {
			ids = append(ids, m.Id)
		}
	}
	var left []string
	for {
		began := o.Now()
		st, err := api.Stack(ctx)
		gone := fault.Is(err, fault.CodeNotFound) || err == nil && st.GetMeta().GetId() != o.Stack.GetMeta().GetId()
		if gone {
			st, err = nil, nil
		}
		if err == nil && st.GetState() != skepv1.StackState_STACK_STATE_REMOVING && !gone {
			return end(ErrStopped, "stack %s was deployed again meanwhile, by %s", st.GetName(), Who(st.Author, st.AuthorAddress))
		}
		var tasks []*skepv1.Task
		if err == nil && len(ids) > 0 {
			tasks, err = api.TasksOf(ctx, ids)
		}
		now := o.Now()
		pace.cost = now.Sub(began)
		switch {
		case ctx.Err() != nil:
			return interrupted(ctx, o.Timeout, left)
		case err != nil && (!fault.Is(err, fault.CodeUnavailable) || now.Sub(lastGood) > outage):
			return err
		case err != nil:
			d.note("cannot reach the managers, trying again: " + err.Error())
		default:
			lastGood = now
			left = nil
			for _, p := range st.GetProblems() {
				left = append(left, problemText(p))
				d.note(problemText(p))
			}
			d.stopping(tasks)
			if gone && len(tasks) == 0 {
				return nil
			}
		}
		if !pace.wait(ctx, relist) {
			return interrupted(ctx, o.Timeout, left)
		}
	}
}
