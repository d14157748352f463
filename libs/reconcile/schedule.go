package reconcile

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/cron"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// onTime is how late a run may begin without counting as missed: a leader may just have changed.
	onTime = 15 * time.Second
	// maxOverlap is how many runs of a job may go at once, whatever its schedule allows: more would only pile up.
	maxOverlap = 50
)

// RunChange is what a plan asks for a job. Services are not the planner's to write: whoever does makes the change if the
// service still is as it was here, so asking twice, or two leaders asking, comes to one run.
type RunChange struct {
	Service  *Service
	Decision *skepv1.RunDecision
	Missed   time.Time // from when a run will count as missed if nothing comes of this, zero when there is none to miss
}

// runs sums up the runs of a job.
type runs struct {
	active int
	over   []finished // oldest first; iteration 0 is the newest, which is always kept
}

type finished struct {
	iteration uint64
	how       outcome
}

func (r *runs) add(iteration uint64, how outcome) {
	if how == going {
		r.active++
		return
	}
	r.over = append(r.over, finished{iteration, how})
}

// excess are the finished runs beyond what is kept of each kind.
func (r *runs) excess(keep [2]int) []uint64 {
	var out []uint64
	var seen [2]int
	for i := len(r.over) - 1; i >= 0; i-- {
		k := 0
		if r.over[i].how == failed {
			k = 1
		}
		if seen[k]++; seen[k] > keep[k] && r.over[i].iteration != 0 {
			out = append(out, r.over[i].iteration)
		}
	}
	return out
}

// decide finds what is due of the job: a run, a time to let pass, runs to forget.
func (p *planner) decide(r *runs) {
	c := &p.v.jobs
	d := &skepv1.RunDecision{Iteration: p.v.iteration, Forget: r.excess(c.keep)}
	if !c.decided.IsZero() {
		d.Decided = timestamppb.New(c.decided)
	}
	reason, missed := p.due(r, d)
	d.Reason = reason
	if d.Due == nil && len(d.Forget) == 0 {
		return
	}
	p.out.Runs = append(p.out.Runs, RunChange{Service: p.v, Decision: d, Missed: missed})
}

// due fills in the newest time of the schedule that has come, if one has, and what is to be done about it. missed is
// when it will be too late for that, or for the next when it is let pass.
func (p *planner) due(r *runs, d *skepv1.RunDecision) (reason string, missed time.Time) {
	c := &p.v.jobs
	if c.schedule == nil {
		return "", missed
	}
	now, still := time.UnixMilli(p.now), max(c.catchUp, onTime)
	if c.decided.IsZero() {
		d.Due, d.Skip = timestamppb.New(now), true
		return "the schedule begins", missed
	}
	base := cron.Base(c.decided, now)
	due := c.schedule.Last(base, now)
	if due.IsZero() {
		if next := c.schedule.Next(base); !next.IsZero() {
			p.wake(next.UnixMilli())
			missed = next.Add(still)
		}
		return "", missed
	}
	if next := c.schedule.Next(due); !next.IsZero() {
		p.wake(next.UnixMilli())
		missed = next.Add(still)
	}
	d.Due = timestamppb.New(due)
	switch late := now.Sub(due); {
	case late > still:
		d.Skip = true
		return fmt.Sprintf("missed: it was noticed %s late", late.Round(time.Second)), missed
	case r.active > 0 && c.overlap == skepv1.Concurrency_CONCURRENCY_FORBID:
		d.Skip = true
		return fmt.Sprintf("run %d still goes", p.v.iteration), missed
	case r.active >= maxOverlap:
		d.Skip = true
		return fmt.Sprintf("%d runs still go", r.active), missed
	}
	return "it is due", due.Add(still)
}
