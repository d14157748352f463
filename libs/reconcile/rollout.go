package reconcile

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	stateUpdating       = "updating"
	stateCompleted      = "completed"
	stateRollingBack    = "rollback_started"
	stateRolledBack     = "rollback_completed"
	messageUpdating     = "update in progress"
	messageCompleted    = "update completed"
	messageRollingBack  = "manually requested rollback"
	messageRollbackDone = "rollback completed"
)

// going: the rollout is neither over nor paused.
func (r *Rollout) going() bool {
	s := r.GetStatus().GetState()
	return s == stateUpdating || s == stateRollingBack
}

// over: it reached its end.
func (r *Rollout) over() bool {
	s := r.GetStatus().GetState()
	return s == stateCompleted || s == stateRolledBack
}

// rollout starts as many out-of-date units as the update's parallelism and delay allow, and keeps its record.
func (p *planner) rollout() {
	v, r := p.v, p.v.rollout
	write := func(next *skepv1.Rollout) {
		p.out.Rollouts = append(p.out.Rollouts, RolloutChange{Service: v, Rollout: next})
	}
	if len(p.dirty) == 0 && p.inflight == 0 {
		if r.going() {
			write(p.completed(r.Rollout))
		}
		return
	}
	fresh := r == nil || r.GetRevision() != v.revision || r.over() && len(p.dirty) > 0
	var next *skepv1.Rollout
	if fresh {
		next = p.updating()
	} else if !r.going() {
		return // paused, or over and only a restart of it is on its way
	}
	free := len(p.dirty)
	if v.update.parallelism > 0 {
		free = min(free, v.update.parallelism-p.inflight)
	}
	if v.update.delay > 0 && !fresh && len(p.dirty) > 0 {
		last := r.GetLastBatchUnixMs()
		switch {
		case p.inflight > 0:
			free = 0
		case last == 0: // the batch has just come up
			next = copyRollout(r.Rollout)
			next.LastBatchUnixMs = p.now
			p.wake(p.now + v.update.delay)
			free = 0
		case p.now < last+v.update.delay:
			p.wake(last + v.update.delay)
			free = 0
		default:
			next = copyRollout(r.Rollout)
			next.LastBatchUnixMs = 0
		}
	}
	if next != nil {
		write(next)
	}
	for i := range p.dirty {
		if i >= free {
			break
		}
		p.start(p.dirty[i])
	}
}

func (p *planner) stamp() *timestamppb.Timestamp { return timestamppb.New(time.UnixMilli(p.now)) }

func (p *planner) updating() *skepv1.Rollout {
	st := &skepv1.UpdateStatus{State: stateUpdating, StartedAt: p.stamp(), Message: messageUpdating}
	if p.v.back {
		st.State, st.Message = stateRollingBack, messageRollingBack
	}
	return &skepv1.Rollout{Revision: p.v.revision, Status: st}
}

func (p *planner) completed(r *skepv1.Rollout) *skepv1.Rollout {
	n := copyRollout(r)
	n.Status.CompletedAt = p.stamp()
	if n.Status.State == stateRollingBack {
		n.Status.State, n.Status.Message = stateRolledBack, messageRollbackDone
	} else {
		n.Status.State, n.Status.Message = stateCompleted, messageCompleted
	}
	return n
}

func copyRollout(r *skepv1.Rollout) *skepv1.Rollout { return proto.CloneOf(r) }

// GetStatus is nil-safe like the generated getters.
func (r *Rollout) GetStatus() *skepv1.UpdateStatus {
	if r == nil {
		return nil
	}
	return r.Rollout.GetStatus()
}
