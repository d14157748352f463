package state

import (
	"context"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/job"
	"skep.dev/libs/keys"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// runService begins a run of a job: because somebody asks for it, or because a scheduler found it due.
func (s *Service) runService(ctx context.Context, r *skepv1.RunServiceRequest) (*skepv1.ServiceReply, error) {
	id, err := s.findService(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	if reply, err := s.again(ctx, id); reply != nil || err != nil {
		return reply, err
	}
	var before, after *skepv1.Service
	err = s.retry(ctx, func() error {
		cur := s.ix.Service(id)
		if cur == nil {
			return noSuch("service", r.Ref, nil)
		}
		before, after = cur, proto.CloneOf(cur)
		if done(ctx, cur) {
			return nil // another try of this request was faster
		}
		after.Asked = rpc.MarkOf(ctx).Onto(cur.Asked)
		changed, now := true, time.Now()
		if r.Decision == nil {
			err = job.RunNow(after, now, s.tasksOf(id))
		} else {
			changed, err = job.Decide(after, r.Decision, now, s.tasksOf(id))
		}
		if err != nil || !changed {
			return err
		}
		after.Meta.UpdatedAt = timestamppb.Now()
		body, err := encodeService(after)
		if err != nil {
			return err
		}
		batch := s.spec.Batch()
		batch.Update(keys.Service.Key(id), body, cur.Meta.Version)
		return s.commit(ctx, batch, func() bool {
			now := s.ix.Service(id)
			return now != nil && now.JobIteration == after.JobIteration && proto.Equal(now.ScheduleDecided, after.ScheduleDecided) && len(now.Runs) == len(after.Runs)
		})
	})
	if err != nil {
		return nil, err
	}
	if e := runEvent(before, after, r.Decision); e != nil {
		s.events.send(ctx, e)
	}
	if v := s.viewService(id); v != nil && v.JobIteration == after.JobIteration {
		after = v // else another run has begun already, and this reply is about the one that was asked for
	}
	return &skepv1.ServiceReply{Service: after}, nil
}

// tasksOf reads a service's tasks as a client sees them, in no order. Tasks of a global service on nodes that are down are
// left out: nobody can say how they are, and no run waits for them.
func (s *Service) tasksOf(id string) job.Tasks {
	return func() []*skepv1.Task {
		var out []*skepv1.Task
		c := s.composer()
		for _, g := range s.ix.Groups(id) {
			down := false
			if n := s.ix.Node(g); n != nil {
				down = n.Status.State == skepv1.NodeState_NODE_STATE_DOWN
			}
			records, status, gen := s.ix.Tasks(g)
			for _, rec := range records {
				if rec.ServiceId == id && !(down && rec.Slot == 0) {
					out = append(out, c.task(g, rec, status[rec.Id], gen))
				}
			}
		}
		return out
	}
}

// runEvent tells of a run begun, or of a time of the schedule at which none did.
func runEvent(before, after *skepv1.Service, d *skepv1.RunDecision) *skepv1.Event {
	name := after.Spec.Name
	e := &skepv1.Event{Kind: "service", Id: after.Meta.Id, Name: name, Attributes: map[string]string{"name": name}}
	due := after.Run.GetDue()
	switch {
	case before.JobIteration != after.JobIteration:
		e.Verb = "run"
	case d.GetSkip() && before.ScheduleDecided != nil && !proto.Equal(before.ScheduleDecided, after.ScheduleDecided):
		e.Verb, due = "run-skipped", d.Due
		e.Message = d.Reason
	default:
		return nil
	}
	e.Attributes["run"] = strconv.FormatUint(after.JobIteration, 10)
	if due != nil {
		e.Attributes["due"] = due.AsTime().Format(time.RFC3339)
	}
	return e
}
