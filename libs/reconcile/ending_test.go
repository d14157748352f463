package reconcile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/partition"
	specs "skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

const long = 2 * time.Minute // a grace period

func (m *sim) singleton(t *testing.T, nodes int, order skepv1.UpdateOrder) (old *Task, home string) {
	t.Helper()
	for i := range nodes {
		m.node(fmt.Sprint("n", i+1)).stops = long
	}
	m.service("s", func(s *skepv1.ServiceSpec) {
		s.Update.Order = order
		s.Task.Container.StopGracePeriod = durationpb.New(long)
	})
	m.converge()
	old = m.one(t, "s", (*Task).wanted)
	return old, old.Node().ID
}

// works: the tasks of a service whose containers run.
func (m *sim) works(id string) (out []string) {
	for _, n := range m.nodes {
		for _, st := range n.seen {
			if t := m.s.tasks[st.TaskId]; TaskState(st.State) == Running && (t == nil || t.Service.ID == id) {
				out = append(out, st.TaskId)
			}
		}
	}
	return out
}

// second lets everybody work for a second.
func (m *sim) second() {
	m.agents()
	m.plan(1<<30, false)
	m.now = m.now.Add(time.Second)
}

func (m *sim) drain(id string) {
	m.nodes[id].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_DRAIN
	m.putNode(id)
}

// Whatever moves a stop-first singleton, the next begins when the one before it has ended, however long that takes.
func TestStopFirstIsNeverTwo(t *testing.T) {
	for name, move := range map[string]func(m *sim, home string){
		"an update": func(m *sim, home string) {
			m.service("s", func(s *skepv1.ServiceSpec) {
				s.Task.Container.Image = "v2"
				s.Task.Placement.Constraints = []string{"node.hostname!=" + home}
			})
		},
		"a drain": func(m *sim, home string) { m.drain(home) },
		"a constraint": func(m *sim, home string) {
			m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.hostname!=" + home} })
		},
		"a scale to nothing and back": func(m *sim, _ string) {
			m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 0) })
			m.second()
			m.second()
			m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 1) })
		},
		"an update whose first try is rejected": func(m *sim, home string) {
			m.service("s", func(s *skepv1.ServiceSpec) {
				s.Task.Container.Image = "v2"
				s.Task.Placement.Constraints = []string{"node.hostname!=" + home}
			})
			for range 10 {
				m.second()
			}
			for id, n := range m.nodes {
				for k, st := range n.seen {
					if id != home && TaskState(st.State) == Ready {
						n.seen[k].State = skepv1.TaskState(Rejected)
					}
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newSim(t)
			old, home := m.singleton(t, 3, stopFirst)
			began := m.now
			move(m, home)
			for len(m.works("s")) == 1 && m.works("s")[0] == old.ID {
				m.second()
				if m.now.Sub(began) > time.Hour {
					m.dump()
					t.Fatal("it never stops")
				}
			}
			if took := m.now.Sub(began); took < long {
				m.dump()
				t.Fatalf("it worked for %s and the next one began", took)
			}
			for range 30 {
				m.second()
				if w := m.works("s"); len(w) > 1 {
					t.Fatalf("two work: %v", w)
				}
			}
			if w := m.works("s"); len(w) != 1 || w[0] == old.ID {
				m.dump()
				t.Fatalf("%v work in the end", w)
			}
		})
	}
}

// With start-first a drain leaves no gap, and nobody waits for the end of the other.
func TestStartFirstDrainOverlaps(t *testing.T) {
	m := newSim(t)
	_, home := m.singleton(t, 2, startFirst)
	m.drain(home)
	for range 5 {
		m.second()
	}
	is(t, len(m.works("s")), "2")
}

// An agent that is heard and does not get its task stopped is not given up, and the record says what is waited for. One
// that does not say is waited for as long as the task's own grace and the kill take.
func TestWhoIsWaitedFor(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent ", silent), func(t *testing.T) {
			m := newSim(t)
			old, home := m.singleton(t, 2, stopFirst)
			m.nodes[home].stops = 10 * time.Minute
			m.drain(home)
			m.second()
			m.second()
			m.nodes[home].silent = silent
			next := m.one(t, "s", func(x *Task) bool { return x.ID != old.ID })
			m.second()
			told := m.now
			for next.Desired == Ready && m.now.Sub(told) < 5*time.Minute {
				m.second()
			}
			took := m.now.Sub(told).Round(10 * time.Second)
			if silent {
				is(t, took, fmt.Sprint(long+time.Minute))
				return
			}
			is(t, took, "5m0s")
			if want := "waits for task " + old.ID + " on node " + home; !strings.HasPrefix(next.more().Err, want) {
				t.Errorf("it says %q, want %q…", next.more().Err, want)
			}
			for range 400 {
				m.second()
			}
			is(t, fmt.Sprint(next.State(), next.more().Err), "running")
		})
	}
}

// An update goes on to the next unit when the old task of the last has stopped, in its own time.
func TestStartFirstKeepsToReplicasAndParallelism(t *testing.T) {
	m := cluster(t, 3)
	for _, n := range m.nodes {
		n.stops = long
	}
	m.service("s", func(s *skepv1.ServiceSpec) {
		setReplicas(s, 3)
		s.Update.Order = startFirst
		s.Task.Container.StopGracePeriod = durationpb.New(long)
	})
	m.converge()
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v2" })
	for range 200 {
		m.second()
		if w := m.works("s"); len(w) > 4 {
			t.Fatalf("%d run: %v", len(w), w)
		}
	}
}

// A node that is not heard ends tasks with --on-partition stop by itself. Until it certainly has, nothing takes their place: not
// after a failover, not with start-first, not by a scale to nothing and back, and not by another leader.
func TestWhatItsNodeEndsIsNotBegunBefore(t *testing.T) {
	hold := partition.Hold(specs.DefaultHeartbeat, long)
	for name, c := range map[string]struct {
		order skepv1.UpdateOrder
		do    func(m *sim)
	}{
		"a failover":  {order: stopFirst},
		"start-first": {order: startFirst},
		"a scale": {order: stopFirst, do: func(m *sim) {
			m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 0) })
			m.second()
			m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 1) })
		}},
		"another leader": {order: stopFirst, do: func(m *sim) { m.s, m.shadow = m.shadow, m.s }},
	} {
		t.Run(name, func(t *testing.T) {
			m := newSim(t)
			m.node("n1")
			m.node("n2")
			m.service("s", func(s *skepv1.ServiceSpec) {
				s.Update.Order = c.order
				s.Task.Container.StopGracePeriod = durationpb.New(long)
				s.OnPartition = skepv1.PartitionPolicy_PARTITION_POLICY_STOP
			})
			m.converge()
			old := m.one(t, "s", (*Task).wanted)
			down := m.now
			m.live(old.Node().ID, skepv1.NodeState_NODE_STATE_DOWN)
			m.second()
			if c.do != nil {
				c.do(m)
			}
			begun := func() *Task {
				for _, x := range m.s.services["s"].tasks {
					if x.ID != old.ID && x.Desired == Running {
						return x
					}
				}
				return nil
			}
			for begun() == nil && m.now.Sub(down) < time.Hour {
				m.second()
			}
			if took := m.now.Sub(down); took < hold || took > hold+5*time.Second {
				m.dump()
				t.Fatalf("begun after %s, want %s", took, hold)
			}
		})
	}
}
