package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

func cluster(t *testing.T, nodes int) *sim {
	m := newSim(t)
	for i := range nodes {
		m.node(fmt.Sprint("n", i+1))
	}
	return m
}

// wanted lists the service's tasks that should run, as slot@node, sorted.
func (m *sim) wanted(id string) []string {
	var out []string
	for _, t := range m.s.services[id].tasks {
		if t.wanted() {
			at := "-"
			if n := t.Node(); n != nil {
				at = n.ID
			}
			out = append(out, fmt.Sprintf("%d@%s", t.Slot, at))
		}
	}
	slices.Sort(out)
	return out
}

func (m *sim) one(t *testing.T, id string, ok func(*Task) bool) *Task {
	t.Helper()
	for _, x := range m.s.services[id].tasks {
		if ok(x) {
			return x
		}
	}
	m.dump()
	t.Fatal("no such task")
	return nil
}

func is(t *testing.T, got any, want string) {
	t.Helper()
	if s := fmt.Sprint(got); s != want {
		t.Fatalf("got %s, want %s", s, want)
	}
}

func TestScaleDownOrder(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 5) })
	m.converge()
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.converge()
	// The third and fourth copies on a node go before the second: one is left on each, in the lowest slots.
	is(t, m.wanted("s"), "[1@n1 2@n2]")
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 3) })
	m.converge()
	is(t, len(m.wanted("s")), "3")
	if m.wanted("s")[2][:1] != "3" {
		t.Fatalf("the lowest free slot is 3: %v", m.wanted("s"))
	}
}

func TestRestartDelayIsForFailuresOnly(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) {})
	m.converge()
	first := m.one(t, "s", (*Task).wanted)
	at := m.now
	m.crash(first.Node().ID, Failed)
	p := m.plan(99, false)
	next := m.one(t, "s", (*Task).wanted)
	if next.Desired != Ready || next.NotBefore != at.UnixMilli()+5000 || next.more().Replaces != first.ID || !p.NextWake().Equal(time.UnixMilli(next.NotBefore)) {
		t.Fatalf("%+v, wake %v", next, p.NextWake())
	}
	m.agents()
	m.plan(99, false)
	is(t, next.Desired, "ready")
	m.now = at.Add(5 * time.Second)
	m.plan(99, false)
	is(t, next.Desired, "running")
	m.converge()
	m.live(next.Node().ID, skepv1.NodeState_NODE_STATE_DOWN)
	p = m.plan(99, false)
	third := m.one(t, "s", (*Task).wanted)
	if third.Desired != Running || third.Node() == nil || third.Node().lost() || !p.NextWake().IsZero() && p.NextWake().Sub(m.now) < time.Hour {
		t.Fatalf("%+v, wake %v", third, p.NextWake())
	}
}

func TestRestartPolicy(t *testing.T) {
	for _, c := range []struct {
		name      string
		condition skepv1.RestartCondition
		end       TaskState
		restarts  bool
	}{
		{"any, failed", skepv1.RestartCondition_RESTART_CONDITION_ANY, Failed, true},
		{"any, complete", skepv1.RestartCondition_RESTART_CONDITION_ANY, Complete, true},
		{"on-failure, failed", skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE, Failed, true},
		{"on-failure, rejected", skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE, Rejected, true},
		{"on-failure, complete", skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE, Complete, false},
		{"none", skepv1.RestartCondition_RESTART_CONDITION_NONE, Failed, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := cluster(t, 1)
			m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Restart.Condition = c.condition })
			m.converge()
			m.crash("n1", c.end)
			m.converge()
			is(t, len(m.wanted("s")) == 1, fmt.Sprint(c.restarts))
			// Whatever the policy, an update starts it again.
			m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v2" })
			m.converge()
			is(t, m.wanted("s"), "[1@n1]")
		})
	}
}

func TestRestartAttemptsAndHistory(t *testing.T) {
	m := cluster(t, 1)
	m.nodes["n1"].fail = true
	m.service("s", func(s *skepv1.ServiceSpec) {
		s.Task.Restart.MaxAttempts = 4
		s.Task.Restart.Delay = durationpb.New(time.Second)
	})
	m.converge()
	is(t, len(m.wanted("s")), "0")
	is(t, len(m.s.services["s"].tasks), "5") // the first and four restarts, all kept
	// Without a limit of attempts the history limit (3) holds, the one that waits included.
	m = cluster(t, 1)
	m.nodes["n1"].fail = true
	m.service("s", func(s *skepv1.ServiceSpec) {})
	for range 50 {
		m.agents()
		m.plan(99, true)
		m.now = m.now.Add(2 * time.Second)
	}
	if n := len(m.s.services["s"].tasks); n != 3 {
		t.Fatalf("%d tasks kept", n)
	}
}

func TestFailuresMoveATaskAway(t *testing.T) {
	m := cluster(t, 2)
	m.nodes["n1"].fail = true
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Restart.Delay = durationpb.New(time.Second) })
	m.converge()
	is(t, m.wanted("s"), "[1@n2]")
}

func TestUpdateStopFirstPreparesBeforeItStops(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 4); s.Update.Parallelism = 2 })
	m.converge()
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v2" })
	m.plan(99, false)
	held, running := 0, 0
	for _, x := range m.s.services["s"].tasks {
		switch {
		case x.Desired == Ready:
			held++
		case x.Desired == Running:
			running++
		}
	}
	is(t, []int{held, running}, "[2 4]") // nothing is stopped before its replacement is prepared
	is(t, m.s.services["s"].rollout.Status.State, "updating")
	for range 60 {
		m.agents()
		m.plan(99, true)
		up := 0
		for _, x := range m.s.services["s"].tasks {
			if x.State() == Running && x.Desired == Running {
				up++
			}
		}
		if up < 2 {
			t.Fatalf("only %d run during an update of 2 at a time", up)
		}
		m.now = m.now.Add(time.Millisecond)
	}
	m.converge()
	is(t, m.s.services["s"].rollout.Status.State, "completed")
	is(t, len(m.wanted("s")), "4")
}

func TestUpdateThatCannotBePreparedKeepsTheOld(t *testing.T) {
	m := cluster(t, 1)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.converge()
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.labels.zone==nowhere"} })
	m.converge()
	up := 0
	for _, x := range m.s.services["s"].tasks {
		if x.State() == Running && x.Desired == Running {
			up++
		}
	}
	is(t, up, "2")
	x := m.one(t, "s", func(t *Task) bool { return t.Node() == nil })
	is(t, x.more().Err, "no suitable node (scheduling constraints not satisfied on 1 node)")
	is(t, m.s.services["s"].rollout.Status.State, "updating")
	// Taking it back finishes it.
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Placement.Constraints = nil })
	m.converge()
	is(t, m.s.services["s"].rollout.Status.State, "completed")
	is(t, m.wanted("s"), "[1@n1 2@n1]")
}

// An update whose tasks fail must not burn through tasks: the restart delay rules, the old ones go on.
func TestBrokenUpdateIsPaced(t *testing.T) {
	for _, order := range []skepv1.UpdateOrder{skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST, skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST} {
		m := cluster(t, 2)
		m.service("s", func(s *skepv1.ServiceSpec) {
			setReplicas(s, 2)
			s.Update.Order, s.Update.FailureAction = order, skepv1.FailureAction_FAILURE_ACTION_CONTINUE
		})
		m.converge()
		m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "broken" })
		made := map[string]bool{}
		for range 100 { // a minute
			m.plan(99, false)
			m.agents()
			for _, x := range m.s.services["s"].tasks {
				if x.Revision == 2 && x.Node() != nil {
					made[x.ID] = true
					if st := m.nodes[x.Node().ID].seen[x.ID]; st != nil && TaskState(st.State) <= Running {
						st.State = skepv1.TaskState(Rejected)
					}
				}
			}
			m.agents()
			m.now = m.now.Add(600 * time.Millisecond)
		}
		up := 0
		for _, x := range m.s.services["s"].tasks {
			if x.Revision == 1 && x.State() == Running && x.Desired == Running {
				up++
			}
		}
		is(t, up, "2")
		if len(made) < 5 || len(made) > 26 {
			t.Fatalf("%v: %d tasks in a minute, the delay is 5 s and there are two slots", order, len(made))
		}
	}
}

func TestPlacementOnlyChangeNeedsNoRestart(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.converge()
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.id==n1"} })
	before := m.one(t, "s", func(t *Task) bool { return t.Node() != nil && t.Node().ID == "n1" })
	m.converge()
	is(t, m.wanted("s"), "[1@n1 2@n1]")
	if !before.wanted() {
		t.Fatal("a task that satisfies the new placement was restarted")
	}
}

func TestDrainStartsBeforeItStops(t *testing.T) {
	m := cluster(t, 3)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 6); s.Update.Order = startFirst })
	m.converge()
	m.nodes["n1"].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_DRAIN
	m.putNode("n1")
	for range 20 {
		m.plan(99, false)
		m.agents()
		up := 0
		for _, x := range m.s.services["s"].tasks {
			if x.State() == Running && x.Desired == Running {
				up++
			}
		}
		if up < 6 {
			t.Fatalf("%d of 6 run during a drain", up)
		}
	}
	m.converge()
	for _, w := range m.wanted("s") {
		if w[2:] == "n1" {
			t.Fatalf("%v", m.wanted("s"))
		}
	}
	// Nowhere to go: drain means drain.
	m = cluster(t, 1)
	m.service("s", func(*skepv1.ServiceSpec) {})
	m.converge()
	m.nodes["n1"].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_DRAIN
	m.putNode("n1")
	m.converge()
	is(t, m.wanted("s"), "[1@-]")
}

func TestUnknownNodeIsLeftAlone(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 4) })
	m.converge()
	m.live("n1", skepv1.NodeState_NODE_STATE_UNKNOWN)
	if p := m.plan(99, false); !p.Empty() {
		t.Fatalf("%v", p.Changes)
	}
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 6) })
	m.converge()
	is(t, m.wanted("s"), "[1@n1 2@n2 3@n1 4@n2 5@n2 6@n2]")
}

func TestConstraintEnforcer(t *testing.T) {
	m := cluster(t, 2)
	for _, n := range []string{"n1", "n2"} {
		m.nodes[n].obj.Spec.Labels = map[string]string{"zone": "a"}
		m.putNode(n)
	}
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.labels.zone==a"} })
	m.converge()
	old := m.one(t, "s", (*Task).wanted)
	m.nodes[old.Node().ID].obj.Spec.Labels = nil
	m.putNode(old.Node().ID)
	m.plan(99, false)
	if old.Verdict != Rejected || old.more().Err != "assigned node no longer meets constraints" || old.more().Message != "task rejected by constraint enforcer" || old.Desired != Shutdown {
		t.Fatalf("%+v", old)
	}
	m.converge()
	if next := m.one(t, "s", (*Task).wanted); next.Node() == old.Node() || next.State() != Running {
		t.Fatalf("%+v", next)
	}
}

func TestShrunkNodeGivesUpItsNewestTasks(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 4); s.Task.Resources.Reservations.NanoCpus = 2e9 })
	m.converge()
	m.nodes["n1"].desc.Resources.NanoCpus = 2e9
	m.putNode("n1")
	m.converge()
	on := 0
	for _, w := range m.wanted("s") {
		if w[2:] == "n1" {
			on++
		}
	}
	is(t, on, "1")
	x := m.one(t, "s", func(t *Task) bool { return t.wanted() && t.Node() == nil })
	is(t, x.more().Err, "no suitable node (insufficient resources on 2 nodes)")
}

func TestRemovedNode(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.service("g", func(s *skepv1.ServiceSpec) { setGlobal(s) })
	m.converge()
	m.live("n1", skepv1.NodeState_NODE_STATE_DOWN)
	m.converge()
	m.removeNode("n1")
	m.converge()
	for _, x := range m.s.services["s"].tasks {
		if x.Node().ID == "n1" && (x.State() != Orphaned || x.more().Message != "Task belonged to a node that has been deleted") {
			t.Fatalf("%+v", x)
		}
	}
	is(t, len(m.s.services["g"].tasks), "1")
}

func TestUnplacedTasksArePlacedWhenRoomAppears(t *testing.T) {
	m := cluster(t, 0)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 2500) })
	m.converge()
	is(t, len(m.s.services["s"].spare), "3") // a thousand to a page
	m.node("n1")
	m.converge()
	is(t, len(m.s.unplaced), "0")
	for _, p := range m.s.services["s"].spare {
		if p.exists {
			t.Fatalf("page %s is left", p.Key)
		}
	}
	is(t, len(m.wanted("s")), "2500")
}

func TestJobs(t *testing.T) {
	m := cluster(t, 2)
	m.service("j", func(s *skepv1.ServiceSpec) {
		s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: 2, TotalCompletions: 5}}}
	})
	for range 20 {
		m.agents()
		m.plan(99, true)
		if n := len(m.wanted("j")); n > 2 {
			t.Fatalf("%d at once", n)
		}
		m.agents()
		m.crash("n1", Complete)
		m.crash("n2", Complete)
		m.now = m.now.Add(time.Second)
	}
	done := 0
	for _, x := range m.s.services["j"].tasks {
		if x.State() == Complete && x.Slot >= 1 && x.Slot <= 5 {
			done++
		}
	}
	is(t, done, "5")
	is(t, len(m.wanted("j")), "0")
	if p := m.plan(99, true); !p.Empty() {
		t.Fatalf("%v", p.Changes)
	}
	// Run again.
	v := m.specs["j"]
	v.JobIteration++
	m.both(func(s *State) error { return s.PutSpec("service.j", enc(v)) })
	m.converge()
	is(t, len(m.wanted("j")), "2")
	m.service("g", func(s *skepv1.ServiceSpec) {
		s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_GlobalJob{GlobalJob: &skepv1.GlobalJobMode{}}}
	})
	m.converge()
	is(t, len(m.wanted("g")), "2")
}

func TestWhatIfLeavesNoTrace(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.converge()
	m.s.Dirty()
	next := &skepv1.Service{Meta: &skepv1.Meta{Id: "s"}, Revision: 1, Spec: &skepv1.ServiceSpec{Name: "s", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "v9"}}}}
	setReplicas(next.Spec, 3)
	p, why := m.s.WhatIf(next, false, m.now, m.ids)
	if p.Empty() || why.Summary != "2 of 2 nodes suit" {
		t.Fatal(p.Changes, why)
	}
	if p, _ := m.s.WhatIf(next, true, m.now, m.ids); len(p.Changes) != 2 || p.Changes[0].Verb != Delete {
		t.Fatal(p.Changes)
	}
	fresh := &skepv1.Service{Revision: 1, Spec: next.Spec}
	if p, _ := m.s.WhatIf(fresh, false, m.now, m.ids); len(p.Changes) != 3 || !strings.HasPrefix(p.Changes[0].String(), "create "+next.Spec.Name+".") {
		t.Fatal(p.Changes)
	}
	if m.s.HasDirty() || len(m.s.services) != 1 {
		t.Fatal("a trace is left")
	}
	if p := m.s.Plan(m.now, m.ids, nil); !p.Empty() {
		t.Fatal(p.Changes)
	}
}

// Nobody waits for a node that is down: neither service rm nor a scale.
func TestRemoveFromANodeThatIsDown(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.converge()
	m.live("n1", skepv1.NodeState_NODE_STATE_DOWN)
	m.converge()
	m.removeService("s")
	m.converge()
	for id := range m.s.services {
		if v := m.s.services[id]; len(v.tasks) > 0 {
			t.Fatalf("%d tasks are left: %+v", len(v.tasks), v.tasks[0])
		}
	}
}

// A change of placement alone moves tasks at the update's pace, as any other update does, also while the old ones take
// their time to stop.
func TestPlacementUpdateKeepsItsPace(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 3); s.Task.Placement.Constraints = []string{"node.id==n1"} })
	m.converge()
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.id==n2"} })
	for range 20 {
		m.agent("n2") // n1 has not stopped anything yet
		m.plan(99, true)
		up := 0
		for _, x := range m.s.services["s"].tasks {
			if x.Desired == Running && x.State() == Running {
				up++
			}
		}
		if up < 2 {
			t.Fatalf("only %d of 3 run during an update of one at a time", up)
		}
		m.now = m.now.Add(time.Millisecond)
	}
	m.converge()
	is(t, m.wanted("s"), "[1@n2 2@n2 3@n2]")
	is(t, m.s.services["s"].rollout.Status.State, "completed")
}
