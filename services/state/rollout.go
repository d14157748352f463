package state

import (
	"context"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// States of a rollout as the scheduler records them; this is who may be told what in which.
const (
	updating      = "updating"
	rollingBack   = "rollback_started"
	canaryWaiting = "canary"
	paused        = "paused"
	backPaused    = "rollback_paused"
)

// steerRollout stores what a user wants of a rollout; the scheduler acts on it.
func (s *Service) steerRollout(ctx context.Context, r *skepv1.RolloutRequest) (*skepv1.ServiceReply, error) {
	id, err := s.findService(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	if reply, err := s.again(ctx, id); reply != nil || err != nil {
		return reply, err
	}
	if r.Action == skepv1.RolloutRequest_ACTION_ABORT {
		return s.abortRollout(ctx, id)
	}
	var after *skepv1.Service
	repeat := false
	err = s.retry(ctx, func() error {
		cur := s.ix.Service(id)
		if cur == nil {
			return noSuch("service", r.Ref, nil)
		}
		if repeat = done(ctx, cur); repeat {
			return nil // another try of this request was faster
		}
		control, err := s.steered(cur, r.Action)
		if err != nil {
			return err
		}
		after = proto.CloneOf(cur)
		after.Control, after.Asked = control, rpc.MarkOf(ctx).Onto(cur.Asked)
		after.Meta.UpdatedAt = timestamppb.Now()
		return s.commitChange(ctx, cur, after, 0, nil) // its dependencies stay as they are
	})
	if err != nil {
		return nil, err
	}
	if repeat {
		return &skepv1.ServiceReply{Service: s.viewService(id)}, nil
	}
	verb := map[skepv1.RolloutRequest_Action]string{
		skepv1.RolloutRequest_ACTION_PAUSE: "pause", skepv1.RolloutRequest_ACTION_RESUME: "resume", skepv1.RolloutRequest_ACTION_PROMOTE: "promote",
	}[r.Action]
	s.events.send(ctx, &skepv1.Event{Kind: "service", Id: id, Name: after.Spec.Name, Verb: "update", Attributes: map[string]string{"name": after.Spec.Name, "rollout": verb}})
	if v := s.viewService(id); v != nil {
		after = v
	}
	return &skepv1.ServiceReply{Service: after}, nil
}

// steered is the control of a service after a word about its rollout.
func (s *Service) steered(cur *skepv1.Service, action skepv1.RolloutRequest_Action) (*skepv1.RolloutControl, error) {
	name, state := cur.Spec.Name, s.rolloutState(cur)
	c := proto.CloneOf(cur.Control)
	if c == nil {
		c = &skepv1.RolloutControl{}
	}
	switch action {
	case skepv1.RolloutRequest_ACTION_PAUSE:
		switch state {
		case updating, rollingBack, canaryWaiting:
			c.Paused = true
		case paused, backPaused:
			return nil, fault.Conflict("service %s: its update is paused already", name)
		default:
			return nil, fault.Conflict("service %s is not being updated: there is nothing to pause", name)
		}
	case skepv1.RolloutRequest_ACTION_RESUME:
		if !c.Paused && state != paused && state != backPaused {
			return nil, fault.Conflict("service %s has no paused update to resume", name)
		}
		c.Paused = false
		c.Resume++
	case skepv1.RolloutRequest_ACTION_PROMOTE:
		if c.Canary == 0 {
			return nil, fault.Conflict("service %s has no canary to promote", name)
		}
		if state == paused {
			return nil, fault.Conflict("service %s: its canary is paused (%s); resume it first with --resume, or abort it", name, s.ix.Rollout(cur.Meta.Id).GetStatus().GetMessage())
		}
		c.Canary = 0
	default:
		return nil, fault.Invalid("unknown action %d on a rollout", action)
	}
	return c, nil
}

// rolloutState is what the scheduler says of the rollout of the newest revision; one it has not begun yet is under way.
func (s *Service) rolloutState(cur *skepv1.Service) string {
	r := s.ix.Rollout(cur.Meta.Id)
	if r.GetRevision() == cur.Revision {
		return r.GetStatus().GetState()
	}
	if cur.Revision > 1 && r.GetRevision() < cur.Revision && !s.settled(cur) {
		return updating
	}
	return ""
}

// settled: every task that is wanted was made from the newest revision, or needs nothing new.
func (s *Service) settled(cur *skepv1.Service) bool {
	r := s.ix.Rollout(cur.Meta.Id)
	if r != nil && r.GetStatus().GetCompletedAt() == nil {
		return false
	}
	before := s.ix.Revision(cur.Meta.Id, cur.PreviousRevision)
	return before == nil || proto.Equal(before.Spec.GetTask(), cur.Spec.GetTask())
}

// abortRollout goes back to the revision that was good before the rollout under way.
func (s *Service) abortRollout(ctx context.Context, id string) (*skepv1.ServiceReply, error) {
	svc, err := s.change(ctx, id, false, func(cur *skepv1.Service) (step, error) {
		if spec.IsJob(cur.Spec) {
			return step{}, fault.Invalid("service %s is a job: it has no update to abort", cur.Spec.Name)
		}
		switch s.rolloutState(cur) {
		case updating, canaryWaiting, paused:
		case rollingBack, backPaused:
			return step{}, fault.Conflict("service %s is being rolled back already: pause or resume that, or update it", cur.Spec.Name)
		default:
			return step{}, fault.Conflict("service %s is not being updated: there is nothing to abort; to go back all the same use rollback", cur.Spec.Name)
		}
		return s.rollback(cur, 0, "")
	})
	if err != nil {
		return nil, err
	}
	return &skepv1.ServiceReply{Service: svc}, nil
}

// former is the revision to go back to: the one before, or, while the newest is not rolled out to its end, the last one
// that was. Else a second attempt that fails would be rolled back to the first.
func (s *Service) former(cur *skepv1.Service) uint64 {
	switch s.rolloutState(cur) {
	case updating, canaryWaiting, paused, rollingBack, backPaused:
		r := s.ix.Rollout(cur.Meta.Id)
		stable := r.GetStable()
		if r.GetRevision() == cur.Revision && stable != 0 && stable != cur.RollbackTo && s.ix.Revision(cur.Meta.Id, stable) != nil {
			return stable
		}
	}
	return cur.PreviousRevision
}
