package reconcile

import (
	"skep.dev/libs/place"
	"skep.dev/libs/record"
	skepv1 "skep.dev/proto/skep/v1"
)

// The records are read and written straight from and to the compact Task, without messages (libs/record).

func appendTask(b []byte, t *Task, service string) []byte {
	m := t.more()
	r := record.Task[string]{
		ID: t.ID, Service: service, Slot: t.Slot, Revision: t.Revision, Desired: skepv1.TaskState(t.Desired), Created: t.Created,
		Verdict: skepv1.TaskState(t.Verdict), VerdictAt: t.VerdictAt, NotBefore: t.NotBefore, Message: m.Message, Err: m.Err,
		Replaces: m.Replaces, Run: m.Iteration, WantsNode: m.WantsNode, Failures: m.Failures, ForHealth: m.ForHealth,
		Rest: m.Rest,
	}
	for _, g := range m.Assigned {
		r.Assigned = append(r.Assigned, record.Generic(g))
	}
	return record.AppendTask(b, &r)
}

// decodePage calls f for each record; service is its service's id. The task and its strings are f's to keep.
func decodePage(b []byte, f func(t *Task, service []byte)) error {
	return record.EachTask(b, func(r *record.Task[[]byte]) {
		t := &Task{
			ID: string(r.ID), Slot: r.Slot, Revision: r.Revision, Desired: TaskState(r.Desired), Created: r.Created,
			Verdict: TaskState(r.Verdict), VerdictAt: r.VerdictAt, NotBefore: r.NotBefore,
		}
		if len(r.Message)+len(r.Err)+len(r.Replaces)+len(r.WantsNode)+len(r.Assigned)+len(r.Rest) > 0 || r.Run > 0 || r.Failures > 0 || r.ForHealth {
			t.More = &More{
				Message: string(r.Message), Err: string(r.Err), Replaces: string(r.Replaces), WantsNode: string(r.WantsNode),
				Iteration: r.Run, Failures: r.Failures, ForHealth: r.ForHealth, Rest: string(r.Rest),
			}
			for _, g := range r.Assigned {
				t.More.Assigned = append(t.More.Assigned, place.Generic(g))
			}
		}
		f(t, r.Service)
	})
}
