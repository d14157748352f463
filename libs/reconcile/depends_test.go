package reconcile

import (
	"strings"
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

func depend(s *skepv1.ServiceSpec, on string, c skepv1.Dependency_Condition) {
	s.DependsOn = append(s.DependsOn, &skepv1.Dependency{Service: on, Condition: c})
}

// why is what the service's task without a node waits for.
func (m *sim) why(t *testing.T, id string) string {
	t.Helper()
	return m.one(t, id, func(x *Task) bool { return x.Node() == nil }).more().Err
}

// dirtyPlan plans what was touched alone, as the scheduler does.
func (m *sim) dirtyPlan() {
	m.apply(m.s.Plan(m.now, m.ids, m.s.Dirty()), 99, true)
}

func TestTasksWaitForAService(t *testing.T) {
	m := cluster(t, 2)
	m.service("db", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.service("web", func(s *skepv1.ServiceSpec) { depend(s, "db", skepv1.Dependency_CONDITION_STARTED) })
	m.plan(99, true)
	is(t, m.why(t, "web"), "waits for service db to be started (0 of 2)")
	is(t, m.s.Placing(m.s.services["web"], m.now).Summary, "waits for service db to be started (0 of 2); then 2 of 2 nodes suit")
	m.s.Dirty()
	m.agent("n1")
	m.dirtyPlan()
	is(t, m.why(t, "web"), "waits for service db to be started (1 of 2)")
	m.agent("n2") // what wakes it is the other service's task
	m.dirtyPlan()
	web := m.one(t, "web", func(x *Task) bool { return x.Node() != nil })
	// Once it has begun it is neither stopped nor held again: restarted, updated and moved without asking.
	m.converge()
	lose := func() { // db fails, and takes its time to come back
		m.end("db", Failed)
		m.plan(99, true)
	}
	lose()
	is(t, web.State(), "running")
	m.end("web", Failed)
	m.plan(99, true)
	m.now = m.now.Add(5 * time.Second)
	m.plan(99, true)
	is(t, m.one(t, "web", (*Task).wanted).Node() != nil, "true")
	m.converge()
	is(t, len(m.wanted("web")), "1")
	m.service("web", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v2" })
	m.converge()
	is(t, m.one(t, "web", (*Task).wanted).Revision, "2")
	// A new slot is a first task.
	lose()
	m.service("web", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.plan(99, true)
	is(t, strings.HasPrefix(m.why(t, "web"), "waits for service db to be started (0 of 2)"), "true")
	// Without the dependency it goes ahead.
	m.service("web", func(s *skepv1.ServiceSpec) { s.DependsOn = nil })
	m.converge()
	is(t, m.s.unplaced[m.s.services["web"]], "0")
	is(t, len(m.s.dependents), "0")
}

func TestTasksWaitForHealthAndReadiness(t *testing.T) {
	m := cluster(t, 1)
	m.service("db", func(*skepv1.ServiceSpec) {})
	m.service("started", func(s *skepv1.ServiceSpec) { depend(s, "db", skepv1.Dependency_CONDITION_STARTED) })
	m.service("healthy", func(s *skepv1.ServiceSpec) { depend(s, "db", skepv1.Dependency_CONDITION_HEALTHY) })
	m.plan(99, true)
	db := m.one(t, "db", (*Task).wanted)
	say := func(h skepv1.HealthState, notReady bool) {
		m.nodes["n1"].seen[db.ID] = &skepv1.TaskStatus{TaskId: db.ID, State: skepv1.TaskState_TASK_STATE_RUNNING, Health: h, NotReady: notReady}
		m.report("n1", &skepv1.NodeStatus{NodeId: "n1", AppliedGeneration: m.s.nodes["n1"].page.Revision})
		m.dirtyPlan()
	}
	m.s.Dirty()
	say(skepv1.HealthState_HEALTH_STATE_STARTING, true)
	m.one(t, "started", func(x *Task) bool { return x.Node() != nil })
	is(t, m.why(t, "healthy"), "waits for service db to be healthy (0 of 1)")
	say(skepv1.HealthState_HEALTH_STATE_HEALTHY, true)
	is(t, m.why(t, "healthy"), "waits for service db to be healthy (0 of 1)")
	say(skepv1.HealthState_HEALTH_STATE_HEALTHY, false)
	m.one(t, "healthy", func(x *Task) bool { return x.Node() != nil })
}

func TestTasksWaitForAJob(t *testing.T) {
	m := cluster(t, 1)
	m.service("migrate", func(s *skepv1.ServiceSpec) {
		setJob(s, 2, 1)
		s.Task.Restart.MaxAttempts = 1
	})
	m.service("web", func(s *skepv1.ServiceSpec) { depend(s, "migrate", skepv1.Dependency_CONDITION_COMPLETED) })
	m.service("each", func(s *skepv1.ServiceSpec) {
		setGlobal(s)
		depend(s, "web", skepv1.Dependency_CONDITION_STARTED)
	})
	m.plan(99, true)
	is(t, m.why(t, "web"), "waits for service migrate to complete (0 of 2)")
	m.steps(2)
	m.end("migrate", Complete)
	m.steps(2)
	is(t, m.why(t, "web"), "waits for service migrate to complete (1 of 2)")
	m.nodes["n1"].fail = true
	for range 4 {
		m.steps(2)
		m.now = m.now.Add(10 * time.Second)
	}
	m.end("migrate", Failed)
	for range 8 {
		m.steps(2)
		m.end("migrate", Failed)
		m.now = m.now.Add(10 * time.Second)
	}
	is(t, m.why(t, "web"), "waits for service migrate to complete: its run 1 failed")
	is(t, m.why(t, "each"), "waits for service web to be started (0 of 1)")
	m.nodes["n1"].fail = false
	m.service("migrate", func(s *skepv1.ServiceSpec) { s.Task.ForceUpdate++ }) // run 2
	for range 4 {
		m.steps(2)
		m.end("migrate", Complete)
	}
	m.steps(3)
	is(t, m.wanted("web"), "[1@n1]")
	is(t, m.wanted("each"), "[0@n1]")
	// A service that is gone is waited for until somebody says not to.
	m.service("late", func(s *skepv1.ServiceSpec) { depend(s, "migrate", skepv1.Dependency_CONDITION_COMPLETED) })
	m.removeService("migrate")
	m.steps(3)
	is(t, strings.Contains(m.why(t, "late"), "which was removed"), "true")
}

func TestScheduledDependencyThatHasNotRun(t *testing.T) {
	m := cluster(t, 1)
	m.service("cron", func(s *skepv1.ServiceSpec) { setJob(s, 1, 1); schedule(s, "@daily", 0) })
	m.service("web", func(s *skepv1.ServiceSpec) { depend(s, "cron", skepv1.Dependency_CONDITION_COMPLETED) })
	m.plan(99, true)
	is(t, m.why(t, "web"), "waits for service cron to complete, which has not run yet")
}

// Planning what would be leaves no dependency behind.
func TestWhatIfForgetsDependencies(t *testing.T) {
	m := cluster(t, 1)
	m.service("db", func(*skepv1.ServiceSpec) {})
	spec := &skepv1.ServiceSpec{Name: "x", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "v1"}}}
	setReplicas(spec, 1)
	depend(spec, "db", skepv1.Dependency_CONDITION_STARTED)
	p, _ := m.s.WhatIf(&skepv1.Service{Meta: &skepv1.Meta{Id: "x"}, Spec: spec, Revision: 1}, false, m.now, m.ids)
	is(t, len(p.Changes), "1")
	is(t, p.Changes[0].Reason, "waits for service db to be started (0 of 1)")
	is(t, len(m.s.dependents), "0")
}
