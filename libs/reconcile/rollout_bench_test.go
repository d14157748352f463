package reconcile

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// BenchmarkUpdateStep rolls a service of 1,000 tasks, 50 at a time, beside others of 100 tasks each: what one look at it
// costs should not depend on how many those are.
func BenchmarkUpdateStep(b *testing.B) {
	for _, others := range []int{10, 1000} {
		b.Run(fmt.Sprint(others, "services"), func(b *testing.B) {
			m := newSim(b)
			for i := range 200 {
				m.node(fmt.Sprintf("n%03d", i)).desc.Resources = &skepv1.Resources{NanoCpus: 1e15, MemoryBytes: 1 << 60}
			}
			for i := range others {
				m.service(fmt.Sprint("other", i), func(s *skepv1.ServiceSpec) { setReplicas(s, 100) })
			}
			m.service("s", func(s *skepv1.ServiceSpec) {
				setReplicas(s, 1000)
				s.Update = &skepv1.UpdateConfig{Parallelism: 50, Order: stopFirst, FailureAction: pauseOnFailure, Monitor: durationpb.New(time.Second)}
			})
			m.converge()
			m.bare = true // what is checked would be computed outside of what is measured
			image, steps := 0, 0
			applied := map[*simNode]uint64{}
			var took time.Duration
			for b.Loop() {
				image++
				m.update(fmt.Sprint("image", image))
				for {
					began := time.Now()
					p := m.s.Plan(m.now, m.ids, []string{"s"})
					took += time.Since(began)
					steps++
					if p.Empty() && m.status().GetState() == stateCompleted {
						break
					}
					m.apply(p, 1<<30, false)
					for id, n := range m.nodes {
						if page := m.s.nodes[id].page; page != nil && page.Revision != applied[n] {
							applied[n] = page.Revision
							m.agent(id)
						}
					}
					m.now = m.now.Add(200 * time.Millisecond)
				}
			}
			b.ReportMetric(float64(took.Microseconds())/float64(steps), "µs/step")
			b.ReportMetric(float64(steps)/float64(b.N), "steps/update")
		})
	}
}
