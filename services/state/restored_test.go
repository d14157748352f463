package state

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/api"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// What nodes run and no record has is listed, and who ends the time after a restore has every node told.
func TestUnknownTasks(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	here, away := r.admit("w1", worker).Meta.Id, r.admit("w2", worker).Meta.Id
	r.putLive(here, skepv1.NodeState_NODE_STATE_READY)
	r.putLive(away, skepv1.NodeState_NODE_STATE_UNKNOWN)
	r.putTasks(here, &skepv1.TaskRecord{Id: "a", ServiceId: "s", Revision: 1})
	p := &pending{node: here, done: make(chan error, 1), status: &skepv1.NodeStatus{NodeId: here, Session: "s", Report: 1, Tasks: []*skepv1.TaskStatus{
		{TaskId: "a", State: skepv1.TaskState_TASK_STATE_RUNNING}, {TaskId: "b", State: skepv1.TaskState_TASK_STATE_RUNNING}, {TaskId: "c", State: skepv1.TaskState_TASK_STATE_FAILED},
	}}}
	r.s.reports.process(r.ctx(), []*pending{p})
	if err := <-p.done; err != nil {
		t.Fatal(err)
	}
	l := must[*skepv1.ListUnknownTasksReply](t)(call(r, api.TaskUnknown, &skepv1.ListUnknownTasksRequest{}))
	if l.Kept || len(l.Tasks) != 1 || l.Tasks[0].TaskId != "b" || l.Tasks[0].Hostname != "w1" || len(l.Missing) != 1 {
		t.Fatal(l)
	}
	told := make(chan string, 10)
	sub, err := r.nc.Subscribe(subject.PushFiles("*"), func(m *nats.Msg) { told <- m.Subject })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	for _, restored := range []bool{true, false} {
		c := must[*skepv1.ClusterReply](t)(call(r, api.ClusterInspect, &skepv1.Empty{})).Cluster
		spec := proto.CloneOf(c.Spec)
		spec.Restored = restored
		must[*skepv1.ClusterReply](t)(call(r, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Version: c.Meta.Version, Spec: spec}))
		if l := must[*skepv1.ListUnknownTasksReply](t)(call(r, api.TaskUnknown, &skepv1.ListUnknownTasksRequest{})); l.Kept != restored {
			t.Fatal(l)
		}
	}
	want := map[string]bool{subject.PushFiles(here): true, subject.PushFiles(away): true}
	for len(want) > 0 {
		select {
		case s := <-told:
			delete(want, s)
		case <-time.After(20 * time.Second):
			t.Fatalf("not told: %v", want)
		}
	}
}

// A node that knows of an old heartbeat period only looks dead to managers that know the new one.
func TestNewSettingsAreToldToNodes(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	node := r.admit("w1", worker).Meta.Id
	told, err := r.nc.SubscribeSync(subject.PushFiles("*"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = told.Unsubscribe() }()
	must[*skepv1.ClusterReply](t)(call(r, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Spec: &skepv1.ClusterSpec{HeartbeatPeriod: durationpb.New(2 * time.Second)}}))
	if m, err := told.NextMsg(20 * time.Second); err != nil || m.Subject != subject.PushFiles(node) {
		t.Fatalf("the node is not told: %v %v", m, err)
	}
}
