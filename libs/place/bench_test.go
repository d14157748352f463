package place

import (
	"fmt"
	"testing"

	"skep.dev/libs/constraint"
	skepv1 "skep.dev/proto/skep/v1"
)

// Shaped like swarmkit's BenchmarkScheduler…: every task is a service of its own, and in the …Constraints variant
// a third of the nodes is eligible. What is timed is everything between a service's stored spec and its task's node:
// the engine with its nodes, the request of each service, constraint parsing and evaluation, and the choice.
func benchmarkPlace(b *testing.B, nodes, tasks int, constraints bool) {
	all := make([]Node, nodes)
	for i := range all {
		all[i] = Node{
			Node:  constraint.Node{ID: fmt.Sprintf("node%06d", i), Hostname: fmt.Sprintf("name%d", i), OS: "linux", Arch: "amd64"},
			Ready: true, CPU: 8e9, Memory: 32 << 30, FreeCPU: 8e9, FreeMemory: 32 << 30,
		}
		if i%3 == 0 {
			all[i].Labels = map[string]string{"env": "prod"}
		}
	}
	specs := make([]*skepv1.ServiceSpec, tasks)
	for i := range specs {
		specs[i] = &skepv1.ServiceSpec{Name: fmt.Sprintf("service%d", i), Task: &skepv1.TaskSpec{
			Container: &skepv1.ContainerSpec{Image: "v:1"}, Placement: &skepv1.Placement{},
		}}
		if constraints {
			specs[i].Task.Placement.Constraints = []string{"node.labels.env==prod"}
		}
	}
	work := make([]Node, nodes)
	dst := make([]Placement, 0, tasks)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		copy(work, all)
		e := New(work)
		dst = dst[:0]
		for _, s := range specs {
			r := FromSpec(s)
			dst = e.Place(dst, &r, 1, nil, nil)
		}
		if len(dst) != tasks {
			b.Fatalf("placed %d of %d", len(dst), tasks)
		}
	}
	b.StopTimer()
	per := map[int32]int{}
	for _, p := range dst {
		per[p.Node]++
		if constraints && p.Node%3 != 0 {
			b.Fatal("placed against its constraint")
		}
	}
	eligible := nodes
	if constraints {
		eligible = (nodes + 2) / 3
	}
	for i, n := range per {
		if n > tasks/eligible+1 {
			b.Fatalf("node %d got %d tasks of %d on %d nodes", i, n, tasks, eligible)
		}
	}
	b.ReportMetric(float64(tasks)*float64(b.N)/b.Elapsed().Seconds(), "placements/s")
}

func BenchmarkPlace1kNodes1kTasks(b *testing.B)              { benchmarkPlace(b, 1_000, 1_000, false) }
func BenchmarkPlace1kNodes100kTasks(b *testing.B)            { benchmarkPlace(b, 1_000, 100_000, false) }
func BenchmarkPlace100kNodes1MTasks(b *testing.B)            { benchmarkPlace(b, 100_000, 1_000_000, false) }
func BenchmarkPlaceConstraints5kNodes100kTasks(b *testing.B) { benchmarkPlace(b, 5_000, 100_000, true) }
