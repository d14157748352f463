package wait

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	relist = time.Second // in case events are lost
	settle = 30 * time.Millisecond
	// gaveUpAfter is how long a slot must stay without a successor before that is believed.
	gaveUpAfter = 2 * time.Second
	// emptyAfter is how long a global service must stay without a task before "no node suits" is believed when the
	// scheduler does not say.
	emptyAfter = 3 * time.Second
)

// pacer spaces the looks at the cluster: on events, soon after the start, then once a second; never denser than a
// quarter of the time looking takes.
type pacer struct {
	wake <-chan struct{}
	next time.Duration
	cost time.Duration
}

// wait blocks until it is time to look again; false = ctx ended.
func (p *pacer) wait(ctx context.Context, atMost time.Duration) bool {
	p.next = min(p.next*2, relist)
	t := time.NewTimer(min(p.next, max(atMost, settle)))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	case <-p.wake:
	}
	// Events come in bursts: let this one finish.
	quiet := time.NewTimer(max(settle, 4*p.cost))
	defer quiet.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-quiet.C:
	}
	for {
		select {
		case <-p.wake:
		default:
			return true
		}
	}
}

// tries counts looks that failed in a row: a manager that fails over must not end the wait at once.
const outage = 30 * time.Second

// Converge waits until the service runs as it was asked to.
func Converge(ctx context.Context, api API, o Options) error {
	ctx, cancel := withTimeout(ctx, o.Timeout)
	defer cancel()
	d := newDisplay(o)
	var (
		pace      = pacer{wake: o.Wake, next: 25 * time.Millisecond}
		revision  uint64
		fresh     map[uint64]bool
		steady    time.Time // when everything was first seen to run
		gaveUp    time.Time
		empty     time.Time
		lastGood  = o.Now()
		p         *Progress
		id, name  = o.Service.GetMeta().GetId(), o.Service.GetSpec().GetName()
		remaining = relist
		run       = o.Run
	)
	if run == 0 {
		run = o.Service.GetJobIteration()
	}
	for {
		began := o.Now()
		s, tasks, err := look(ctx, api, id)
		if err == nil && s.Revision != revision {
			revision = s.Revision
			fresh, err = freshRevisions(ctx, api, s)
			if err != nil {
				revision = 0
			}
		}
		now := o.Now()
		pace.cost = now.Sub(began)
		switch {
		case ctx.Err() != nil:
			return interrupted(ctx, o, p)
		case fault.Is(err, fault.CodeNotFound):
			return end(fault.NotFound("gone"), "service %s was removed meanwhile", name)
		case err != nil && (!fault.Is(err, fault.CodeUnavailable) || now.Sub(lastGood) > outage):
			return err
		case err != nil:
			d.note("cannot reach the managers, trying again: " + err.Error())
			if !pace.wait(ctx, relist) {
				return interrupted(ctx, o, p)
			}
			continue
		}
		lastGood = now
		status := newStatus(s.UpdateStatus, o.Before)
		if o.AnyRevision {
			status, fresh = nil, revisionsOf(tasks, s.Revision)
		}
		p = assess(s, tasks, fresh)
		if p.Job {
			p = assessJob(s, tasks, run)
			if err := superseded(s, run, p); err != nil {
				d.draw(p, 0)
				return err
			}
		}
		p.Status = status
		switch status.GetState() {
		case "paused":
			d.draw(p, 0)
			return end(ErrPaused, "service update paused: %s", status.Message)
		case "rollback_paused":
			d.draw(p, 0)
			return end(ErrPaused, "service rollback paused: %s", status.Message)
		case "rollback_completed":
			if p.Converged() && !o.Rollback {
				d.draw(p, 0)
				return end(ErrRolledBack, "service rolled back: %s", orElse(s.RollbackReason, status.Message))
			}
		case "canary":
			d.draw(p, 0)
			d.note(status.Message)
			return nil
		}
		busy := status.GetState() == "updating" || status.GetState() == "rollback_started"
		done := p.Converged() && !busy
		if done && p.Global && p.Want == 0 {
			if empty.IsZero() {
				empty = now
			}
			if why, settled := nothingToRun(ctx, api, id, now.Sub(empty)); settled {
				d.note(why)
			} else {
				done = false
			}
		} else {
			empty = time.Time{}
		}
		remaining = relist
		if done {
			if steady.IsZero() {
				steady = now
			}
			left := o.Hold - now.Sub(steady)
			finished := status.GetState() == "completed" || status.GetState() == "rollback_completed"
			if left <= 0 || p.Job || finished {
				d.draw(p, 0)
				d.finish(name, p.Job)
				return nil
			}
			d.draw(p, left)
			remaining = left
		} else {
			steady = time.Time{}
			d.draw(p, 0)
		}
		if g := p.GaveUp(); len(g) > 0 && !busy {
			if gaveUp.IsZero() {
				gaveUp = now
			}
			if now.Sub(gaveUp) >= gaveUpAfter && allSettled(p) {
				if p.Job {
					return end(ErrGaveUp, "job %s failed: %d of %d tasks completed and no more will be started by its restart policy\n%s: %s\nSee `skep service ps %s` and `skep service logs %s`.",
						name, p.Done, p.Want, g[0].Name, orElse(g[0].Reason, "its command failed"), name, name)
				}
				return end(ErrGaveUp, "service %s does not converge: %d of %d tasks run and no more will be started by its restart policy\n%s: %s\nSee `skep service ps %s` and `skep service logs %s`.",
					name, p.Done, p.Want, g[0].Name, orElse(g[0].Reason, "its command ended"), name, name)
			}
		} else {
			gaveUp = time.Time{}
		}
		if !pace.wait(ctx, remaining) {
			return interrupted(ctx, o, p)
		}
	}
}

// Gone waits until a removed service has no tasks left.
func Gone(ctx context.Context, api API, o Options) error {
	ctx, cancel := withTimeout(ctx, o.Timeout)
	defer cancel()
	d := newDisplay(o)
	pace := pacer{wake: o.Wake, next: 25 * time.Millisecond}
	lastGood := o.Now()
	for {
		began := o.Now()
		tasks, err := api.Tasks(ctx, o.Service.GetMeta().GetId())
		now := o.Now()
		pace.cost = now.Sub(began)
		switch {
		case ctx.Err() != nil:
			return interrupted(ctx, o, nil)
		case fault.Is(err, fault.CodeNotFound):
			return nil
		case err != nil && (!fault.Is(err, fault.CodeUnavailable) || now.Sub(lastGood) > outage):
			return err
		case err != nil:
			d.note("cannot reach the managers, trying again: " + err.Error())
		default:
			lastGood = now
			if len(tasks) == 0 {
				d.stopping(tasks)
				return nil
			}
			d.stopping(tasks)
		}
		if !pace.wait(ctx, relist) {
			return interrupted(ctx, o, nil)
		}
	}
}

func look(ctx context.Context, api API, id string) (*skepv1.Service, []*skepv1.Task, error) {
	s, err := api.Service(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	tasks, err := api.Tasks(ctx, id)
	return s, tasks, err
}

func freshRevisions(ctx context.Context, api API, s *skepv1.Service) (map[uint64]bool, error) {
	if s.Revision <= 1 {
		return map[uint64]bool{s.Revision: true}, nil
	}
	revs, err := api.Revisions(ctx, s.GetMeta().GetId())
	if err != nil {
		return nil, err
	}
	return current(s, revs), nil
}

// revisionsOf are all there are tasks of.
func revisionsOf(tasks []*skepv1.Task, newest uint64) map[uint64]bool {
	out := map[uint64]bool{newest: true}
	for _, t := range tasks {
		out[t.Revision] = true
	}
	return out
}

// newStatus hides the status of an update that was over before the change.
func newStatus(now, before *skepv1.UpdateStatus) *skepv1.UpdateStatus {
	if before != nil && proto.Equal(now.GetStartedAt(), before.GetStartedAt()) && now.GetState() == before.GetState() {
		return nil
	}
	return now
}

// nothingToRun tells why a global service has no task, once it is sure that it will not get one.
func nothingToRun(ctx context.Context, api API, id string, since time.Duration) (string, bool) {
	if since < settle {
		return "", false
	}
	r, err := api.Explain(ctx, id)
	if err == nil {
		return r.GetPlacing().GetSummary(), len(r.Next) == 0
	}
	return "the service has no task: no node suits it now", since >= emptyAfter
}

// allSettled: every slot either runs or is beyond hope.
func allSettled(p *Progress) bool {
	for _, s := range p.Slots {
		if !s.Done && !s.GaveUp {
			return false
		}
	}
	return !p.Job || len(p.Slots) >= p.Want
}

func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, ErrTimeout)
}

func interrupted(ctx context.Context, o Options, p *Progress) error {
	if context.Cause(ctx) != ErrTimeout {
		return context.Cause(ctx)
	}
	text := ""
	if p != nil {
		if r := p.Reasons(); len(r) > 0 {
			text = ": " + strings.Join(r[:min(3, len(r))], "; ")
		}
	}
	return end(ErrTimeout, "timed out after %s%s", o.Timeout, text)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
