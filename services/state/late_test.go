package state

import (
	"slices"
	"testing"
	"time"

	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// A node that does not say that it has its newest task set is told to ask for it, less and less often; one that has it is not.
func TestLate(t *testing.T) {
	now := time.Unix(0, 0)
	l := &late{now: func() time.Time { return now }, nodes: map[string]lateNode{}}
	told := func(generation, applied uint64, seconds int) (at []int) {
		for s := range seconds {
			if l.look("n", generation, applied) {
				at = append(at, s)
			}
			now = now.Add(time.Second)
		}
		return at
	}
	if at := told(7, 7, 60); at != nil {
		t.Errorf("it has the set and is told at %v", at)
	}
	if at := told(8, 7, 60); !slices.Equal(at, []int{1, 3, 7, 15, 31}) {
		t.Errorf("told at %v", at)
	}
	if at := told(9, 7, 5); !slices.Equal(at, []int{1, 3}) {
		t.Errorf("of a newer set told at %v", at)
	}
	if at := told(9, 9, 10); at != nil || len(l.nodes) != 0 {
		t.Errorf("it has the set and is told at %v: %v", at, l.nodes)
	}
}

// A push that is lost: the node hears that it is to ask.
func TestALostPushIsMadeGood(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	id := r.admit("w1", skepv1.NodeRole_NODE_ROLE_WORKER).Meta.Id
	heard, err := r.nc.SubscribeSync(subject.PushFiles(id))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	r.putTasks(id, &skepv1.TaskRecord{Id: "t1", ServiceId: "s"})
	if _, err := heard.NextMsg(time.Minute); err != nil {
		t.Fatal(err)
	}
}
