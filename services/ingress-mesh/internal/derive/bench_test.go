package derive

import (
	"fmt"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// One node of many reports.
func BenchmarkOneStatus(b *testing.B) {
	for _, size := range []struct{ nodes, tasks int }{{1000, 20}, {5000, 20}} {
		b.Run(fmt.Sprintf("%dx%d", size.nodes, size.tasks), func(b *testing.B) {
			c := newCluster(b)
			at := func(n, i int) string { return fmt.Sprintf("10.%d.%d.%d", n>>10, n>>2&255, n&3<<6+i+2) } // a block of 64 each
			report := func(n int, node string, state skepv1.TaskState) {
				st := &skepv1.NodeStatus{}
				for i := range size.tasks {
					st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: fmt.Sprint(node, ".", i), State: state,
						Networks: []*skepv1.NetworkAddress{{NetworkId: "net", Addr: at(n, i)}}})
				}
				c.must(c.p.PutStatus(node, enc(b, st)))
			}
			c.network("net", "10.0.0.0/8")
			for i := range size.tasks {
				c.service(fmt.Sprint("s", i), 1, nil, "net")
				c.service(fmt.Sprint("s", i), 2, nil) // all of them leave the network: the dearest case
			}
			for n := range size.nodes {
				node := fmt.Sprint("n", n)
				c.node(node, uint32(n+1))
				set := &skepv1.NodeTasks{}
				for i := range size.tasks {
					set.Tasks = append(set.Tasks, &skepv1.TaskRecord{Id: fmt.Sprint(node, ".", i), ServiceId: fmt.Sprint("s", i), Revision: 1, Desired: running})
				}
				c.must(c.p.PutTasks(node, enc(b, set)))
				c.hold(node, "net", at(n, -2)+"/26")
				report(n, node, ready)
			}
			c.commit()
			states := []skepv1.TaskState{running, ready}
			b.ResetTimer()
			for i := range b.N {
				report(500, "n500", states[i%2])
				if len(c.commit()) != 1 {
					b.Fatal("not one change")
				}
			}
		})
	}
}
