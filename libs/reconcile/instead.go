package reconcile

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/place"
	skepv1 "skep.dev/proto/skep/v1"
)

// A start-first update needs room for both: a limit per node, a port of the host or what the old task reserves may leave
// none. Then the unit goes stop-first, in the place of its old task, and the update's message says so.

// instead gives a task that cannot run beside the one it replaces that one's place: it is prepared there, and runs when
// the other has stopped. It reports whether it could.
func (p *planner) instead(w *want, req *place.Request, why string) bool {
	old := w.beside
	if old == nil || !old.Node().accepts() || w.pin != nil && w.pin != old.Node() {
		return false
	}
	i := old.Node().index
	p.have.add(i, -1) // it makes way: a limit per node does not count it
	at, _, ok := p.inPlaceOf(old, req)
	if !ok {
		p.have.add(i, 1)
		return false
	}
	p.assign(w, old.Node(), at.Assigned)
	p.have.add(i, 1)
	c := &p.out.Changes[w.change]
	c.New = c.New.copyWith(func(t *Task) { t.Desired = Ready })
	c.Reason = "stop-first: " + why
	w.task = c.New
	p.wentStopFirst(p.unitTasks(old), why)
	return true
}

// unitTasks are the recorded tasks of the unit that a task is in.
func (p *planner) unitTasks(of *Task) []*Task {
	for i := range p.units {
		if slices.Contains(p.units[i].tasks, of) {
			return p.units[i].tasks
		}
	}
	return nil
}

// wentStopFirst counts a unit once, however often its new task has to be made.
func (p *planner) wentStopFirst(unit []*Task, why string) {
	p.stoppedWhy = why
	if !slices.ContainsFunc(unit, func(t *Task) bool { return t.Revision == p.v.revision && t.Node() != nil }) {
		p.stoppedFirst++
	}
}

// noteStopped puts what went stop-first in this plan into the rollout's record and message.
func (p *planner) noteStopped() {
	if p.stoppedFirst == 0 {
		return
	}
	var r *skepv1.Rollout
	if n := len(p.out.Rollouts); n > 0 && p.out.Rollouts[n-1].Service == p.v {
		r = p.out.Rollouts[n-1].Rollout
	} else if was := p.v.rollout.record(); was.GetRevision() == p.v.revision && !p.v.rollout.over() {
		r = proto.CloneOf(was)
		p.out.Rollouts = append(p.out.Rollouts, RolloutChange{Service: p.v, Rollout: r})
	}
	if r == nil {
		return
	}
	message := strings.TrimSuffix(r.GetStatus().GetMessage(), stoppedNote(r))
	r.StoppedFirst += p.stoppedFirst
	r.StoppedWhy = p.stoppedWhy
	r.Status = proto.CloneOf(r.Status)
	r.Status.Message = message + stoppedNote(r)
}

// stoppedNote is what a rollout's message says of units that went stop-first.
func stoppedNote(r *skepv1.Rollout) string {
	switch n := r.GetStoppedFirst(); n {
	case 0:
		return ""
	case 1:
		return "; 1 task went stop-first: " + r.GetStoppedWhy()
	default:
		return fmt.Sprintf("; %d tasks went stop-first: %s", n, r.GetStoppedWhy())
	}
}
