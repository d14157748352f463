package reconcile

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// A field that a later version put into a task's record outlives what this one decides about the task.
func TestARecordOfALaterVersion(t *testing.T) {
	later := protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 7)
	rec := &skepv1.TaskRecord{Id: "a", ServiceId: "s", Slot: 1, Desired: skepv1.TaskState_TASK_STATE_RUNNING}
	rec.ProtoReflect().SetUnknown(later)
	page, err := proto.Marshal(&skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{rec}})
	if err != nil {
		t.Fatal(err)
	}
	var again []byte
	if err := decodePage(page, func(task *Task, service []byte) {
		task = task.copyWith(func(n *Task) { n.Desired = Shutdown; n.edit().Err = "node went away" })
		again = appendTask(again, task, string(service))
	}); err != nil {
		t.Fatal(err)
	}
	var have skepv1.NodeTasks
	if err := proto.Unmarshal(again, &have); err != nil {
		t.Fatal(err)
	}
	if r := have.Tasks[0]; string(r.ProtoReflect().GetUnknown()) != string(later) || r.Err == "" || r.Desired != skepv1.TaskState_TASK_STATE_SHUTDOWN {
		t.Errorf("%v", r)
	}
}
