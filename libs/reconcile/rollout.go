package reconcile

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"time"

	"skep.dev/libs/place"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	stateUpdating  = "updating"
	stateCompleted = "completed"
)

type skepPlatform = place.Platform

func (p *planner) stamp() *timestamppb.Timestamp { return timestamppb.New(time.UnixMilli(p.now)) }

func (p *planner) updating() *skepv1.Rollout {
	return &skepv1.Rollout{
		Revision: p.v.revision,
		Status:   &skepv1.UpdateStatus{State: stateUpdating, StartedAt: p.stamp(), Message: "update in progress"},
	}
}

func (p *planner) completed(r *skepv1.Rollout) *skepv1.Rollout {
	n := copyRollout(r)
	n.Status.State, n.Status.CompletedAt, n.Status.Message = stateCompleted, p.stamp(), "update completed"
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
