package index

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/id"
	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	running  = skepv1.TaskState_TASK_STATE_RUNNING
	shutdown = skepv1.TaskState_TASK_STATE_SHUTDOWN
)

func entry(t testing.TB, key string, rev uint64, m proto.Message) kv.Entry {
	t.Helper()
	if m == nil {
		return kv.Entry{Key: key, Revision: rev, Deleted: true}
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return kv.Entry{Key: key, Value: b, Revision: rev}
}

func delta(e ...kv.Entry) kv.Delta { return kv.Delta{Entries: e} }

// The walkers must see what the real decoder sees.
func TestScan(t *testing.T) {
	set := &skepv1.NodeTasks{}
	rep := &skepv1.NodeStatus{NodeId: "n", Session: "s", Report: 3, AppliedGeneration: 9}
	for i := range 50 {
		code := int32(i)
		set.Tasks = append(set.Tasks, &skepv1.TaskRecord{
			Id: id.New(), ServiceId: id.New(), Slot: uint64(i), Revision: uint64(i) << 20, Desired: running, Verdict: shutdown, Message: "m",
			Assigned: []*skepv1.GenericResource{{Kind: "GPU", Value: 1}}, Replaces: id.New(), JobIteration: 3, NotBeforeUnixMs: -1,
		})
		rep.Tasks = append(rep.Tasks, &skepv1.TaskStatus{TaskId: set.Tasks[i].Id, State: running, ExitCode: &code, Addresses: []string{"10.0.0.1/8"}, Pid: 7})
	}
	raw, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	eachRecord(raw, func(v recordView) {
		w := set.Tasks[i]
		if string(v.id) != w.Id || string(v.service) != w.ServiceId || v.revision != w.Revision || v.desired != w.Desired || v.verdict != w.Verdict {
			t.Errorf("record %d: %v, want %v", i, v, w)
		}
		i++
	})
	if raw, err = proto.Marshal(rep); err != nil || i != 50 {
		t.Fatal(err, i)
	}
	i = 0
	eachStatus(raw, func(v statusView) {
		if string(v.id) != rep.Tasks[i].TaskId || v.state != running {
			t.Errorf("status %d: %v", i, v)
		}
		i++
	})
	if i != 50 {
		t.Fatal(i)
	}
	// Nonsense ends the walk, it does not crash.
	for n := range len(raw) {
		eachStatus(raw[n:], func(statusView) {})
		eachRecord(raw[:n], func(recordView) {})
	}
}

func TestCountsFollowRecordsAndReports(t *testing.T) {
	x := New()
	task := func(id string, desired skepv1.TaskState) *skepv1.TaskRecord {
		return &skepv1.TaskRecord{Id: id, ServiceId: "svc", Revision: 1, Desired: desired}
	}
	x.ApplyTask(delta(entry(t, "n1", 1, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{task("a", running), task("b", running)}}),
		entry(t, "n1.1", 2, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{task("c", running)}}),
		entry(t, "_.svc.0", 3, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{task("d", running)}})))
	x.ApplyStatus(delta(entry(t, "n1", 1, &skepv1.NodeStatus{Tasks: []*skepv1.TaskStatus{{TaskId: "a", State: running}, {TaskId: "c", State: running}}})))
	if c := x.Counts("svc"); c != (Counts{Active: 4, Running: 2}) {
		t.Fatalf("%+v", c)
	}
	if g := x.Groups("svc"); fmt.Sprint(g) != "[_.svc n1]" || x.Generation("n1") != 2 {
		t.Fatalf("groups %v, generation %d", g, x.Generation("n1"))
	}
	if got := x.GroupsMentioning("c"); len(got) == 0 {
		t.Fatal("not found")
	}
	// A task that is being stopped does not count any more.
	x.ApplyTask(delta(entry(t, "n1.1", 4, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{task("c", shutdown)}}), entry(t, "_.svc.0", 5, nil)))
	if c := x.Counts("svc"); c != (Counts{Active: 2, Running: 1}) {
		t.Fatalf("%+v", c)
	}
	x.ApplyTask(kv.Delta{Reset: true})
	if c := x.Counts("svc"); c != (Counts{}) || len(x.Groups("svc")) != 0 {
		t.Fatalf("after a reset %+v %v", c, x.Groups("svc"))
	}
}

func TestResetForgets(t *testing.T) {
	x := New()
	service := func(name string) *skepv1.Service {
		return &skepv1.Service{Meta: &skepv1.Meta{Id: "i" + name}, Spec: &skepv1.ServiceSpec{Name: name}}
	}
	x.ApplySpec(delta(entry(t, "service.ia", 1, service("A")), entry(t, "service.ib", 2, service("b")), kv.Entry{Key: "idx.service.x", Value: []byte("ia"), Revision: 3},
		entry(t, "node.n1", 4, &skepv1.NodeObject{Spec: &skepv1.NodeSpec{Name: "n"}})))
	x.ApplyNode(delta(entry(t, "desc.n1", 1, &skepv1.NodeDescription{Hostname: "h"}), entry(t, "live.n2", 2, &skepv1.NodeLive{})))
	if s := x.ServicesAfter(""); fmt.Sprint(s) != "[{ia A} {ib b}]" || x.Service("ia").Meta.Version != 1 {
		t.Fatalf("%v", s)
	}
	if x.Node("n1") == nil || x.Node("n2") != nil || len(x.NodeIDs()) != 1 {
		t.Fatal("only admitted nodes are nodes")
	}
	x.ApplySpec(kv.Delta{Reset: true, Entries: []kv.Entry{entry(t, "service.ib", 9, service("b2"))}})
	if s := x.ServicesAfter(""); fmt.Sprint(s) != "[{ib b2}]" {
		t.Fatalf("%v", s)
	}
	if _, ok := x.ServiceByName("a"); ok || len(x.Keys("idx.")) != 0 || x.Node("n1") != nil {
		t.Fatal("a reset left something")
	}
	if d, _ := x.Description("n1"); d == nil {
		t.Fatal("a reset of spec took the descriptions, too")
	}
	x.ApplySpec(delta(entry(t, "service.ib", 10, service("c")), entry(t, "service.ic", 11, service("d")), entry(t, "service.ic", 12, nil)))
	if s := x.ServicesAfter("b"); fmt.Sprint(s) != "[{ib c}]" {
		t.Fatalf("%v", s)
	}
}

func TestRevisions(t *testing.T) {
	x := New()
	for _, n := range []uint64{2, 10, 1} {
		x.ApplyRev(delta(entry(t, RevKey("s", n), n, &skepv1.Revision{Number: n})))
	}
	x.ApplyRev(delta(entry(t, RevKey("s", 2), 20, nil)))
	var got []uint64
	for _, r := range x.Revisions("s") {
		got = append(got, r.Number)
	}
	if fmt.Sprint(got) != "[1 10]" || x.Revision("s", 10).GetNumber() != 10 || x.Revision("s", 2) != nil {
		t.Fatalf("%v", got)
	}
	if o := x.OrphanRevisions(1 << 60); fmt.Sprint(o) != "[s]" {
		t.Fatalf("%v", o)
	}
}
