package reconcile

import (
	"fmt"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// watch notes the units whose new task failed, and decides what to do about it: as in Swarm a task counts that ended,
// however, within the monitor after it began to run; beyond Swarm one that does not serve within the update's timeout.
func (p *planner) watch(r *Rollout) {
	t, why := p.note(r) // whatever the action is: such units do not hold up the others
	if t == nil || p.v.update.action == skepv1.FailureAction_FAILURE_ACTION_CONTINUE {
		return
	}
	if n := len(r.FailedSlots) + len(r.FailedNodes); float64(n) <= p.v.update.ratio*float64(p.wantedUnits()) {
		return
	}
	why = "due to " + why
	if p.v.update.action == skepv1.FailureAction_FAILURE_ACTION_ROLLBACK && !p.v.back {
		if to := r.Stable; to != 0 && to != p.v.revision {
			r.RollingBackTo, r.Reason = to, "update rolled back "+why
			p.say(r, stateRollingBack, r.Reason)
			return
		}
		why += "; there is no revision to roll back to"
	}
	p.pause(r, why)
}

// note adds units to the record's list of failed ones. It returns the last task it added one for, and what it did.
func (p *planner) note(r *Rollout) (failed *Task, why string) {
	since := r.SinceUnixMs
	if since > p.now {
		since = 0 // of a clock that has been put back since
	}
	for i := range p.units {
		u := &p.units[i]
		if p.failed.has(u) {
			continue
		}
		t, reason := p.failure(u, since)
		if t == nil {
			continue
		}
		failed, why = t, reason
		if u.node != nil {
			r.FailedNodes = append(r.FailedNodes, u.node.ID)
		} else {
			r.FailedSlots = append(r.FailedSlots, u.slot)
		}
		p.failed = p.failed.with(u)
		if u.counted {
			p.inflight--
		}
	}
	return failed, why
}

// failure is the unit's task that failed the rollout, nil if there is none.
func (p *planner) failure(u *unit, since int64) (*Task, string) {
	for _, t := range u.tasks {
		if t.Revision != p.v.revision || t.Created < since {
			continue
		}
		if t.selfEnded() && p.ranFor(t) <= p.v.update.monitor {
			return t, "failure or early termination of task " + t.ID
		}
		if said, sick := p.s.sick[t]; sick && t.wanted() && (t.Seen < Running || p.ranFor(t) <= p.v.update.monitor) {
			return t, fmt.Sprintf("task %s, which is unhealthy (%s)", t.ID, said)
		}
		if p.v.update.timeout <= 0 || !t.wanted() || t.State() >= Running {
			continue
		}
		late := t.Created + p.v.update.timeout
		if p.now >= late {
			why := fmt.Sprintf("task %s, which does not serve after %s", t.ID, time.Duration(p.v.update.timeout)*time.Millisecond)
			if m := t.more().Err; m != "" {
				why += " (" + m + ")"
			}
			return t, why
		}
		p.wake(late)
	}
	return nil, ""
}

// failedUnits are those on the rollout's list.
type failedUnits map[any]bool

func unitKey(u *unit) any {
	if u.node != nil {
		return u.node.ID
	}
	return u.slot
}

func (f failedUnits) has(u *unit) bool { return len(f) > 0 && f[unitKey(u)] }

func (f failedUnits) with(u *unit) failedUnits {
	if f == nil {
		f = failedUnits{}
	}
	f[unitKey(u)] = true
	return f
}

// failedOf reads the list of the service's rollout, if that is of its newest revision.
func failedOf(v *Service) failedUnits {
	r := v.rollout.record()
	if r.GetRevision() != v.revision || len(r.GetFailedSlots())+len(r.GetFailedNodes()) == 0 {
		return nil
	}
	f := failedUnits{}
	for _, slot := range r.FailedSlots {
		f[slot] = true
	}
	for _, id := range r.FailedNodes {
		f[id] = true
	}
	return f
}
