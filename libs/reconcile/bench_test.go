package reconcile

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// big is a converged cluster of services of one replica each, plus one large service.
func big(b testing.TB, nodes, tasks int) *State {
	m := newSim(b.(fataler))
	m.shadow = NewState() // not needed
	s := m.s
	for i := range nodes {
		id := fmt.Sprintf("n%024d", i)
		must(b, s.PutSpec("node."+id, enc(&skepv1.NodeObject{Spec: &skepv1.NodeSpec{Labels: map[string]string{"zone": "a"}}})))
		must(b, s.PutNodeBucket("desc."+id, enc(&skepv1.NodeDescription{Resources: &skepv1.Resources{NanoCpus: 64e9, MemoryBytes: 256 << 30}})))
		must(b, s.PutNodeBucket("live."+id, enc(&skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY})))
	}
	for i := range tasks / 100 {
		id := fmt.Sprintf("s%024d", i)
		spec := &skepv1.ServiceSpec{Name: id, Task: &skepv1.TaskSpec{
			Container: &skepv1.ContainerSpec{Image: "v1"}, Placement: &skepv1.Placement{Constraints: []string{"node.labels.zone==a"}},
		}}
		setReplicas(spec, 100)
		must(b, s.PutSpec("service."+id, enc(&skepv1.Service{Spec: spec, Revision: 1})))
	}
	apply := func() {
		p := s.Plan(m.now, m.ids, nil)
		bs := s.Batches(p)
		for x := bs.Next(1000, 1<<30); x != nil; x = bs.Next(1000, 1<<30) {
			revs := make([]uint64, len(x.Writes))
			for i := range revs {
				m.rev++
				revs[i] = m.rev
			}
			s.Applied(x, revs)
		}
	}
	apply()
	for _, n := range s.byID {
		st := &skepv1.NodeStatus{AppliedGeneration: n.page.Revision}
		for _, t := range n.page.Tasks {
			st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: t.ID, State: skepv1.TaskState_TASK_STATE_RUNNING})
		}
		must(b, s.PutStatus(n.ID, enc(st), m.now))
	}
	s.Dirty()
	return s
}

func must(b testing.TB, err error) {
	if err != nil {
		b.Fatal(err)
	}
}

// Everything is as it should be, and every service is looked at.
func BenchmarkPlanConverged100kTasks(b *testing.B) {
	s := big(b, 1000, 100_000)
	ids := NewIDs([32]byte{})
	b.ReportAllocs()
	for range b.N {
		if p := s.Plan(time.Now(), ids, nil); !p.Empty() {
			b.Fatalf("%d changes", len(p.Changes))
		}
	}
}

// One service of many changes: what a user waits for.
func BenchmarkPlanOneOf100kTasks(b *testing.B) {
	s := big(b, 1000, 100_000)
	ids := NewIDs([32]byte{})
	spec := &skepv1.ServiceSpec{Name: "new", Task: &skepv1.TaskSpec{}}
	setReplicas(spec, 10)
	must(b, s.PutSpec("service.new", enc(&skepv1.Service{Spec: spec, Revision: 1})))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if p := s.Plan(time.Now(), ids, []string{"new"}); len(p.Changes) != 10 {
			b.Fatalf("%d changes", len(p.Changes))
		}
	}
}

// The index at 100k tasks must stay below 40 MB.
func TestIndexMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := big(t, 1000, 100_000)
	runtime.GC()
	runtime.ReadMemStats(&after)
	mb := float64(after.HeapAlloc-before.HeapAlloc) / (1 << 20)
	t.Logf("100k tasks, 1k services, 1k nodes: %.1f MB", mb)
	if mb > 40 {
		t.Errorf("%.1f MB", mb)
	}
	runtime.KeepAlive(s)
}
