package reconcile

import (
	"fmt"
	"slices"

	skepv1 "skep.dev/proto/skep/v1"
)

// unit is what should have exactly one task: a slot, or for global services a node. Tasks are oldest first and hold the
// unit's history too.
type unit struct {
	slot  uint64
	node  *Node
	tasks []*Task

	stale   []*Task // out of date and fine where they are
	drained []*Task
	fresh   *Task // the one that should stay
	created int
	dropped int
	counted bool // in the planner's inflight
	dirty   bool // in the planner's dirty
	begun   bool // the update reached it in this plan
}

const (
	// stopPatience is how long, beyond its own grace period, a task may take to stop: for its node to read that it should,
	// to end it by force and to say so.
	stopPatience = 60_000
	// orphanAfter is how long a node may be down before its tasks count as lost for good.
	orphanAfter = 24 * 3600 * 1000
)

// settle brings a unit towards its one task. frozen: keep what is there, begin nothing (global, node not available).
func (p *planner) settle(u *unit, frozen bool) {
	if p.v.job() && u.done() {
		p.finish(u)
		return
	}
	begin, ended := len(p.out.Changes), false
	for _, t := range u.tasks {
		n := t.Node()
		if t.Desired > Complete {
			p.past(t)
			continue
		}
		switch {
		case n == nil:
			if u.fresh != nil || !p.awaited(u, t) {
				p.forget(u, t, "out of date before it had a node")
			} else {
				u.fresh = t
			}
		case t.State() > Running:
			p.stop(t, "it ended: "+t.State().String())
		case !n.Exists:
			p.orphan(t)
		case n.fenced && (u.node == nil || p.s.needsClaim(t)):
			p.stop(t, "its node was fenced")
		case n.lost() && u.node == nil:
			p.stop(t, "its node is down")
		case n.sick != "" && u.node == nil && t.State() < Starting:
			p.stop(t, "its node cannot begin it: "+n.sick)
		case u.node == nil && p.violates(t), u.node != nil && p.overcommitted(t):
			p.reject(t)
		case n.drained() && p.v.job():
			p.stop(t, "its node is drained") // first: a job's work must not be done twice at once
		case n.drained():
			u.drained = append(u.drained, t)
		case !frozen && p.endUnhealthy(t):
			ended = true // the next plan replaces it, by the restart policy
		case !t.upToDate() && !p.v.job():
			u.stale = append(u.stale, t)
		case u.fresh == nil:
			u.fresh = t
		default: // two of one slot: the one that is further stays, else the older
			worse := t
			if t.State() > u.fresh.State() || u.fresh.Node() == nil {
				worse, u.fresh = u.fresh, t
			}
			if worse.Node() == nil {
				p.forget(u, worse, "a second task of one slot")
			} else {
				p.stop(worse, "a second task of one slot")
			}
		}
	}
	if p.standing != p.v.revision && u.fresh == nil {
		p.keepOne(u)
	}
	switch {
	case u.fresh != nil:
		p.advance(u, frozen)
	case frozen && len(u.stale) == 1 && u.stale[0].Desired == Ready:
		// Out of date, but nothing newer may begin here now: a restart that was under way still ends.
		u.fresh, u.stale = u.stale[0], nil
		p.advance(u, frozen)
	case frozen || ended:
	case len(u.stale) == 1 && len(u.drained) > 0 && p.standing != p.v.revision:
		// What takes over from a drained one while the rollout waits.
		u.fresh, u.stale = u.stale[0], nil
		p.advance(u, frozen)
	case len(u.stale) > 0 && len(u.drained) > 0:
		// First this, then in the next plan the update: never three of one slot.
		for _, t := range u.drained {
			p.stop(t, "its node is drained")
		}
		p.inflight++
	case len(u.stale) > 0:
		u.dirty = true
		p.dirty = append(p.dirty, u)
	case len(u.drained) > 0:
		p.leave(u)
	default:
		p.revive(u)
	}
	if !frozen && !u.dirty && p.standing != p.v.revision && !u.tasks[len(u.tasks)-1].sameCore() {
		p.behind++
	}
	p.trim(u)
	for i := begin; i < len(p.out.Changes)-1; i++ {
		p.out.Changes[i].Glue = true
	}
}

// advance moves the task that should stay on, and those it replaces out of its way.
func (p *planner) advance(u *unit, frozen bool) {
	t := u.fresh
	if t.Node() == nil {
		if !frozen {
			w := want{change: -1, task: t, pin: u.node, drained: u.drained}
			switch {
			case len(u.stale) == 0:
			case p.startFirst():
				w.beside = u.stale[0]
			case t.Desired == Ready:
				w.credit = u.stale[0] // it will be held until that one has stopped
			}
			p.wants = append(p.wants, w)
			p.count(u, t)
		}
		return
	}
	p.count(u, t)
	if len(u.stale)+len(u.drained) > 0 {
		p.relieve(u, t)
		return
	}
	if t.Desired != Ready {
		return
	}
	if p.early(t) {
		p.wake(t.NotBefore)
		return
	}
	for _, o := range p.predecessors(u) {
		if o != t && p.holdsUp(o, t) {
			p.sayHeldUp(t, o)
			return
		}
	}
	p.change(Change{Old: t, Node: t.Node(), Verb: Start, New: t.copyWith(p.begin)})
}

// begin lets a prepared task run.
func (p *planner) begin(t *Task) {
	// The delay was waited for here: its agent's clock, which may be another, must not wait again.
	t.Desired, t.NotBefore = p.goal(), 0
	if t.more().Err != "" {
		t.edit().Err = ""
	}
}

// relieve lets t take over from the old tasks of its unit, those of a drained node too, by the service's order. Start-first:
// it runs, then they stop. Stop-first: it is prepared, then they stop, then it runs (advance, once they are gone). A task
// that needs what only one can have is prepared when they have stopped.
func (p *planner) relieve(u *unit, t *Task) {
	if p.early(t) {
		p.wake(t.NotBefore)
		return
	}
	olds := slices.Concat(u.stale, u.drained)
	if t.Desired != Ready {
		if t.State() >= Running {
			for _, o := range olds {
				p.stop(o, "replaced by "+t.ID)
			}
		}
		return
	}
	alone := p.v.alone(t.Revision)
	beside := !alone && p.startFirst()
	for _, o := range olds {
		beside = beside && o.Node() != t.Node() // it may stand in that one's place
	}
	switch {
	case beside:
		p.change(Change{Old: t, Node: t.Node(), Verb: Start, New: t.copyWith(p.begin)})
	case t.Seen >= Ready || alone:
		h := handover{t, olds}
		if len(u.stale) > 0 {
			p.handovers = append(p.handovers, h) // what the rollout learns in this plan may forbid it
		} else {
			p.handOver(h)
		}
	}
}

// early: the task's delay still runs. One that would end later than a delay from now was set by a clock that has been
// put back since, and is over.
func (p *planner) early(t *Task) bool {
	wait := t.NotBefore - p.now
	return wait > 0 && wait <= p.v.restart.longest()
}

// again says whether a unit whose newest task failed may try that revision once more, and when: the restart policy rules
// here too, or a broken update would burn tasks as fast as they fail. Not ok with a time means not yet: the last one
// failed while its own delay still ran.
func (p *planner) again(u *unit, revision uint64) (ok bool, notBefore int64) {
	last := u.tasks[len(u.tasks)-1]
	if last.wanted() || !last.runs(revision) || !last.selfEnded() {
		return true, 0
	}
	restart, delay, _ := p.policy(u, last)
	if !restart {
		return false, 0
	}
	if p.early(last) {
		p.wake(last.NotBefore)
		return false, last.NotBefore
	}
	at := p.now
	if last.Desired > Complete && last.VerdictAt > 0 {
		at = min(p.now, last.VerdictAt)
	}
	if at+delay <= p.now {
		return true, 0
	}
	p.wake(at + delay)
	return true, at + delay
}

// first is what is desired of a new task at first.
func (p *planner) first(held bool, notBefore int64) TaskState {
	if held || notBefore > p.now {
		return Ready
	}
	return p.goal()
}

// count tells the rollout about a unit that is on its way to the newest revision: until its new task serves and the one
// before it has stopped. One that failed already holds up nobody.
func (p *planner) count(u *unit, t *Task) {
	if p.failed.has(u) {
		return
	}
	on := len(u.stale) > 0
	switch {
	case on:
	case t.State() >= Running:
		on = slices.ContainsFunc(u.tasks, func(o *Task) bool { return o != t && p.leaving(o) })
	case t.more().Replaces != "":
		on = slices.ContainsFunc(u.tasks, func(o *Task) bool { return o.ID == t.more().Replaces && !o.upToDate() })
	}
	if on {
		u.counted = true
		p.inflight++
	}
}

// leaving: an out-of-date task that was told to stop, has not yet, and may take as long.
func (p *planner) leaving(o *Task) bool {
	if o.Desired <= Complete || o.upToDate() || o.stopped() {
		return false
	}
	left := p.stopTime(o)
	if left > 0 {
		p.wake(p.now + left)
	}
	return left > 0
}

// goal is what is desired of a task that may run.
func (p *planner) goal() TaskState {
	if p.v.job() {
		return Complete
	}
	return Running
}

// leave replaces a task on a drained node, by the service's order: with start-first no replica is missing meanwhile, with
// stop-first no two of a unit run at once.
func (p *planner) leave(u *unit) {
	old := u.drained[len(u.drained)-1]
	if p.v.restart.condition == skepv1.RestartCondition_RESTART_CONDITION_NONE {
		for _, t := range u.drained {
			p.stop(t, "its node is drained")
		}
		return
	}
	for _, t := range u.drained[:len(u.drained)-1] {
		p.stop(t, "its node is drained")
	}
	if why := p.single(old); why != "" {
		p.stop(old, "its node is drained, and "+why+": it stops before another starts")
		return
	}
	revision := p.anew(u)
	ok, notBefore := p.again(u, revision)
	switch {
	case !ok && notBefore > 0:
		return
	case !ok:
		p.stop(old, "its node is drained and the service may not be started again")
		return
	}
	p.create(u, revision, old, p.first(p.v.alone(revision) || !p.startFirst(), notBefore), notBefore, "node "+old.Node().Hostname()+" is drained")
	p.wants[len(p.wants)-1].drained = []*Task{old}
}

// start begins the update of a unit.
func (p *planner) start(u *unit) {
	u.begun = true
	begin := len(p.out.Changes)
	// An update amid an update: of the out-of-date ones only that which serves stays meanwhile.
	old := u.stale[0]
	for _, t := range u.stale[1:] {
		if t.State() > old.State() {
			old = t
		}
	}
	for _, t := range u.stale {
		if t != old {
			p.stop(t, "superseded before it served")
		}
	}
	reason := fmt.Sprintf("update to revision %d", p.v.revision)
	if p.v.update.startFirst && !p.startFirst() {
		reason += ", stop-first: " + p.mustStopFirst()
		p.wentStopFirst(u.tasks, p.mustStopFirst())
	}
	if ok, notBefore := p.again(u, p.v.revision); ok {
		p.create(u, p.v.revision, old, p.first(!p.startFirst(), notBefore), notBefore, reason)
		if w := &p.wants[len(p.wants)-1]; p.startFirst() {
			w.beside = old
		} else {
			w.credit = old
		}
	}
	p.trim(u)
	for i := begin; i < len(p.out.Changes)-1; i++ {
		p.out.Changes[i].Glue = true
	}
}

// create makes a task of a revision for the unit, to be placed at the end of the service's turn.
func (p *planner) create(u *unit, revision uint64, replaces *Task, desired TaskState, notBefore int64, reason string) {
	t := &Task{
		ID: p.ids.Next(), Service: p.v, Slot: u.slot, Revision: revision, Created: p.now, Desired: desired, NotBefore: notBefore,
	}
	if n := len(u.tasks); n > 0 {
		t.Created = max(t.Created, u.tasks[n-1].Created+1) // order within the unit is by time; a leader's clock may be behind
	}
	if replaces != nil {
		t.edit().Replaces = replaces.ID
	}
	p.inherit(u, t)
	if p.v.job() {
		t.edit().Iteration = p.run
	}
	u.created++
	p.change(Change{New: t, Verb: Create, Reason: reason})
	p.wants = append(p.wants, want{change: len(p.out.Changes) - 1, task: t, pin: u.node, refused: p.refusal(u)})
}
