package restart

import (
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Of is the policy of a service.
func Of(s *skepv1.ServiceSpec) Policy {
	r := s.GetTask().GetRestart()
	return Policy{
		Condition: r.GetCondition(), Attempts: int(r.GetMaxAttempts()), Window: r.GetWindow().AsDuration().Milliseconds(), Job: spec.IsJob(s),
	}
}

// GivenUp says of a unit's tasks as clients see them, at least one, oldest first and none meant to run, that nothing will
// follow them. It takes tasks of different revisions for different containers, since it cannot tell.
func GivenUp(s *skepv1.ServiceSpec, unit []*skepv1.Task) bool {
	last := unit[len(unit)-1]
	ended := last.GetStatus().GetSinceUnixMs()
	if at := last.GetVerdictUnixMs(); at > 0 && last.Desired > skepv1.TaskState_TASK_STATE_COMPLETE {
		ended = at // the planner's own time is what it goes by
	}
	return !Of(s).Allows(len(unit), func(i int) Task { return seen(unit[i]) }, ended)
}

func seen(t *skepv1.Task) Task {
	state := t.GetStatus().GetState()
	self := t.GetVerdict() == skepv1.TaskState_TASK_STATE_FAILED
	if t.GetVerdict() == skepv1.TaskState_TASK_STATE_NEW {
		switch state {
		case skepv1.TaskState_TASK_STATE_COMPLETE, skepv1.TaskState_TASK_STATE_FAILED, skepv1.TaskState_TASK_STATE_REJECTED:
			self = true
		}
	}
	return Task{
		Created: t.GetMeta().GetCreatedAt().AsTime().UnixMilli(), Revision: t.GetRevision(), Container: t.GetRevision(), SelfEnded: self,
		Completed: state == skepv1.TaskState_TASK_STATE_COMPLETE,
	}
}
