package wait

import (
	"context"
	"strings"
	"time"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	relist = time.Second // in case events are lost
	settle = 30 * time.Millisecond
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
	var (
		d        = newDisplay(o)
		f        = newFollower(o)
		pace     = pacer{wake: o.Wake, next: 25 * time.Millisecond}
		lastGood = o.Now()
		id       = o.Service.GetMeta().GetId()
	)
	for {
		began := o.Now()
		s, tasks, err := look(ctx, api, id)
		if err == nil {
			err = f.learn(ctx, api, s)
		}
		now := o.Now()
		pace.cost = now.Sub(began)
		switch {
		case ctx.Err() != nil:
			return interrupted(ctx, o.Timeout, f.p.Reasons())
		case fault.Is(err, fault.CodeNotFound):
			return end(fault.NotFound("gone"), "service %s was removed meanwhile", f.name)
		case err != nil && (!fault.Is(err, fault.CodeUnavailable) || now.Sub(lastGood) > outage):
			return err
		case err != nil:
			d.note("cannot reach the managers, trying again: " + err.Error())
			if !pace.wait(ctx, relist) {
				return interrupted(ctx, o.Timeout, f.p.Reasons())
			}
			continue
		}
		lastGood = now
		done, left, err := f.see(ctx, api, s, tasks, now)
		d.note(f.told)
		d.draw(f.p, left)
		if err != nil {
			return err
		}
		if done {
			if !f.canary {
				d.finish(f.name, f.p.Job)
			}
			return nil
		}
		remaining := relist
		if left > 0 {
			remaining = left
		}
		if !pace.wait(ctx, remaining) {
			return interrupted(ctx, o.Timeout, f.p.Reasons())
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
			return interrupted(ctx, o.Timeout, nil)
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
			return interrupted(ctx, o.Timeout, nil)
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

func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, ErrTimeout)
}

// interrupted is why a wait ended early; reasons hold up what was waited for.
func interrupted(ctx context.Context, limit time.Duration, reasons []string) error {
	if context.Cause(ctx) != ErrTimeout {
		return context.Cause(ctx)
	}
	text := ""
	if len(reasons) > 0 {
		text = ": " + strings.Join(reasons[:min(3, len(reasons))], "; ")
	}
	return end(ErrTimeout, "timed out after %s%s", limit, text)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
