package task

import (
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// What a restored cluster does not know of runs on, over a restart of the agent too, until somebody says otherwise.
func TestUnknownTasksAreKept(t *testing.T) {
	h := begin(t)
	known, other := &skepv1.TaskRecord{Id: "t1", ServiceId: "web", Desired: runningSt}, &skepv1.TaskRecord{Id: "t2", ServiceId: "web", Desired: runningSt}
	h.apply(known, other)
	h.await("t1", runningSt)
	h.await("t2", runningSt)
	restored := uint64(1) << 50
	if ok, err := h.set.Apply(restored, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{known}}, true); !ok || err != nil {
		t.Fatal(ok, err)
	}
	h.set.Release(restored-1, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{known}}) // of another generation
	if _, st := h.set.Job("t2"); st.GetState() != runningSt {
		t.Fatal(st)
	}
	h.set.Release(restored, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{known}})
	for deadline := time.Now().Add(20 * time.Second); h.set.Known("t2"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it was not ended")
		}
	}
	if _, st := h.set.Job("t1"); st.GetState() != runningSt {
		t.Fatal(st)
	}
}
