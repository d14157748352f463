package reconcile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// ---- the simulator's probes, and its own account of what is down for its health

func (m *sim) probed(st *skepv1.TaskStatus) *skepv1.TaskStatus {
	if out, ill := m.ill[st.TaskId]; ill && TaskState(st.State) == Running {
		st = proto.CloneOf(st)
		st.Health, st.HealthOutput = skepv1.HealthState_HEALTH_STATE_UNHEALTHY, out
	}
	return st
}

// fallIll makes every n-th running task of a node unhealthy.
func (m *sim) fallIll(node string, n int) {
	for i, id := range slices.Sorted(maps.Keys(m.nodes[node].seen)) {
		if i%n == 0 && TaskState(m.nodes[node].seen[id].State) == Running {
			m.ill[id] = "first line\nno answer\n"
		}
	}
}

func unitName(s *State, t *Task) string {
	if t.Slot > 0 {
		return fmt.Sprint(t.Slot)
	}
	return (&planner{s: s}).unitNode(t).ID
}

// noteHealth follows what is written.
func (m *sim) noteHealth(c *Change) {
	t := c.task()
	down := m.down[t.Service.ID]
	switch {
	case c.Verb == Judge && strings.HasPrefix(c.Reason, "unhealthy"):
		if down == nil {
			down = map[string]bool{}
			m.down[t.Service.ID] = down
		}
		if !m.anotherServes(t) {
			down[unitName(m.s, t)] = true
		}
	case c.Verb == Delete || c.Verb == Forget && (t.Desired == Remove || c.Reason == "scaled down"):
		delete(down, unitName(m.s, t)) // scaled down
	}
}

// anotherServes: its unit has a task that serves besides, its successor amid an update.
func (m *sim) anotherServes(t *Task) bool {
	return slices.ContainsFunc(m.s.services[t.Service.ID].tasks, func(o *Task) bool {
		_, ill := m.ill[o.ID]
		return o.ID != t.ID && unitName(m.s, o) == unitName(m.s, t) && o.wanted() && o.Desired == Running && o.Seen == Running && !ill
	})
}

// forgetUnits: a unit of which nothing is left is none any more.
func (m *sim) forgetUnits() {
	for id, down := range m.down {
		left := map[string]bool{}
		if v := m.s.services[id]; v != nil {
			for _, t := range v.tasks {
				left[unitName(m.s, t)] = left[unitName(m.s, t)] || t.Desired != Remove
			}
		}
		maps.DeleteFunc(down, func(unit string, _ bool) bool { return !left[unit] })
	}
}

// serves: what a node says runs, and is not ill, serves.
func (m *sim) serves(st *skepv1.NodeStatus) {
	for _, r := range st.Tasks {
		if t := m.s.tasks[r.TaskId]; t != nil && TaskState(r.State) == Running && r.Health != skepv1.HealthState_HEALTH_STATE_UNHEALTHY && t.Desired == Running && t.Verdict == New {
			delete(m.down[t.Service.ID], unitName(m.s, t))
		}
	}
}

// budgetOf counts anew what the budget of a service is.
func (m *sim) budgetOf(v *Service) int {
	if b := m.specs[v.ID].GetSpec().GetHealthBudget(); b > 0 {
		return int(b)
	}
	n := int(v.replicas)
	if v.perNode() {
		n = 0
		for _, x := range m.s.byID {
			if !x.drained() && v.wantsOn(x) {
				n++
			}
		}
	}
	return max(1, n/4)
}

// checkHealthBudget: a plan ends no task for its health that makes more units be down for it than the budget says.
func (m *sim) checkHealthBudget(p *Plan) {
	m.fatal.Helper()
	fresh := map[*Service]map[string]bool{}
	leaving := map[string]bool{}
	for i := range p.Changes {
		c := &p.Changes[i]
		if c.Verb == Delete || c.Verb == Forget && (c.Old.Desired == Remove || c.Reason == "scaled down") {
			leaving[c.Old.Service.ID+"/"+unitName(m.s, c.Old)] = true
		}
		if c.Verb == Judge && strings.HasPrefix(c.Reason, "unhealthy") {
			v, unit := c.Old.Service, unitName(m.s, c.Old)
			if fresh[v] == nil {
				fresh[v] = map[string]bool{}
			}
			if !m.down[v.ID][unit] && !m.anotherServes(c.Old) {
				fresh[v][unit] = true
			}
		}
	}
	for v, units := range fresh {
		down := 0
		for unit := range m.down[v.ID] {
			if leaving[v.ID+"/"+unit] {
				continue
			}
			if n := m.s.nodes[unit]; !v.perNode() || n != nil && n.Exists && !n.drained() && v.wantsOn(n) {
				down++
			}
		}
		if len(units) > 0 && down+len(units) > m.budgetOf(v) {
			m.dump()
			m.fatal.Fatalf("%s: %d more units are ended for their health while %d are down, the budget is %d", v.ID, len(units), down, m.budgetOf(v))
		}
	}
}

// ---- cases

func judged(p *Plan) (n int) {
	for i := range p.Changes {
		if p.Changes[i].Verb == Judge && strings.HasPrefix(p.Changes[i].Reason, "unhealthy") {
			n++
		}
	}
	return n
}

func TestAnUnhealthyTaskIsReplaced(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 3) })
	m.converge()
	old := m.one(t, "s", func(t *Task) bool { return t.Slot == 2 })
	m.ill[old.ID] = "connecting\n  dial tcp 10.0.0.1:80: connection refused  \n\n"
	m.agents()
	if d := m.s.Dirty(); !slices.Contains(d, "s") {
		t.Fatalf("the report wakes nobody: %v", d)
	}
	m.plan(99, false)
	is(t, []any{old.State(), old.Desired}, "[failed shutdown]")
	is(t, old.more().Err, "unhealthy container: dial tcp 10.0.0.1:80: connection refused")
	is(t, len(m.wanted("s")), "2")
	m.plan(99, false)
	next := m.one(t, "s", func(x *Task) bool { return x.Slot == 2 && x.wanted() })
	// It failed: the restart delay rules.
	is(t, []any{next.Desired, next.NotBefore - m.now.UnixMilli(), next.more().Replaces == old.ID, next.more().Failures, next.more().ForHealth}, "[ready 5000 true 1 true]")
	m.converge()
	is(t, len(m.wanted("s")), "3")
	is(t, len(m.s.sick), "0")
}

// A dependency breaks and every replica is unhealthy: a quarter is replaced at a time, the others go on, and the pace is
// that of the restart policy.
func TestEveryReplicaUnhealthy(t *testing.T) {
	for _, c := range []struct {
		replicas, budget uint64
		want             int
	}{{8, 0, 2}, {7, 0, 1}, {3, 0, 1}, {1, 0, 1}, {8, 3, 3}, {2, 9, 2}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			m := cluster(t, 3)
			m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, c.replicas); s.HealthBudget = c.budget })
			m.converge()
			replaced := map[string]bool{}
			for range 300 { // five minutes
				for _, x := range m.s.services["s"].tasks {
					m.ill[x.ID] = "broken"
				}
				m.agents()
				m.plan(99, true)
				up := 0
				for _, x := range m.s.services["s"].tasks {
					if x.Desired == Running && x.Seen >= Starting && x.Seen <= Running {
						up++
					}
					if x.endedForHealth() {
						replaced[x.ID] = true
					}
				}
				if down := int(c.replicas) - up; down > c.want {
					t.Fatalf("%d of %d are down", down, c.replicas)
				}
				m.now = m.now.Add(time.Second)
			}
			if len(replaced) < 10 {
				t.Fatalf("only %d were replaced", len(replaced))
			}
			if c.want < int(c.replicas) {
				held := m.one(t, "s", func(x *Task) bool { return x.wanted() && strings.HasPrefix(x.more().Err, "unhealthy, ") })
				is(t, held.more().Err, fmt.Sprintf("unhealthy, not replaced: %d of at most %d replaced for health now", c.want, c.want))
			}
			// It is repaired: all serve again, those that were held as they are.
			clear(m.ill)
			m.converge()
			is(t, len(m.wanted("s")), fmt.Sprint(c.replicas))
			for _, x := range m.s.services["s"].tasks {
				if x.wanted() && x.State() != Running {
					t.Fatalf("%+v", x)
				}
			}
		})
	}
}

func TestHealthBudgetOfAGlobalService(t *testing.T) {
	m := cluster(t, 9)
	m.nodes["n9"].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_DRAIN
	m.putNode("n9")
	m.service("g", func(s *skepv1.ServiceSpec) { setGlobal(s) })
	m.converge()
	for id := range m.s.tasks {
		m.ill[id] = ""
	}
	m.agents()
	is(t, judged(m.plan(99, false)), "2") // of eight
	is(t, m.one(t, "g", (*Task).endedForHealth).more().Err, "unhealthy container")
	m.converge()
	is(t, len(m.wanted("g")), "8")
}

// Whatever the restart policy, an unhealthy task is ended; where nothing replaces it, its unit stays in the budget.
func TestUnhealthyWithoutRestart(t *testing.T) {
	m := cluster(t, 1)
	m.service("s", func(s *skepv1.ServiceSpec) {
		setReplicas(s, 4)
		s.Task.Restart.Condition = skepv1.RestartCondition_RESTART_CONDITION_NONE
	})
	m.converge()
	for id := range m.s.tasks {
		m.ill[id] = "x"
	}
	m.converge()
	is(t, len(m.wanted("s")), "3")
	// An update brings it back.
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v2" })
	m.converge()
	is(t, len(m.wanted("s")), "4")
}

// Nobody is judged by an old report, nor by one of a node that is about to be left.
func TestOldReportsEndNothing(t *testing.T) {
	m := cluster(t, 1)
	m.service("s", func(*skepv1.ServiceSpec) {})
	m.converge()
	for id := range m.s.tasks {
		m.ill[id] = "x"
	}
	m.live("n1", skepv1.NodeState_NODE_STATE_UNKNOWN)
	m.nodes["n1"].silent = false
	m.agents()
	is(t, judged(m.plan(99, false)), "0")
	m.live("n1", skepv1.NodeState_NODE_STATE_READY)
	is(t, judged(m.plan(99, false)), "1")
}

// One that was never healthy counts as starting: it has not replaced anything, and is ended too.
func TestNeverHealthy(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Restart.Delay = durationpb.New(time.Second) })
	m.plan(99, false)
	for range 30 {
		for id := range m.s.tasks {
			m.ill[id] = "x"
		}
		m.agents()
		for _, x := range m.s.services["s"].tasks {
			if x.Seen == Running {
				t.Fatalf("%s counts as running", x.ID)
			}
		}
		m.plan(99, true)
		m.now = m.now.Add(time.Second)
	}
	// History (3) has forgotten the first verdict; the unit is still down for its health.
	v := m.s.services["s"]
	if !m.s.downForHealth(m.sorted(v)) || m.one(t, "s", (*Task).wanted).more().Failures < 5 {
		m.dump()
		t.Fatal("the row was forgotten")
	}
	clear(m.ill)
	m.converge()
	if m.s.downForHealth(m.sorted(v)) {
		t.Fatal("it serves and still counts as down")
	}
}

func (m *sim) sorted(v *Service) []*Task {
	return slices.SortedFunc(slices.Values(v.tasks), func(a, b *Task) int { return compare(a.Created, b.Created) })
}

func TestLastLine(t *testing.T) {
	for in, want := range map[string]string{"": "", "one": "one", "a\nb\n \n": "b", "a\r\nb\r\n": "b", strings.Repeat("é", 300): strings.Repeat("é", 128), "a\n" + strings.Repeat("x", 255) + "é": strings.Repeat("x", 255)} {
		is(t, lastLine(in), want)
	}
}

// An update makes a task before the one it replaces is ended for its health. Once it has served, that unit was up again:
// when it falls ill itself, that is a verdict more, for which the budget has to have room.
func TestASuccessorThatServedEndsTheVerdict(t *testing.T) {
	old := &Task{ID: "old", Created: 1, Seen: Shutdown, Desired: Shutdown, Verdict: Failed, VerdictAt: 10, More: &More{Err: unhealthyErr}}
	next := &Task{ID: "next", Created: 5, Seen: Starting, Desired: Running, More: &More{Replaces: "old"}}
	s := &State{sick: map[*Task]string{}}
	is(t, s.downForHealth([]*Task{old, next}), "true")
	next.Seen, next.served = Running, true
	s.sick[next] = "no answer"
	is(t, s.downForHealth([]*Task{old, next}), "false")
}
