package reconcile

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// A service that is removed between the making of its first tasks' plan and the commit: the tasks that the commit
// brought must go, or nobody would ever stop them.
func TestServiceRemovedWhileItsPlanIsCommitted(t *testing.T) {
	for _, nodes := range []int{0, 2} { // the tasks stay unplaced, or get nodes
		m := cluster(t, nodes)
		m.service("web", func(s *skepv1.ServiceSpec) { setReplicas(s, 3) })
		p := m.s.Plan(m.now, m.ids, nil)
		if len(p.Changes) != 3 {
			t.Fatalf("%d changes, want 3 tasks", len(p.Changes))
		}
		m.removeService("web")
		m.apply(p, 100, false)
		if got := len(m.s.tasks); got != 3 {
			t.Fatalf("%d tasks stand, want the 3 that were committed", got)
		}
		m.plan(100, false)
		for i := 0; i < 10 && len(m.s.tasks) > 0; i++ {
			m.agents()
			m.apply(m.s.Plan(m.now, m.ids, m.s.Dirty()), 100, false)
		}
		for _, x := range m.s.tasks {
			t.Errorf("%d nodes: task %s of the removed service stays, desired %s", nodes, x.ID, x.Desired)
		}
		if len(m.s.services) != 0 {
			t.Errorf("%d nodes: the removed service is not forgotten", nodes)
		}
	}
}

// Revisions of services that are gone, or trimmed away, leave nothing behind.
func TestRevisionsAreForgotten(t *testing.T) {
	m := cluster(t, 1)
	put := func(key string, id string, n uint64) {
		m.both(func(s *State) error {
			return s.PutRevision(key, enc(&skepv1.Revision{ServiceId: id, Number: n, Spec: &skepv1.ServiceSpec{}}))
		})
	}
	drop := func(key string) {
		m.both(func(s *State) error { return s.PutRevision(key, nil) })
	}
	put("service.never.1", "never", 1) // its service was never stored
	drop("service.never.1")
	if len(m.s.services) != 0 {
		t.Errorf("%d services are known, want none", len(m.s.services))
	}
	m.service("web", func(s *skepv1.ServiceSpec) { setReplicas(s, 1) })
	m.converge()
	put("service.web.90", "web", 90)
	had := len(m.s.services["web"].revs)
	drop("service.web.90")
	drop("service.web.1") // in use: a reservation depends on it
	if got := len(m.s.services["web"].revs); got != had-1 {
		t.Errorf("%d revisions are known, want %d", got, had-1)
	}
}

// A deposed leader's plan meets records that its successor has taken away already.
func TestPlanOverRecordsThatAreGone(t *testing.T) {
	m := cluster(t, 0)
	m.service("web", func(s *skepv1.ServiceSpec) { setReplicas(s, 1) })
	m.plan(10, false)
	m.node("n1")
	m.putNode("n1")
	m.live("n1", skepv1.NodeState_NODE_STATE_READY)
	p := m.s.Plan(m.now, m.ids, nil)
	if len(p.Changes) != 1 || p.Changes[0].Verb != Place {
		t.Fatalf("the plan is %v, want the task placed", p.Changes)
	}
	m.rev++
	if err := m.s.PutTask("_.web.0", nil, m.rev); err != nil {
		t.Fatal(err)
	}
	if b := m.s.Batches(p).Next(10, 1<<20); b != nil {
		t.Errorf("a task that is gone is written: %d writes", len(b.Writes))
	}
}

// The page of a node that was emptied before it was removed goes too, and with it what waits for that.
func TestEmptyPageOfARemovedNode(t *testing.T) {
	m := cluster(t, 2)
	m.service("web", func(s *skepv1.ServiceSpec) { setReplicas(s, 4) })
	m.converge()
	m.service("web", func(s *skepv1.ServiceSpec) { setReplicas(s, 0) })
	m.converge()
	var gone *Page
	for key, p := range m.s.pages {
		if p.Node != nil && p.exists && len(p.Tasks) == 0 {
			gone = p
			m.removeNode(key)
			break
		}
	}
	if gone == nil {
		t.Fatal("no node has an empty page")
	}
	m.plan(10, false)
	if gone.exists {
		t.Error("the page of a removed node stays")
	}
	if p := m.s.Plan(m.now, m.ids, nil); !p.Empty() {
		t.Error("a second plan is not empty")
	}
	left := 0
	for _, p := range m.s.pages {
		if p.Node != nil && p.exists {
			left++
		}
	}
	if left != 1 {
		t.Errorf("%d pages are left, want the other node's", left)
	}
}

// However much history a service asks for, a page must stay below what the broker takes as one message: a page that
// cannot be written would stop every service's plans.
func TestHistoryDoesNotOutgrowAPage(t *testing.T) {
	m := cluster(t, 1)
	m.service("s", func(s *skepv1.ServiceSpec) {
		s.Task.Restart.MaxAttempts = 1_000_000
		s.Task.Restart.Delay = durationpb.New(0)
	})
	m.converge()
	var page []byte
	now := m.s.pages["n1"].Tasks[0]
	st := &skepv1.NodeStatus{NodeId: "n1", Report: 1, Session: "x"}
	for i := range 9000 {
		old := &Task{ID: m.ids.Next(), Slot: 1, Revision: 1, Desired: Shutdown, Created: int64(i + 1), VerdictAt: int64(i + 2),
			More: &More{Replaces: m.ids.Next(), Message: "task rejected by constraint enforcer"}}
		page = appendTask(page, old, "s")
		st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: old.ID, State: skepv1.TaskState_TASK_STATE_FAILED})
	}
	page = appendTask(page, now, "s")
	m.rev++
	m.both(func(s *State) error { return s.PutTask("n1", page, m.rev) })
	st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: now.ID, State: skepv1.TaskState_TASK_STATE_FAILED})
	m.both(func(s *State) error { return s.PutStatus("n1", enc(st), m.now) })
	if len(page) < 800<<10 {
		t.Fatalf("the page has only %d bytes", len(page))
	}
	m.apply(m.s.Plan(m.now, m.ids, nil), 100, false)
	if size := m.s.pages["n1"].size; size > crowdedPage {
		t.Errorf("the page still has %d bytes", size)
	}
	if got := len(m.wanted("s")); got == 0 {
		t.Error("the service was not restarted")
	}
}

// A clock that was wrong by hours and is put right must not hold a restart back for as long.
func TestClockPutBack(t *testing.T) {
	m := cluster(t, 1)
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Restart.Delay = durationpb.New(5 * time.Second) })
	m.converge()
	m.now = m.now.Add(3 * time.Hour)
	m.crash("n1", Failed)
	m.plan(99, true)
	m.agents()
	m.now = m.now.Add(-3 * time.Hour)
	for range 10 {
		m.now = m.now.Add(2 * time.Second)
		m.plan(99, true)
		m.agents()
	}
	if got := m.wanted("s"); len(got) != 1 || m.one(t, "s", (*Task).wanted).Desired != Running {
		t.Errorf("after 20 s the service has %v, want one running task", got)
	} else if at := m.one(t, "s", (*Task).wanted).NotBefore; at != 0 {
		t.Errorf("the started task tells its agent to wait until %d, by the agent's clock", at)
	}
}
