package reconcile

import (
	"fmt"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"
)

// A node rejects a task that it cannot prepare: its image is nowhere, a path to be bound does not exist, its user is not
// in the image. Trying again is rarely of use and costs a pull each time, so the next task of such a unit is not prepared
// while its delay runs, as others are, but gets no node before the delay is over: one attempt a delay. Meanwhile its
// record says what the node said, so that everybody who reads it can.

const (
	// patientRejections in a row are tried again after the plain delay: another node may have what the first ones lack.
	patientRejections = 2
	// maxRefusal bytes of what a node said are kept.
	maxRefusal = 256
)

// refuse notes why a node rejected a task.
func (s *State) refuse(t *Task, r *skepv1.TaskStatus) {
	if TaskState(r.GetState()) != Rejected {
		return
	}
	why := strings.Join(strings.Fields(r.GetErr()), " ")
	if len(why) > maxRefusal {
		why = why[:maxRefusal]
	}
	s.refused[t] = strings.Clone(strings.ToValidUTF8(why, "")) // not the whole report with it
}

// rejected: its node could not prepare it.
func (t *Task) rejected() bool { return t.Verdict == New && t.Seen == Rejected }

// patience is how many failures in a row are followed by the plain delay.
func (t *Task) patience() uint32 {
	if t.rejected() {
		return patientRejections
	}
	return patientFailures
}

// refusal is what a task says that waits because the unit's newest was rejected, "" when it was not.
func (p *planner) refusal(u *unit) string {
	if len(u.tasks) == 0 {
		return ""
	}
	last := u.tasks[len(u.tasks)-1]
	if !last.rejected() {
		return ""
	}
	if why := p.s.refused[last]; why != "" {
		return why
	}
	if n := last.Node(); n != nil {
		return fmt.Sprintf("rejected by node %s", n.Hostname())
	}
	return "rejected by its node"
}

// wait takes the tasks out of those to be placed whose delay runs after a rejection. One that is recorded without a node
// waits for its delay too, whatever it waited for at first: it could not begin before.
func (p *planner) wait() {
	kept := p.wants[:0]
	for _, w := range p.wants {
		if w.change >= 0 && w.refused == "" || !p.early(w.task) {
			kept = append(kept, w)
			continue
		}
		p.wake(w.task.NotBefore)
		if w.change < 0 {
			continue
		}
		if w.pin != nil {
			p.waitFor(&w, w.pin)
		}
		why := w.refused
		w.drained = nil // what it takes over from goes on until it has a place
		p.unplaced(&w, why)
	}
	p.wants = kept
}
