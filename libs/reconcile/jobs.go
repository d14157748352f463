package reconcile

import (
	"fmt"
	"slices"
	"time"

	"skep.dev/libs/constraint"
	"skep.dev/libs/cron"
	skepv1 "skep.dev/proto/skep/v1"
)

// jobControl is what the service's object says of a job's runs.
type jobControl struct {
	schedule  *cron.Schedule // nil: it runs when it is created and updated
	scheduled bool           // it has a schedule, whether or not that can be read
	begun     bool           // iteration names a run
	overlap   skepv1.Concurrency
	catchUp   time.Duration
	decided   time.Time
	earlier   []*skepv1.RunControl // oldest first
	keep      [2]int               // completed ones and others
}

func newJobControl(o *skepv1.Service) jobControl {
	c := jobControl{
		earlier: o.GetRuns(), keep: [2]int{cron.DefaultKeepCompleted, cron.DefaultKeepFailed}, begun: o.GetRun() != nil,
		overlap: skepv1.Concurrency_CONCURRENCY_FORBID,
	}
	s := o.GetSpec().GetSchedule()
	if s == nil {
		c.begun = true
		return c
	}
	c.scheduled = true
	c.overlap, c.catchUp = s.GetConcurrency(), s.GetCatchUp().AsDuration()
	c.keep = [2]int{int(s.GetKeepCompleted()), int(s.GetKeepFailed())}
	if o.GetScheduleDecided() != nil {
		c.decided = o.GetScheduleDecided().AsTime()
	}
	// One that cannot be read was stored by a newer version: it is never due here.
	c.schedule, _ = cron.Parse(s) //nolint:errcheck // see above
	return c
}

// outcome is how a run stands.
type outcome uint8

const (
	going outcome = iota
	completed
	failed
)

// job sees to every run of a job: the newest one, those before it that may still go on, and what is kept of the others.
func (p *planner) job() {
	v := p.v
	by := map[uint64][]*Task{}
	for _, t := range p.sorted {
		by[t.more().Iteration] = append(by[t.more().Iteration], t)
	}
	r := &runs{}
	for _, e := range v.jobs.earlier {
		tasks := by[e.GetIteration()]
		delete(by, e.GetIteration())
		p.earlier(r, e, tasks)
	}
	newest := by[v.iteration]
	delete(by, v.iteration)
	for _, tasks := range by {
		for _, t := range tasks {
			p.unhave(t)
			p.remove(t, "its run of the job is not kept")
		}
	}
	if v.jobs.begun {
		r.add(0, p.one(v.iteration, newest))
	}
	p.decide(r)
}

// goesOn: an earlier run may go beside the newest.
func (c *jobControl) goesOn(e *skepv1.RunControl) bool {
	return c.overlap == skepv1.Concurrency_CONCURRENCY_ALLOW && !e.GetStopped()
}

// outgoing names the run of v that the newest takes the place of and that has not ended on every node, "" when there is
// none. Whoever wants no two runs at once wants no two to meet either: the work may not bear it. A node that is down
// cannot be asked and is not waited for.
func (s *State) outgoing(v *Service) string {
	if !v.job() || !v.jobs.begun {
		return ""
	}
	var run uint64
	for _, t := range v.tasks {
		n := t.more().Iteration
		if n == v.iteration || n <= run || t.stopped() {
			continue
		}
		if !slices.ContainsFunc(v.jobs.earlier, func(e *skepv1.RunControl) bool { return e.GetIteration() == n && v.jobs.goesOn(e) }) {
			run = n
		}
	}
	if run == 0 {
		return ""
	}
	return fmt.Sprintf("waits for run %d of the job to end", run)
}

// earlier sees to a run before the newest.
func (p *planner) earlier(r *runs, e *skepv1.RunControl, tasks []*Task) {
	if p.v.jobs.goesOn(e) {
		r.add(e.GetIteration(), p.one(e.GetIteration(), tasks))
		return
	}
	p.run = e.GetIteration()
	p.group(tasks)
	how, _ := p.stands()
	live := false
	for i := range p.units {
		u := &p.units[i]
		for _, t := range u.tasks {
			switch {
			case t.Desired > Complete:
				p.past(t)
			case t.Node() == nil:
				p.forget(u, t, "a newer run of the job began")
			case t.State() == Complete:
			case t.State() > Running:
				p.stop(t, "it ended: "+t.State().String())
			default:
				live = true
				p.stop(t, fmt.Sprintf("run %d of the job began", p.v.iteration))
			}
		}
	}
	if how == going && !live {
		how = failed // it never will be anything else
	}
	r.add(e.GetIteration(), how)
}

// one brings a run towards its end and says how it stood.
func (p *planner) one(iteration uint64, tasks []*Task) outcome {
	p.run = iteration
	p.group(tasks)
	how, open := p.stands()
	p.closed = p.v.jobs.scheduled && how != going && len(p.units) > 0
	if p.v.mode == globalJob {
		p.global()
		return how
	}
	for i := range p.units {
		p.settle(&p.units[i], false)
	}
	p.fill(min(int(p.v.parallel)-open, int(p.v.replicas)-len(p.units)))
	return how
}

// stands looks at the units of the run at hand: how it is, and how many of them are not over.
func (p *planner) stands() (how outcome, open int) {
	given := 0
	for i := range p.units {
		u := &p.units[i]
		switch {
		case u.done():
		case u.node != nil && p.astray(u):
		case u.node != nil && u.node.lost(), p.over(u):
			given++ // a node that is down must not hold up the runs to come
		default:
			open++
		}
	}
	switch {
	case open > 0, p.v.mode == replicatedJob && len(p.units) < int(p.v.replicas):
		return going, open
	case given > 0:
		return failed, open
	}
	return completed, open
}

// done: one of the unit's tasks ended well.
func (u *unit) done() bool {
	return slices.ContainsFunc(u.tasks, func(t *Task) bool { return t.State() == Complete })
}

// finish sees to a unit whose work is done. A task that was lost may turn out to have done it when its node returns: then
// the one in its place is not needed.
func (p *planner) finish(u *unit) {
	for _, t := range u.tasks {
		n := t.Node()
		switch {
		case t.State() == Complete:
			// What a node said is kept once it is removed and its reports with it: the work must not be done again.
			if n != nil && !n.Exists && t.Verdict == New {
				p.change(Change{Old: t, Node: n, Verb: Judge, Reason: "complete; its node was removed", New: t.copyWith(func(n *Task) {
					n.Verdict, n.VerdictAt = Complete, t.SeenAt
				})})
			}
		case t.Desired > Complete:
			p.past(t)
		case n == nil:
			p.forget(u, t, "its work is done")
		default:
			p.stop(t, "its work is done")
		}
	}
}

// astray: the unit is of a node that is not the job's any more, and nothing of it runs there.
func (p *planner) astray(u *unit) bool {
	n := u.node
	return (!n.Exists || n.drained() || p.v.never || !constraint.MatchAll(p.v.limits, &n.attrs)) && !slices.ContainsFunc(u.tasks, (*Task).wanted)
}
