package index

import (
	"testing"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// Of the tasks that keep failing the one that failed most is told of: what its record says of the rejection, else what
// the node of the one before it reported.
func TestLoopTellsOfTheWorst(t *testing.T) {
	const ready = skepv1.TaskState_TASK_STATE_READY
	x := New()
	rec := func(id string, failures uint32, next int64, err, replaces string) *skepv1.TaskRecord {
		return &skepv1.TaskRecord{Id: id, ServiceId: "svc", Revision: 1, Desired: ready, Failures: failures, NotBeforeUnixMs: next, Err: err, Replaces: replaces}
	}
	if l := x.Loop("svc"); l != nil {
		t.Errorf("of nothing: %v", l)
	}
	x.ApplyStatus(delta(entry(t, "n1", 1, &skepv1.NodeStatus{Tasks: []*skepv1.TaskStatus{{TaskId: "a0", State: skepv1.TaskState_TASK_STATE_FAILED, Err: "exit 1"}}})))
	x.ApplyTask(delta(entry(t, "n1", 1, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{
		{Id: "a0", ServiceId: "svc", Revision: 1, Desired: shutdown}, rec("b", 2, 5, "", ""), {Id: "r", ServiceId: "svc", Desired: running, Failures: 90},
	}})))
	if l := x.Loop("svc"); l != nil {
		t.Errorf("twice is no loop, and what runs does not wait: %v", l)
	}
	x.ApplyTask(delta(entry(t, "n2", 2, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{rec("a1", 4, 40, "", "a0")}})))
	if l := x.Loop("svc"); !proto.Equal(l, &skepv1.CrashLoop{Failures: 4, NextUnixMs: 40, Err: "exit 1"}) {
		t.Errorf("a crash loop: %v", l)
	}
	other := rec("o", 50, 1, "another's", "")
	other.ServiceId = "other"
	x.ApplyTask(delta(entry(t, "_.svc.0", 3, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{
		rec("c1", 7, 90, "no such image", "c0"), rec("c2", 7, 80, "no such path", "c0"),
	}}), entry(t, "_.other.0", 4, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{other}})))
	if l := x.Loop("svc"); !proto.Equal(l, &skepv1.CrashLoop{Failures: 7, NextUnixMs: 80, Err: "no such path"}) {
		t.Errorf("the worst, that comes first: %v", l)
	}
}
