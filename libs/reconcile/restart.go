package reconcile

import skepv1 "skep.dev/proto/skep/v1"

// revive gives an empty unit a task, if the restart policy wants one.
func (p *planner) revive(u *unit) {
	if len(u.tasks) == u.dropped {
		p.create(u, nil, p.goal(), 0, "")
		return
	}
	last := u.tasks[len(u.tasks)-1]
	if !last.sameCore() {
		// The update reaches what is dead at once; there is nothing to stop.
		p.create(u, last, p.goalAfter(last, 0), 0, "update")
		return
	}
	_, _, reason := p.policy(u, last)
	if !last.selfEnded() {
		if p.v.restart.condition != skepv1.RestartCondition_RESTART_CONDITION_NONE {
			p.create(u, last, p.goalAfter(last, 0), 0, reason)
		}
		return
	}
	ok, notBefore := p.again(u)
	if !ok {
		return
	}
	p.create(u, last, p.goalAfter(last, notBefore), notBefore, reason)
}

// goalAfter is what is desired of a replacement at first: to be held while its delay or the old task's end is awaited.
func (p *planner) goalAfter(old *Task, notBefore int64) TaskState {
	if notBefore > p.now || !old.stopped() {
		return Ready
	}
	return p.goal()
}

// selfEnded: it ended by itself or its node rejected it, as opposed to lost, told to stop or put away by the enforcer.
func (t *Task) selfEnded() bool {
	return t.Verdict == New && (t.Seen == Complete || t.Seen == Failed || t.Seen == Rejected)
}

// policy says whether a unit whose last task is over gets another, after how long, and why.
func (p *planner) policy(u *unit, last *Task) (restart bool, delay int64, reason string) {
	r := &p.v.restart
	if r.condition == skepv1.RestartCondition_RESTART_CONDITION_NONE {
		return false, 0, ""
	}
	if !last.selfEnded() {
		return true, 0, "the task before it was lost"
	}
	onFailure := r.condition == skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE || p.v.job()
	if onFailure && last.State() == Complete {
		return false, 0, ""
	}
	if r.attempts > 0 && p.attempts(u, last) >= r.attempts {
		return false, 0, ""
	}
	return true, r.delay, "restart: the task before it is " + last.State().String()
}

// attempts counts the restarts of the unit's revision, within the window before the end that asks for another.
func (p *planner) attempts(u *unit, last *Task) int {
	since := int64(0)
	if w := p.v.restart.window; w > 0 {
		end := p.now
		if last.Desired > Complete && last.VerdictAt > 0 {
			end = last.VerdictAt
		}
		since = end - w
	}
	n := 0
	for i := 1; i < len(u.tasks); i++ {
		t, before := u.tasks[i], u.tasks[i-1]
		if t.Revision == last.Revision && before.Revision == last.Revision && before.selfEnded() && t.Created >= since {
			n++
		}
	}
	return n
}

// over: the unit's last task ended and its policy wants no other. It still occupies its slot.
func (p *planner) over(u *unit) bool {
	last := u.tasks[len(u.tasks)-1]
	if last.wanted() {
		return false
	}
	restart, _, _ := p.policy(u, last)
	return !restart && last.sameCore()
}
