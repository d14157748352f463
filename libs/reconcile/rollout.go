package reconcile

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"
)

// The states of a rollout, Swarm's words, and canary.
const (
	stateUpdating    = "updating"
	stateCanary      = "canary" // its first tasks serve; the others wait for a word
	statePaused      = "paused"
	stateCompleted   = "completed"
	stateRollingBack = "rollback_started"
	stateBackPaused  = "rollback_paused"
	stateRolledBack  = "rollback_completed"
)

const (
	messageUpdating     = "update in progress"
	messageCompleted    = "update completed"
	messageRollingBack  = "manually requested rollback"
	messageRollbackDone = "rollback completed"
)

// askAgain is how long a rollback that was asked of state may take before it is asked for again.
const askAgain = 1000

// Rollback asks for a revision that goes back to To: the rollout of From failed, and its service says so.
type Rollback struct {
	Service  *Service
	From, To uint64
	Reason   string
}

// record is nil without one.
func (r *Rollout) record() *skepv1.Rollout {
	if r == nil {
		return nil
	}
	return r.Rollout
}

func (r *Rollout) state() string { return r.record().GetStatus().GetState() }

// going: the rollout is neither over nor waiting for anybody.
func (r *Rollout) going() bool { s := r.state(); return s == stateUpdating || s == stateRollingBack }

// over: it reached its end.
func (r *Rollout) over() bool { s := r.state(); return s == stateCompleted || s == stateRolledBack }

// rollout moves the service's rollout on: it starts as many out-of-date units as the policy allows, watches those it
// started, and keeps the record. Everything it goes by stands in that record and in the tasks' own, so whoever plans
// next continues exactly here.
func (p *planner) rollout() {
	v, was := p.v, p.v.rollout
	r := &Rollout{}
	switch {
	case was == nil || was.GetRevision() != v.revision:
		unfinished := was != nil && !was.over()
		if len(p.dirty)+p.behind == 0 && p.inflight == 0 && !unfinished {
			return // nothing changed that tasks are made of
		}
		r.Rollout = p.begun()
	case was.over():
		p.startNext(p.free(len(p.dirty))) // such as what a node that was away brings back; that is no new rollout
		return
	default:
		r.Rollout = proto.CloneOf(was.Rollout)
	}
	p.step(r)
	if was == nil || !proto.Equal(was.Rollout, r.Rollout) {
		p.out.Rollouts = append(p.out.Rollouts, RolloutChange{Service: v, Rollout: r.Rollout})
	}
}

// step is what happens to a rollout that is not over.
func (p *planner) step(r *Rollout) {
	c := &p.v.control
	if r.RollingBackTo != 0 {
		p.awaitRollback(r)
		return
	}
	switch r.state() {
	case statePaused, stateBackPaused:
		if c.paused || c.resume <= r.Resume {
			return
		}
		p.resume(r)
	case stateCanary:
		switch {
		case c.canary == 0 || c.canary > p.reached() && len(p.units) > 0:
			p.say(r, stateUpdating, messageUpdating)
			r.LastBatchUnixMs = 0
			if p.standing != p.v.revision {
				return // this plan was made as one that waits; the next goes on
			}
		case p.inflight == 0:
			p.sayCanary(r) // of as many tasks as there are now
		}
	}
	if c.paused {
		p.pause(r, "by request")
		return
	}
	p.watch(r)
	if r.RollingBackTo != 0 {
		p.awaitRollback(r)
		return
	}
	if r.going() {
		p.pace(r)
	}
}

// begun is the record of a rollout that begins.
func (p *planner) begun() *skepv1.Rollout {
	v := p.v
	r := &skepv1.Rollout{Revision: v.revision, Resume: v.control.resume, Stable: v.stable(), Status: &skepv1.UpdateStatus{
		State: stateUpdating, StartedAt: p.stamp(), Message: messageUpdating,
	}}
	if v.back {
		r.Status.State, r.Status.Message = stateRollingBack, messageRollingBack
		if v.backReason != "" {
			r.Status.Message = v.backReason
		}
	}
	return r
}

func (p *planner) resume(r *Rollout) {
	r.Resume, r.SinceUnixMs, r.LastBatchUnixMs = p.v.control.resume, p.now, 0
	r.FailedSlots, r.FailedNodes, p.failed = nil, nil, nil
	p.say(r, p.running(), p.noun()+" in progress")
}

func (p *planner) running() string {
	if p.v.back {
		return stateRollingBack
	}
	return stateUpdating
}

// noun is what the rollout is called in messages.
func (p *planner) noun() string {
	if p.v.back {
		return "rollback"
	}
	return "update"
}

func (p *planner) pause(r *Rollout, why string) {
	state := statePaused
	if p.v.back {
		state = stateBackPaused
	}
	p.say(r, state, p.noun()+" paused "+why)
}

func (p *planner) say(r *Rollout, state, message string) {
	r.Status = proto.CloneOf(r.Status)
	r.Status.State, r.Status.Message = state, message+stoppedNote(r.Rollout)
}

// awaitRollback asks for the rollback until the service has the revision that goes back, or somebody decided otherwise.
func (p *planner) awaitRollback(r *Rollout) {
	if no := p.v.refused; no.revision == p.v.revision && no.why != "" {
		r.RollingBackTo = 0
		p.say(r, statePaused, r.Reason+", and the rollback was refused: "+no.why)
		return
	}
	p.out.Rollbacks = append(p.out.Rollbacks, Rollback{Service: p.v, From: p.v.revision, To: r.RollingBackTo, Reason: r.Reason})
	p.wake(p.now + askAgain)
}

// conclude ends a rollout whose tasks have all been watched for long enough.
func (p *planner) conclude(r *Rollout) {
	state, message := stateCompleted, messageCompleted
	if p.v.back {
		state, message = stateRolledBack, messageRollbackDone
	}
	if n := len(r.FailedSlots) + len(r.FailedNodes); n > 0 {
		message += fmt.Sprintf("; %d of %d tasks failed", n, p.wantedUnits())
	}
	p.say(r, state, message)
	r.Status.CompletedAt = p.stamp()
	r.LastBatchUnixMs, r.FailedSlots, r.FailedNodes, r.SinceUnixMs = 0, nil, nil, 0
}

func (p *planner) stamp() *timestamppb.Timestamp { return timestamppb.New(time.UnixMilli(p.now)) }

// RefuseRollback tells that state will not make the rollback that the plan of a revision asked for: the rollout pauses.
func (s *State) RefuseRollback(service string, revision uint64, why string) {
	if v := s.services[service]; v != nil {
		v.refused = refusal{revision, why}
		s.mark(v)
	}
}

type refusal struct {
	revision uint64
	why      string
}
