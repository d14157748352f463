package reconcile

import (
	"fmt"
	"slices"
	"strconv"

	"skep.dev/libs/restart"
	skepv1 "skep.dev/proto/skep/v1"
)

// revive gives an empty unit a task, if the restart policy wants one.
func (p *planner) revive(u *unit) {
	revision := p.anew(u)
	if len(u.tasks) == u.dropped {
		p.create(u, revision, nil, p.goalAfter(u, 0), 0, "")
		return
	}
	last := u.tasks[len(u.tasks)-1]
	if !last.runs(revision) && !p.v.job() {
		// The update reaches what is dead at once; there is nothing to stop.
		reason := "update"
		if revision != p.v.revision {
			reason = fmt.Sprintf("the update waits, and revision %d is the last good one", revision)
		}
		p.create(u, revision, last, p.goalAfter(u, 0), 0, reason)
		return
	}
	_, _, reason := p.policy(u, last)
	if !last.selfEnded() {
		if p.v.restart.condition != skepv1.RestartCondition_RESTART_CONDITION_NONE {
			p.create(u, revision, last, p.goalAfter(u, 0), 0, reason)
		}
		return
	}
	ok, notBefore := p.again(u, revision)
	if !ok {
		return
	}
	p.create(u, revision, last, p.goalAfter(u, notBefore), notBefore, reason)
}

// goalAfter is what is desired of a replacement at first: to be held while its delay or the end of a task before it is
// awaited.
func (p *planner) goalAfter(u *unit, notBefore int64) TaskState {
	if notBefore > p.now || slices.ContainsFunc(p.predecessors(u), func(o *Task) bool { return !p.stopped(o) && !o.unbegun() }) {
		return Ready
	}
	return p.goal()
}

// selfEnded: it ended by itself, its node rejected it or it was ended because it failed, as opposed to lost, told to
// stop or put away by the enforcer.
func (t *Task) selfEnded() bool {
	return t.Verdict == Failed || t.Verdict == New && (t.Seen == Complete || t.Seen == Failed || t.Seen == Rejected)
}

// policy says whether a unit whose last task is over gets another, after how long, and why.
func (p *planner) policy(u *unit, last *Task) (another bool, delay int64, reason string) {
	r := &p.v.restart
	if !r.rule(p.v).Allows(len(u.tasks), u.tried, p.endOf(last)) {
		return false, 0, ""
	}
	if !last.selfEnded() {
		return true, 0, "the task before it was lost"
	}
	reason = "restart: the task before it is " + last.State().String()
	n, patience := p.failures(last), last.patience()
	if n > patience {
		reason += ", " + strconv.FormatUint(uint64(n), 10) + " failed in a row"
	}
	return true, r.wait(last.ID, n, patience), reason
}

// rule is what the policy says besides times.
func (r *restartPolicy) rule(v *Service) restart.Policy {
	return restart.Policy{Condition: r.condition, Attempts: r.attempts, Window: r.window, Job: v.job()}
}

// endOf is when the unit's last task ended, as far as the planner noted it: the answer must not change by waiting.
func (p *planner) endOf(last *Task) int64 {
	if last.Desired > Complete && last.VerdictAt > 0 {
		return last.VerdictAt
	}
	return p.now
}

// tried is the unit's i-th task as its restart policy sees it.
func (u *unit) tried(i int) restart.Task {
	t := u.tasks[i]
	return restart.Task{Created: t.Created, Revision: t.Revision, Container: t.container(), SelfEnded: t.selfEnded(), Completed: t.State() == Complete}
}

// container tells what t runs from what others do; of a revision that is not known, by its number.
func (t *Task) container() uint64 {
	if r := t.Service.revs[t.Revision]; r != nil {
		return r.core
	}
	return t.Revision
}

// over: the unit's last task ended and its policy wants no other. It still occupies its slot.
func (p *planner) over(u *unit) bool {
	last := u.tasks[len(u.tasks)-1]
	if last.wanted() {
		return false
	}
	another, _, _ := p.policy(u, last)
	return !another && (last.sameCore() || p.v.job())
}
