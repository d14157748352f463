package reconcile

import (
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// A task with an address of its own cannot be prepared while the one before it has that: it is neither waited for nor
// does it run beside it, in an update and off a node that drains.
func TestATaskAloneComesAfterTheOther(t *testing.T) {
	for what, change := range map[string]func(m *sim, node string){
		"an update": func(m *sim, _ string) {
			m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v2" })
		},
		"a start-first update": func(m *sim, _ string) {
			m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image, s.Update.Order = "v2", startFirst })
		},
		"a drain": func(m *sim, node string) {
			m.nodes[node].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_DRAIN
			m.putNode(node)
		},
	} {
		t.Run(what, func(t *testing.T) {
			m := cluster(t, 3)
			m.service("s", func(s *skepv1.ServiceSpec) {
				setReplicas(s, 1)
				s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "net", Ipv4Address: "10.0.5.7"}}
			})
			m.converge()
			old := m.one(t, "s", func(*Task) bool { return true })
			change(m, old.Node().ID)
			for range 40 {
				m.plan(99, false)
				m.agents()
				ended := true
				for _, x := range m.s.services["s"].tasks {
					if x.ID == old.ID {
						ended = x.State() > Running
					}
				}
				for _, x := range m.s.services["s"].tasks {
					if x.ID == old.ID || x.Node() == nil || ended {
						continue
					}
					if x.Desired != Ready {
						t.Fatalf("told to run while the one before it does")
					}
					if st := m.nodes[x.Node().ID].seen[x.ID]; st != nil && st.State > skepv1.TaskState_TASK_STATE_PREPARING {
						st.State = skepv1.TaskState_TASK_STATE_PREPARING // it waits for its address
					}
				}
			}
			m.converge()
			x := m.one(t, "s", func(x *Task) bool { return x.wanted() })
			if x.ID == old.ID || x.State() != Running {
				t.Errorf("%s in the end: %v", what, m.wanted("s"))
			}
		})
	}
}
