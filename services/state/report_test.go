package state

import (
	"testing"

	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

// A report that waited longer than the one after it, both in hand at once: the newer one is what is stored, or it
// would have been acknowledged and lost.
func TestReportsOutOfOrder(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	node := r.admit("w1", worker).Meta.Id
	at := func(number uint64, st skepv1.TaskState) *pending {
		return &pending{node: node, done: make(chan error, 1), status: &skepv1.NodeStatus{
			NodeId: node, Session: "s", Report: number, Tasks: []*skepv1.TaskStatus{{TaskId: "a", State: st}},
		}}
	}
	newer, older := at(6, skepv1.TaskState_TASK_STATE_FAILED), at(5, skepv1.TaskState_TASK_STATE_RUNNING)
	r.s.reports.process(r.ctx(), []*pending{newer, older})
	for _, p := range []*pending{newer, older} {
		if err := <-p.done; err != nil {
			t.Fatal(err)
		}
	}
	if got := r.s.ix.Report(node); got.Number != 6 {
		t.Fatalf("report %d is stored, 6 was acknowledged", got.Number)
	}
}
