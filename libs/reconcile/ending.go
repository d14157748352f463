package reconcile

import (
	"fmt"
	"slices"
	"time"

	"skep.dev/libs/partition"
	skepv1 "skep.dev/proto/skep/v1"
)

// Who replaces a task that was told to stop waits until it has: two at once may be one too many for what they work on.
// An agent that is heard and still has the task is waited for as long as it takes, since nobody else can know. Of one
// that does not say, the task's own grace period and the kill after it are waited for.

// grace is how long the task may take between the signal to stop and the kill, in ms.
func (t *Task) grace() int64 {
	r := t.Service.revs[t.Revision]
	if r == nil {
		r = t.Service.current
	}
	if r == nil {
		return 0
	}
	return r.grace
}

// stopTime is what is left of the time that a task which was told to stop may take, in ms; 0 = it is over, or was
// noted by a clock that has been put back since.
func (p *planner) stopTime(o *Task) int64 {
	all := o.grace() + stopPatience
	left := o.VerdictAt + all - p.now
	if left <= 0 || left > all {
		return 0
	}
	return left
}

// stopping: the task's agent is heard, has read that it should stop, and says that it has not stopped yet.
func (t *Task) stopping() bool {
	n := t.Node()
	return n != nil && n.Exists && n.State == skepv1.NodeState_NODE_STATE_READY && n.hasStatus &&
		t.Reported && t.Seen <= Running && t.DesiredAt != 0 && n.applied >= t.DesiredAt
}

// unbegun: it was told to stop before it ran, and its agent has read that: it never will.
func (t *Task) unbegun() bool {
	n := t.Node()
	return t.Desired > Complete && t.Seen < Starting && n != nil && n.hasStatus && t.DesiredAt != 0 && n.applied >= t.DesiredAt
}

// predecessors are the tasks that ran in a unit before, also those that a scale removed from it and that have not stopped.
func (p *planner) predecessors(u *unit) []*Task {
	if len(p.removed) == 0 {
		return u.tasks
	}
	all := slices.Clone(u.tasks)
	for _, t := range p.removed {
		if u.node != nil && t.Node() == u.node || u.node == nil && t.Slot == u.slot {
			all = append(all, t)
		}
	}
	return all
}

// holdsUp: t, which is prepared, must not run yet for o's sake.
func (p *planner) holdsUp(o, t *Task) bool {
	switch {
	case p.mayRun(o):
		return true
	case o.Node() == t.Node():
		return !o.quiet() // the same agent stops one and starts the other, and they share its resources and ports
	case o.stopped(), o.unbegun(), p.startFirst() && !p.v.job() && !p.v.alone(t.Revision):
		return false
	}
	left := p.stopTime(o)
	if left > 0 {
		p.wake(p.now + left) // then it is begun, or a word is due
	}
	return left > 0 || o.stopping()
}

// mayRun: o's node is not heard, and will have ended it by itself (--on-partition stop) only later.
func (p *planner) mayRun(o *Task) bool {
	n, r := o.Node(), o.Service.revs[o.Revision]
	if n == nil || !n.Exists || n.fenced || n.State != skepv1.NodeState_NODE_STATE_DOWN || r == nil || !r.stops || o.Verdict == Orphaned || o.quiet() {
		return false
	}
	until := n.Since + partition.Hold(p.s.period, time.Duration(o.grace())*time.Millisecond).Milliseconds()
	if p.now >= until {
		return false
	}
	p.wake(until)
	return true
}

// stopped: o will not run any more, as far as anyone can know.
func (p *planner) stopped(o *Task) bool { return o.stopped() && !p.mayRun(o) }

// sayHeldUp tells, in the record of a task, of one that it waits for longer than that should take.
func (p *planner) sayHeldUp(t, o *Task) {
	alone := p.mayRun(o)
	if p.stopTime(o) > 0 && !alone || o.Node() == nil {
		return
	}
	why := fmt.Sprintf("waits for task %s on node %s, which was told to stop and has not", o.ID, o.Node().Hostname())
	if alone {
		why = fmt.Sprintf("waits until node %s, which is not heard, has ended task %s by itself (--on-partition stop)", o.Node().Hostname(), o.ID)
	}
	if t.more().Err == why {
		return
	}
	p.change(Change{Old: t, Node: t.Node(), Verb: Hold, Reason: why, New: t.copyWith(func(n *Task) { n.edit().Err = why })})
}
