package reconcile

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	skepv1 "skep.dev/proto/skep/v1"
)

// The hand-written codec must be the generated one, in both directions.
func TestWireIsProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{"", "a", "no suitable node", strings.Repeat("x", 300), strings.Repeat("é", 9000)})
		i64 := rapid.Int64Range(0, 1<<62)
		r := &skepv1.TaskRecord{
			Id: rapid.StringMatching(`[a-z0-9]{1,25}`).Draw(t, "id"), ServiceId: rapid.StringMatching(`[a-z0-9]{1,25}`).Draw(t, "svc"),
			Slot: uint64(i64.Draw(t, "slot")), Revision: uint64(i64.Draw(t, "rev")),
			Desired: skepv1.TaskState(Running), CreatedUnixMs: i64.Draw(t, "created"), Verdict: skepv1.TaskState(Pending), VerdictUnixMs: 7,
			Message: text.Draw(t, "message"), Err: text.Draw(t, "err"), NotBeforeUnixMs: i64.Draw(t, "nb"), Replaces: text.Draw(t, "replaces"),
			JobIteration: uint64(i64.Draw(t, "it")), WantsNode: text.Draw(t, "wants"),
			Failures: rapid.Uint32().Draw(t, "failures"), ForHealth: rapid.Bool().Draw(t, "for health"),
		}
		for range rapid.IntRange(0, 3).Draw(t, "generic") {
			r.Assigned = append(r.Assigned, &skepv1.GenericResource{Kind: "GPU", Value: 3, Named: []string{"u1", "u2"}})
		}
		var got []*Task
		page, err := proto.Marshal(&skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{r, r}})
		if err != nil {
			t.Fatal(err)
		}
		err = decodePage(page, func(x *Task, service []byte) {
			if string(service) != r.ServiceId {
				t.Fatalf("service %s", service)
			}
			got = append(got, x)
		})
		if err != nil || len(got) != 2 {
			t.Fatalf("decoded %d records: %v", len(got), err)
		}
		back := &skepv1.NodeTasks{}
		if err := proto.Unmarshal(appendTask(nil, got[1], r.ServiceId), back); err != nil || len(back.Tasks) != 1 {
			t.Fatal(err)
		}
		if !proto.Equal(back.Tasks[0], r) {
			t.Fatalf("got %v, want %v", back.Tasks[0], r)
		}
	})
}

func TestWireRefusesGarbage(t *testing.T) {
	for _, b := range [][]byte{{0xff}, {0x0a, 0x05, 1}, {0x0a, 0x02, 0x0a, 0x09}} {
		if err := decodePage(b, func(*Task, []byte) {}); err == nil {
			t.Errorf("%x: no error", b)
		}
	}
}

func BenchmarkEncodePage(b *testing.B) {
	v := &Service{ID: "0123456789012345678901234"}
	e := &edit{page: &Page{Node: &Node{}}}
	ids := NewIDs([32]byte{})
	for i := range 200 {
		e.adds = append(e.adds, &Task{ID: ids.Next(), Service: v, Slot: uint64(i), Revision: 1, Desired: Running, Created: 1.7e12})
	}
	b.ReportAllocs()
	for range b.N {
		e.write()
	}
	b.ReportMetric(200*float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
}
