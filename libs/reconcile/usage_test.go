package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"skep.dev/libs/place"
	skepv1 "skep.dev/proto/skep/v1"
)

// reread is what a node's tasks take, read off all of them.
func (s *State) reread(n *Node) *usage {
	u := &usage{generic: slices.Clone(n.generic)}
	var all []*Task
	if n.page != nil {
		all = n.page.Tasks
	}
	for _, t := range all {
		if !t.held() {
			continue
		}
		if t.wanted() {
			u.tasks++
		}
		r := t.request()
		if old := s.tasks[t.more().Replaces]; t.Desired == Ready && old != nil && old.Node() == n && old.held() {
			was := old.request()
			u.cpu += max(0, r.CPU-was.CPU)
			u.mem += max(0, r.Memory-was.Memory)
			for _, port := range r.Ports {
				if !slices.Contains(was.Ports, port) {
					u.ports = append(u.ports, port)
				}
			}
			u.generic = subtract(u.generic, beyond(t.more().Assigned, old.more().Assigned))
			continue
		}
		u.held++
		u.cpu += r.CPU
		u.mem += r.Memory
		if t.wanted() {
			u.wantCPU += r.CPU
			u.wantMem += r.Memory
		}
		u.ports = append(u.ports, r.Ports...)
		u.generic = subtract(u.generic, t.more().Assigned)
	}
	u.over = u.wantCPU > 0 && n.cpu > 0 && u.wantCPU > n.cpu || u.wantMem > 0 && n.mem > 0 && u.wantMem > n.mem
	return u
}

func (u *usage) String() string {
	ports := slices.Clone(u.ports)
	slices.SortFunc(ports, func(a, b place.Port) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	generic := slices.Clone(u.generic)
	slices.SortStableFunc(generic, func(a, b place.Generic) int { return cmp.Compare(a.Kind, b.Kind) })
	return fmt.Sprint(u.cpu, u.mem, u.wantCPU, u.wantMem, u.tasks, u.held, generic, ports, u.over)
}

// checkUsage: what was kept change by change is what reading all tasks says.
func (m *sim) checkUsage(n *Node) {
	m.fatal.Helper()
	if got, want := m.s.usage(n).String(), m.s.reread(n).String(); got != want {
		m.dump()
		m.fatal.Fatalf("node %s: tasks take\n%s, by reading all\n%s", n.ID, got, want)
	}
}

// Whatever happens, in whatever order nodes are looked at or not between, the kept usage is that of reading everything.
func TestUsageIsKept(t *testing.T) {
	kept, looked := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		m := newSim(t)
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			m.node(fmt.Sprint("n", i))
		}
		actions := m.trouble()
		actions["what if"] = func(t *rapid.T) {
			id := fmt.Sprint("s", rapid.IntRange(0, 3).Draw(t, "svc"))
			if v := m.specs[id]; v != nil {
				v = proto.CloneOf(v)
				mutate(t, v.Spec, false)
				m.s.WhatIf(v, rapid.Bool().Draw(t, "removed"), m.now, m.ids)
			}
		}
		actions["look"] = func(t *rapid.T) {
			for _, n := range m.s.byID {
				if rapid.Bool().Draw(t, "at") {
					looked++
					if !n.stale {
						kept++
					}
					m.checkUsage(n)
				}
			}
		}
		actions["another's plan"] = func(t *rapid.T) { // whose bytes are all that comes
			bs := m.shadow.Batches(m.shadow.Plan(m.now, m.ids, nil))
			for range rapid.IntRange(1, 3).Draw(t, "batches") {
				b := bs.Next(2, 1<<20)
				if b == nil {
					break
				}
				for _, w := range b.Writes {
					m.rev++
					if w.Delete {
						w.Value = nil
					} else if w.Value == nil {
						w.Value = []byte{}
					}
					m.both(func(s *State) error { return s.PutTask(w.Key, w.Value, m.rev) })
				}
				for i := range b.Changes {
					m.noteHealth(&b.Changes[i])
				}
				m.forgetUnits()
			}
		}
		t.Repeat(actions)
		for _, n := range m.s.byID {
			m.checkUsage(n)
		}
	})
	t.Logf("%d of %d looks found a usage that was kept", kept, looked)
	if kept*4 < looked {
		t.Errorf("only %d of %d looks found a usage that was kept", kept, looked)
	}
}

// A rollout reads no node's tasks anew, whichever way its tasks take over.
func TestUpdateReadsNoNodeAnew(t *testing.T) {
	for _, order := range []skepv1.UpdateOrder{skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST, skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST} {
		m := cluster(t, 3)
		m.service("s", func(s *skepv1.ServiceSpec) {
			setReplicas(s, 9)
			s.Task.Resources.Reservations.NanoCpus = 1e9
			s.Update = &skepv1.UpdateConfig{Parallelism: 3, Order: order, Monitor: durationpb.New(time.Second)}
		})
		m.converge()
		m.update("v2")
		for m.status().GetState() != stateCompleted {
			m.apply(m.s.Plan(m.now, m.ids, m.s.Dirty()), 99, false)
			m.agents()
			for _, n := range m.s.byID {
				if n.stale {
					t.Fatalf("%v: node %s is to be read anew", order, n.ID)
				}
				m.checkUsage(n)
			}
			m.now = m.now.Add(time.Second)
			m.s.Touch("s")
		}
	}
}

// A successor that asks for less than the task it is prepared to replace leaves the rest to nobody while that one runs.
func TestWhatIsReplacedKeepsItsShareUntilItEnds(t *testing.T) {
	m := cluster(t, 1) // of 4 cores
	reserve := func(cpu int64, replicas uint64) func(*skepv1.ServiceSpec) {
		return func(s *skepv1.ServiceSpec) {
			setReplicas(s, replicas)
			s.Task.Resources.Reservations.NanoCpus = cpu
		}
	}
	m.service("large", reserve(3e9, 1))
	m.service("small", reserve(1e9, 2)) // one of which waits
	m.converge()
	m.service("large", func(s *skepv1.ServiceSpec) {
		reserve(1e9, 1)(s)
		s.Task.Placement.Constraints = []string{"node.labels.zone!=b"} // else the one that waits is not looked at again
	})
	m.apply(m.s.Plan(m.now, m.ids, []string{"large", "small"}), 99, false)
	if u := m.s.usage(m.s.nodes["n1"]); u.cpu > 4e9 {
		m.dump()
		t.Errorf("tasks of %d cores are on a node of 4", u.cpu/1e9)
	}
	m.converge()
	if got := append(m.wanted("large"), m.wanted("small")...); len(got) != 3 || slices.ContainsFunc(got, func(s string) bool { return s[len(s)-1] == '-' }) {
		t.Errorf("in the end: %v", got)
	}
}
