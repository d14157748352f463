package record

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	pb "skep.dev/proto/skep/v1"
)

var texts = rapid.SampledFrom([]string{"", "a", "no suitable node", strings.Repeat("x", 300), strings.Repeat("é", 9000)})

func drawRecord(t *rapid.T) *pb.TaskRecord {
	i64 := rapid.Int64()
	states := rapid.SampledFrom([]pb.TaskState{0, pb.TaskState_TASK_STATE_PENDING, pb.TaskState_TASK_STATE_RUNNING, pb.TaskState_TASK_STATE_ORPHANED})
	r := &pb.TaskRecord{
		Id: texts.Draw(t, "id"), ServiceId: texts.Draw(t, "service"), Slot: rapid.Uint64().Draw(t, "slot"), Revision: rapid.Uint64().Draw(t, "revision"),
		Desired: states.Draw(t, "desired"), CreatedUnixMs: i64.Draw(t, "created"), Verdict: states.Draw(t, "verdict"), VerdictUnixMs: i64.Draw(t, "verdict at"),
		Message: texts.Draw(t, "message"), Err: texts.Draw(t, "err"), NotBeforeUnixMs: i64.Draw(t, "not before"), Replaces: texts.Draw(t, "replaces"),
		JobIteration: rapid.Uint64().Draw(t, "run"), WantsNode: texts.Draw(t, "wants"), Failures: rapid.Uint32().Draw(t, "failures"), ForHealth: rapid.Bool().Draw(t, "for health"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "generic") {
		r.Assigned = append(r.Assigned, &pb.GenericResource{Kind: "GPU", Value: i64.Draw(t, "value"), Named: []string{"u1", "u2"}[:rapid.IntRange(0, 2).Draw(t, "named")]})
	}
	return r
}

// owned is a record that keeps its texts.
func owned(r *Task[[]byte]) *Task[string] {
	return &Task[string]{
		ID: string(r.ID), Service: string(r.Service), Slot: r.Slot, Revision: r.Revision, Desired: r.Desired, Verdict: r.Verdict, Created: r.Created,
		VerdictAt: r.VerdictAt, NotBefore: r.NotBefore, Message: string(r.Message), Err: string(r.Err), Replaces: string(r.Replaces),
		WantsNode: string(r.WantsNode), Run: r.Run, Failures: r.Failures, ForHealth: r.ForHealth, Assigned: r.Assigned,
	}
}

// Read and written again, records are what the generated code says they are: no field is lost.
func TestRecordsAreProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &pb.NodeTasks{}
		for range rapid.IntRange(0, 3).Draw(t, "records") {
			want.Tasks = append(want.Tasks, drawRecord(t))
		}
		page, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var again []byte
		if err := EachTask(page, func(r *Task[[]byte]) { again = AppendTask(again, owned(r)) }); err != nil {
			t.Fatal(err)
		}
		got := &pb.NodeTasks{}
		if err := proto.Unmarshal(again, got); err != nil || !proto.Equal(got, want) {
			t.Fatalf("%v: got %v, want %v", err, got, want)
		}
	})
}

// What a later version adds to a record is written again as it was: a scheduler of this one loses nothing of it.
func TestWhatALaterVersionAddsIsKept(t *testing.T) {
	raw, err := proto.Marshal(&pb.TaskRecord{Id: "a", ServiceId: "s", Slot: 3, Err: "no"})
	if err != nil {
		t.Fatal(err)
	}
	later := protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 7)
	later = protowire.AppendString(protowire.AppendTag(later, 901, protowire.BytesType), "text")
	later = protowire.AppendFixed64(protowire.AppendTag(later, 902, protowire.Fixed64Type), 9)
	page := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), append(raw, later...))
	var again []byte
	if err := EachTask(page, func(r *Task[[]byte]) {
		again = AppendTask(nil, &Task[string]{ID: string(r.ID), Service: string(r.Service), Slot: r.Slot, Err: string(r.Err), Rest: string(r.Rest)})
	}); err != nil {
		t.Fatal(err)
	}
	var have pb.NodeTasks
	if err := proto.Unmarshal(again, &have); err != nil {
		t.Fatal(err)
	}
	r := have.Tasks[0]
	if r.Id != "a" || r.Slot != 3 || r.Err != "no" || !bytes.Equal(r.ProtoReflect().GetUnknown(), later) {
		t.Errorf("%v, unknown %x, want %x", r, r.ProtoReflect().GetUnknown(), later)
	}
}

func TestStatusesAreProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rep := &pb.NodeStatus{NodeId: "n", Session: "s", Report: 3, AppliedGeneration: 9}
		for range rapid.IntRange(0, 4).Draw(t, "statuses") {
			code := rapid.Int32().Draw(t, "exit code")
			st := &pb.TaskStatus{
				TaskId: texts.Draw(t, "id"), State: pb.TaskState_TASK_STATE_RUNNING, SinceUnixMs: 7, Message: "m", ContainerId: "c", Pid: 7, ExitCode: &code,
				Health: pb.HealthState(rapid.IntRange(0, 3).Draw(t, "health")), NotReady: rapid.Bool().Draw(t, "not ready"),
				ServedUnixMs: rapid.Int64Range(0, 1).Draw(t, "served"), HealthOutput: texts.Draw(t, "output"),
				Addresses: []string{"10.0.0.1/8", "fd00::1/64"}[:rapid.IntRange(0, 2).Draw(t, "addresses")],
			}
			for range rapid.IntRange(0, 2).Draw(t, "networks") {
				st.Networks = append(st.Networks, &pb.NetworkAddress{NetworkId: texts.Draw(t, "network"), Addr: "10.1.0.2/24", Addr6: texts.Draw(t, "v6")})
			}
			rep.Tasks = append(rep.Tasks, st)
		}
		raw, err := proto.Marshal(rep)
		if err != nil {
			t.Fatal(err)
		}
		i := 0
		if err := EachStatus(raw, func(st *Status) {
			w := rep.Tasks[i]
			i++
			back := &pb.TaskStatus{TaskId: string(st.ID), HealthOutput: string(st.HealthOutput)}
			for _, a := range st.Addresses {
				back.Addresses = append(back.Addresses, string(a))
			}
			for _, n := range st.Networks {
				back.Networks = append(back.Networks, &pb.NetworkAddress{NetworkId: string(n.Network), Addr: string(n.V4), Addr6: string(n.V6)})
			}
			want := &pb.TaskStatus{TaskId: w.TaskId, HealthOutput: w.HealthOutput, Addresses: w.Addresses, Networks: w.Networks}
			if !proto.Equal(back, want) || st.Condition != ConditionOf(w) {
				t.Fatalf("status %d: %+v, want %v", i, st, w)
			}
		}); err != nil || i != len(rep.Tasks) {
			t.Fatalf("%d of %d: %v", i, len(rep.Tasks), err)
		}
	})
}

func TestGarbageIsRefused(t *testing.T) {
	for _, b := range [][]byte{{0xff}, {0x0a, 0x05, 1}, {0x0a, 0x02, 0x0a, 0x09}} {
		if err := EachTask(b, func(*Task[[]byte]) {}); err == nil {
			t.Errorf("%x is read as records", b)
		}
	}
	for _, b := range [][]byte{{0xff}, {0x2a, 0x05, 1}, {0x2a, 0x02, 0x0a, 0x09}} {
		if err := EachStatus(b, func(*Status) {}); err == nil {
			t.Errorf("%x is read as statuses", b)
		}
	}
}

func FuzzRead(f *testing.F) {
	page, _ := proto.Marshal(&pb.NodeTasks{Tasks: []*pb.TaskRecord{{Id: "a", Assigned: []*pb.GenericResource{{Kind: "g", Named: []string{"x"}}}}}})
	report, _ := proto.Marshal(&pb.NodeStatus{Tasks: []*pb.TaskStatus{{TaskId: "a", Networks: []*pb.NetworkAddress{{NetworkId: "n"}}}}})
	f.Add(page)
	f.Add(report)
	// What this reads without an error, the generated code reads too, but for texts that are no UTF-8; and neither panics.
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		err := EachTask(b, func(*Task[[]byte]) { n++ })
		var set pb.NodeTasks
		if perr := proto.Unmarshal(b, &set); perr == nil && (err != nil || n != len(set.Tasks)) {
			t.Fatalf("%d records of %d: %v", n, len(set.Tasks), err)
		}
		n = 0
		err = EachStatus(b, func(*Status) { n++ })
		var rep pb.NodeStatus
		if perr := proto.Unmarshal(b, &rep); perr == nil && (err != nil || n != len(rep.Tasks)) {
			t.Fatalf("%d statuses of %d: %v", n, len(rep.Tasks), err)
		}
	})
}

// Which conditions serve, and which begin.
func TestServesAndBegins(t *testing.T) {
	const running, starting = pb.TaskState_TASK_STATE_RUNNING, pb.TaskState_TASK_STATE_STARTING
	for _, c := range []struct {
		Condition
		serves, begins bool
	}{
		{Condition{State: running}, true, false},
		{Condition{State: running, Health: pb.HealthState_HEALTH_STATE_HEALTHY}, true, false},
		{Condition{State: running, Health: pb.HealthState_HEALTH_STATE_STARTING}, false, true},
		{Condition{State: running, Health: pb.HealthState_HEALTH_STATE_UNHEALTHY}, false, true},
		{Condition{State: running, NotReady: true}, false, true},
		{Condition{State: running, NotReady: true, Served: true}, false, false},
		{Condition{State: running, Health: pb.HealthState_HEALTH_STATE_UNHEALTHY, Served: true}, false, false},
		{Condition{State: starting}, false, false},
		{Condition{State: pb.TaskState_TASK_STATE_COMPLETE}, false, false},
	} {
		if c.Serves() != c.serves || c.Begins() != c.begins {
			t.Errorf("%+v: serves %v, begins %v", c.Condition, c.Serves(), c.Begins())
		}
	}
}

func BenchmarkEachTask(b *testing.B) {
	set := &pb.NodeTasks{}
	for range 200 {
		set.Tasks = append(set.Tasks, &pb.TaskRecord{Id: "0123456789012345678901234", ServiceId: "0123456789012345678901234", Slot: 7, Revision: 1, Desired: pb.TaskState_TASK_STATE_RUNNING, CreatedUnixMs: 1.7e12})
	}
	page, err := proto.Marshal(set)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := EachTask(page, func(*Task[[]byte]) { n++ }); err != nil || n != 200 {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(200*float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
}
