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
	"pgregory.net/rapid"

	"skep.dev/libs/job"
	specs "skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// views are the service's tasks as a client sees them.
func (m *sim) views(id string) job.Tasks {
	return func() []*skepv1.Task {
		var out []*skepv1.Task
		if v := m.s.services[id]; v != nil {
			for _, t := range v.tasks {
				out = append(out, t.view())
			}
		}
		return out
	}
}

func setJob(s *skepv1.ServiceSpec, total, atOnce uint64) {
	s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: atOnce, TotalCompletions: total}}}
	s.Update = nil
}

func setGlobalJob(s *skepv1.ServiceSpec) {
	s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_GlobalJob{GlobalJob: &skepv1.GlobalJobMode{}}}
	s.Update = nil
}

func schedule(s *skepv1.ServiceSpec, cron string, c skepv1.Concurrency) {
	s.Schedule = &skepv1.Schedule{Cron: cron, Concurrency: c}
	specs.Defaults(s)
}

// answer lets state carry out what a plan asks for, and returns what it said.
func (m *sim) answer(asked []RunChange) (errs []error) {
	for _, r := range asked {
		v := proto.CloneOf(m.specs[r.Service.ID])
		if v == nil {
			continue
		}
		changed, err := job.Decide(v, r.Decision, m.now, m.views(v.Meta.Id))
		if err != nil {
			errs = append(errs, err)
		} else if changed {
			m.store(v)
		}
	}
	return errs
}

func (m *sim) store(v *skepv1.Service) {
	m.specs[v.Meta.Id] = v
	m.both(func(s *State) error { return s.PutSpec("service."+v.Meta.Id, enc(v)) })
}

// end ends every task of the service that runs.
func (m *sim) end(id string, state TaskState) {
	for _, n := range slices.Sorted(maps.Keys(m.nodes)) {
		node := m.nodes[n]
		if node.silent {
			continue
		}
		for _, k := range slices.Sorted(maps.Keys(node.seen)) {
			if t := m.s.tasks[k]; t != nil && t.Service.ID == id && TaskState(node.seen[k].State) == Running {
				node.seen[k] = &skepv1.TaskStatus{TaskId: k, State: skepv1.TaskState(state), SinceUnixMs: m.now.UnixMilli()}
			}
		}
		st := &skepv1.NodeStatus{NodeId: n}
		if p := m.s.nodes[n].page; p != nil {
			st.AppliedGeneration = p.Revision
		}
		m.report(n, st)
	}
}

// step lets everybody act once, and answers what the plan asks for.
func (m *sim) step() *Plan {
	m.agents()
	p := m.plan(99, true)
	m.answer(p.Runs)
	return p
}

func (m *sim) steps(n int) {
	for range n {
		m.step()
	}
}

// runs lists the service's kept runs, newest first, as number:state:completed.
func (m *sim) runs(id string) string {
	var out []string
	for _, r := range job.Runs(m.specs[id], m.views(id)()) {
		out = append(out, fmt.Sprintf("%d:%s:%d", r.Control.Iteration, r.State, r.Completed))
	}
	return strings.Join(out, " ")
}

func TestJobRunsAgainWhenUpdated(t *testing.T) {
	m := cluster(t, 2)
	m.service("j", func(s *skepv1.ServiceSpec) { setJob(s, 3, 2) })
	m.steps(3)
	is(t, m.runs("j"), "1:running:0")
	m.end("j", Complete)
	m.steps(2)
	m.service("j", func(s *skepv1.ServiceSpec) { s.Task.ForceUpdate++ })
	is(t, m.runs("j"), "2:running:0 1:stopped:2") // nothing of it has happened yet, but it will not end any more
	m.steps(4)
	for _, x := range m.s.services["j"].tasks {
		if x.more().Iteration == 1 && x.wanted() {
			t.Fatalf("a task of the first run still runs: %+v", x)
		}
	}
	m.end("j", Complete)
	m.steps(3)
	m.end("j", Complete)
	m.steps(3)
	is(t, m.runs("j"), "2:completed:3 1:stopped:2")
	is(t, m.plan(99, true).Empty(), "true")
}

func TestJobFails(t *testing.T) {
	for _, c := range []struct {
		name      string
		condition skepv1.RestartCondition
		attempts  uint64
		tasks     int
	}{
		{"none", skepv1.RestartCondition_RESTART_CONDITION_NONE, 0, 2},
		{"two attempts", skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE, 2, 6},
		{"any is on-failure for a job", skepv1.RestartCondition_RESTART_CONDITION_ANY, 1, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := cluster(t, 1)
			m.nodes["n1"].fail = true
			m.service("j", func(s *skepv1.ServiceSpec) {
				setJob(s, 2, 1)
				s.Task.Restart = &skepv1.RestartPolicy{Condition: c.condition, MaxAttempts: c.attempts, Delay: durationpb.New(time.Second)}
			})
			m.converge()
			is(t, m.runs("j"), "1:failed:0")
			is(t, len(m.s.services["j"].tasks), fmt.Sprint(c.tasks))
		})
	}
}

func TestJobTaskOfADrainedNodeStopsFirst(t *testing.T) {
	m := cluster(t, 2)
	m.service("j", func(s *skepv1.ServiceSpec) { setJob(s, 1, 1) })
	m.steps(3)
	old := m.one(t, "j", (*Task).wanted)
	m.nodes[old.Node().ID].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_DRAIN
	m.putNode(old.Node().ID)
	m.plan(99, true)
	for _, x := range m.s.services["j"].tasks {
		if x != old && x.Desired == Complete {
			t.Fatalf("it runs beside the one it replaces: %+v", x)
		}
	}
	is(t, old.Desired, "shutdown")
	m.steps(4)
	next := m.one(t, "j", (*Task).wanted)
	if next.Node() == old.Node() || next.Desired != Complete {
		t.Fatalf("%+v", next)
	}
}

// What was completed stays completed when its node is removed and its reports with it, also for a scheduler that starts
// then.
func TestCompletionOutlivesItsNode(t *testing.T) {
	m := cluster(t, 1)
	m.service("j", func(s *skepv1.ServiceSpec) { setJob(s, 1, 1) })
	m.steps(3)
	m.end("j", Complete)
	m.steps(2)
	m.removeNode("n1")
	m.node("n2")
	m.steps(3)
	m.both(func(s *State) error { return s.PutStatus("n1", nil, m.now) })
	for _, x := range m.s.tasks {
		x.Seen = New // as a scheduler that starts now sees it
	}
	m.steps(3)
	is(t, m.runs("j"), "1:completed:1")
	is(t, len(m.s.tasks), "1")
}

func TestScheduleRunsAtItsTimes(t *testing.T) {
	m := cluster(t, 1)
	m.service("j", func(s *skepv1.ServiceSpec) { setJob(s, 1, 1); schedule(s, "*/5 * * * *", 0) })
	p := m.step()
	is(t, len(m.s.tasks), "0") // not when it is made
	is(t, m.runs("j"), "")
	due := m.now.Truncate(5 * time.Minute).Add(5 * time.Minute)
	is(t, p.NextWake().Equal(due), "true")
	m.now = due.Add(3 * time.Millisecond)
	m.steps(3)
	is(t, m.runs("j"), "1:running:0")
	is(t, m.specs["j"].Run.Due.AsTime().Equal(due), "true")
	m.end("j", Complete)
	m.now = m.now.Add(time.Minute)
	m.steps(3)
	is(t, m.runs("j"), "1:completed:1")
	// A clock that is put back does not bring back what was run.
	m.now = due.Add(-time.Hour)
	m.steps(3)
	m.now = due.Add(3 * time.Second)
	m.steps(3)
	is(t, m.runs("j"), "1:completed:1")
	// Forward, far beyond the catch-up time: what was missed is not run, and said to be missed; the next time is.
	m.now = due.Add(2*time.Hour + 2*time.Minute)
	m.steps(3)
	is(t, m.runs("j"), "1:completed:1")
	is(t, m.specs["j"].Run.Skipped, "1")
	// Forward within it: the newest of the missed ones alone.
	m.now = due.Add(2*time.Hour + 15*time.Minute + 40*time.Second)
	m.steps(4)
	is(t, m.runs("j"), "2:running:0 1:completed:1")
	is(t, m.specs["j"].Run.Due.AsTime().Equal(due.Add(2*time.Hour+15*time.Minute)), "true")
	// An update neither runs it nor stops what runs.
	m.service("j", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v2" })
	m.steps(3)
	is(t, m.runs("j"), "2:running:0 1:completed:1")
}

func TestScheduleNeverMakesUpWithoutCatchUp(t *testing.T) {
	m := cluster(t, 1)
	m.service("j", func(s *skepv1.ServiceSpec) {
		setJob(s, 1, 1)
		s.Schedule = &skepv1.Schedule{Cron: "@hourly", CatchUp: durationpb.New(0)}
		specs.Defaults(s)
	})
	m.now = m.now.Truncate(time.Hour).Add(time.Hour + 30*time.Second)
	m.steps(2)
	is(t, m.runs("j"), "")
	m.now = m.now.Truncate(time.Hour).Add(time.Hour + 2*time.Second) // a leader that changed just then
	m.steps(2)
	is(t, m.runs("j"), "1:running:0")
}

func TestScheduleConcurrency(t *testing.T) {
	for _, c := range []struct {
		how        skepv1.Concurrency
		during     string
		after      string
		tasks, lag int
	}{
		{skepv1.Concurrency_CONCURRENCY_FORBID, "1:running:0", "1:completed:2", 2, 1},
		{skepv1.Concurrency_CONCURRENCY_REPLACE, "2:running:0 1:stopped:0", "2:completed:2 1:stopped:0", 2, 0},
		{skepv1.Concurrency_CONCURRENCY_ALLOW, "2:running:0 1:running:0", "2:completed:2 1:completed:2", 4, 0},
	} {
		t.Run(c.how.String(), func(t *testing.T) {
			m := cluster(t, 2)
			m.service("j", func(s *skepv1.ServiceSpec) { setJob(s, 2, 2); schedule(s, "@every 10s", c.how) })
			m.now = m.now.Add(10 * time.Second)
			m.steps(3)
			m.now = m.now.Add(10 * time.Second)
			m.steps(4)
			is(t, m.runs("j"), c.during)
			is(t, len(m.wanted("j")), fmt.Sprint(c.tasks))
			is(t, m.specs["j"].Run.Skipped, fmt.Sprint(c.lag))
			m.end("j", Complete)
			m.steps(3)
			is(t, m.runs("j"), c.after)
		})
	}
}

// A run that takes another's place begins where nothing of that one is left: each case says what becomes of the old run's
// tasks, on two nodes, before the new one may start.
func TestRunThatReplacesWaits(t *testing.T) {
	stopped := func(m *sim) { m.agents() }
	for _, c := range []struct {
		name   string
		global bool
		forced bool // begun by an update of a job without a schedule
		slow   func(*sim)
		end    func(*sim)
	}{
		{name: "replace", end: stopped},
		{name: "replace, global", global: true, end: stopped},
		{name: "an update", forced: true, end: stopped},
		{name: "one node is slow", slow: func(m *sim) { m.agent("n1") }, end: func(m *sim) { m.agent("n2") }},
		{name: "one node dies", slow: func(m *sim) { m.agent("n1") }, end: func(m *sim) { m.live("n2", skepv1.NodeState_NODE_STATE_DOWN) }},
		{name: "one node is removed", slow: func(m *sim) { m.agent("n1") }, end: func(m *sim) { m.removeNode("n2") }},
		{name: "the run is not kept", slow: func(m *sim) {
			v := proto.CloneOf(m.specs["j"])
			v.Runs = nil
			m.store(v)
			m.plan(99, true)
			m.agent("n1")
		}, end: stopped},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := cluster(t, 2)
			m.service("j", func(s *skepv1.ServiceSpec) {
				if setJob(s, 2, 2); c.global {
					setGlobalJob(s)
				}
				if !c.forced {
					schedule(s, "@every 10s", skepv1.Concurrency_CONCURRENCY_REPLACE)
				}
			})
			again := func() {
				m.now = m.now.Add(10 * time.Second)
				if c.forced {
					m.service("j", func(s *skepv1.ServiceSpec) { s.Task.ForceUpdate++ })
				}
				m.answer(m.plan(99, true).Runs)
				m.plan(99, true)
			}
			if !c.forced {
				m.step()
				again()
			}
			m.steps(3)
			is(t, len(m.wanted("j")), "2")
			again()
			is(t, m.specs["j"].JobIteration, "2")
			waits := func() {
				t.Helper()
				m.plan(99, true)
				for _, x := range m.s.services["j"].tasks {
					if x.wanted() && (x.Node() != nil || x.more().Iteration != 2 || x.more().Err != "waits for run 1 of the job to end") {
						t.Fatalf("a task beside those of the run before: %+v %+v", x, x.more())
					}
				}
				is(t, len(m.wanted("j")), "2")
				is(t, strings.HasPrefix(m.s.Placing(m.s.services["j"], m.now).Summary, "waits for run 1 of the job to end; then "), "true")
			}
			waits()
			if c.slow != nil {
				c.slow(m)
				waits()
			}
			c.end(m)
			m.steps(2)
			is(t, len(m.wanted("j")) > 0, "true")
			for _, x := range m.s.services["j"].tasks {
				if x.wanted() && (x.Node() == nil || x.more().Iteration != 2) {
					t.Fatalf("it waits although nothing is left to wait for: %+v %+v", x, x.more())
				}
			}
		})
	}
}

func TestScheduleKeeps(t *testing.T) {
	m := cluster(t, 1)
	m.service("j", func(s *skepv1.ServiceSpec) {
		setJob(s, 1, 1)
		s.Task.Restart.Condition = skepv1.RestartCondition_RESTART_CONDITION_NONE
		s.Schedule = &skepv1.Schedule{Cron: "@every 10s", KeepCompleted: proto.Uint32(2), KeepFailed: proto.Uint32(0)}
		specs.Defaults(s)
	})
	for i, how := range []TaskState{Complete, Complete, Failed, Complete, Complete, Failed} {
		m.now = m.now.Add(10 * time.Second)
		m.steps(4)
		m.end("j", how)
		m.steps(4)
		is(t, m.specs["j"].JobIteration, fmt.Sprint(i+1))
	}
	is(t, m.runs("j"), "6:failed:0 5:completed:1 4:completed:1") // the newest stays whatever came of it
	m.steps(3)
	is(t, len(m.s.tasks), "3")
	is(t, m.plan(99, true).Empty(), "true")
}

func TestGlobalJobOfAScheduleIsForTheNodesOfItsTime(t *testing.T) {
	m := cluster(t, 2)
	m.service("j", func(s *skepv1.ServiceSpec) { setGlobalJob(s); schedule(s, "@every 10s", 0) })
	m.now = m.now.Add(10 * time.Second)
	m.steps(3)
	m.end("j", Complete)
	m.steps(2)
	m.node("n3")
	m.steps(3)
	is(t, len(m.s.tasks), "2")
	m.live("n2", skepv1.NodeState_NODE_STATE_DOWN)
	m.now = m.now.Add(10 * time.Second)
	m.steps(3)
	is(t, m.runs("j"), "2:running:0 1:completed:2")
	m.end("j", Complete)
	m.now = m.now.Add(10 * time.Second)
	m.steps(3)
	// n1 falls silent amid the third run: that does not hold up the fourth.
	m.live("n1", skepv1.NodeState_NODE_STATE_DOWN)
	m.end("j", Complete)
	m.now = m.now.Add(10 * time.Second)
	m.steps(4)
	is(t, m.specs["j"].JobIteration, "4")
}

// Random jobs in a random cluster: never more tasks of a run at once than it allows, and once the trouble ends every job
// completes.
func TestRandomJobsComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newSim(t)
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			m.node(fmt.Sprint("n", i))
		}
		ids := []string{"a", "b"}
		gone := map[string]bool{}
		for _, id := range ids {
			m.service(id, func(s *skepv1.ServiceSpec) {
				if rapid.IntRange(0, 3).Draw(t, "global") == 0 {
					setGlobalJob(s)
				} else {
					setJob(s, uint64(rapid.IntRange(0, 6).Draw(t, "total")), uint64(rapid.IntRange(1, 4).Draw(t, "at once")))
				}
				if rapid.Bool().Draw(t, "scheduled") {
					schedule(s, "@every 20s", skepv1.Concurrency(rapid.IntRange(1, 3).Draw(t, "concurrency")))
				}
			})
		}
		nodeID := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("n", rapid.IntRange(0, 4).Draw(t, "node")) })
		plan := func(most int, feed bool) {
			p := m.plan(most, feed)
			m.atMost(ids)
			m.answer(p.Runs)
		}
		t.Repeat(map[string]func(*rapid.T){
			"node": func(t *rapid.T) {
				id := nodeID.Draw(t, "id")
				if gone[id] {
					return // ids are never used twice: the newcomer would report other ends of the tasks than the old one did
				}
				n := m.node(id)
				switch rapid.IntRange(0, 4).Draw(t, "what") {
				case 0:
					m.live(id, skepv1.NodeState_NODE_STATE_DOWN)
				case 1, 2:
					m.live(id, skepv1.NodeState_NODE_STATE_READY)
				case 3:
					n.obj.Spec.Availability = skepv1.Availability(rapid.IntRange(0, 2).Draw(t, "availability"))
					m.putNode(id)
				case 4:
					m.removeNode(id)
					gone[id] = true
				}
			},
			"update": func(t *rapid.T) {
				m.service(rapid.SampledFrom(ids).Draw(t, "id"), func(s *skepv1.ServiceSpec) { s.Task.ForceUpdate++ })
			},
			"end": func(t *rapid.T) {
				m.crash(nodeID.Draw(t, "id"), rapid.SampledFrom([]TaskState{Failed, Complete, Complete, Rejected}).Draw(t, "s"))
			},
			"agent": func(t *rapid.T) { m.agent(nodeID.Draw(t, "id")) },
			"plan": func(t *rapid.T) {
				plan(rapid.SampledFrom([]int{1, 2, 1 << 30}).Draw(t, "most"), rapid.Bool().Draw(t, "feed"))
			},
			"time": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 70_000).Draw(t, "ms")) * time.Millisecond)
			},
		})
		for _, id := range slices.Sorted(maps.Keys(m.nodes)) {
			m.nodes[id].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_ACTIVE
			m.nodes[id].live = skepv1.NodeState_NODE_STATE_READY
			m.putNode(id)
		}
		m.node("fresh")
		for _, id := range ids {
			m.service(id, func(s *skepv1.ServiceSpec) { s.Schedule = nil; s.Task.ForceUpdate++ }) // one more run, and no others
		}
		over := func() bool {
			return !slices.ContainsFunc(ids, func(id string) bool { return job.Runs(m.specs[id], m.views(id)())[0].State != job.Completed })
		}
		for n := 0; n < 200 && !over(); n++ {
			m.agents()
			plan(1<<30, true)
			m.agents()
			for _, id := range ids {
				m.end(id, Complete)
			}
			m.now = m.now.Add(5 * time.Second)
		}
		for _, id := range ids {
			if r := job.Runs(m.specs[id], m.views(id)()); r[0].State != job.Completed {
				m.dump()
				t.Fatalf("job %s: %s", id, m.runs(id))
			}
		}
		m.same()
	})
}

// atMost holds the limit of every replicated job: tasks that may run now, those stopped with their run left out.
func (m *sim) atMost(ids []string) {
	m.fatal.Helper()
	for _, id := range ids {
		v := m.s.services[id]
		n := map[uint64]int{}
		for _, t := range v.tasks {
			if t.wanted() && t.Desired == Complete && t.Node() != nil {
				n[t.more().Iteration]++
			}
		}
		for run, k := range n {
			if v.mode == replicatedJob && k > int(v.parallel) {
				m.dump()
				m.fatal.Fatalf("%d tasks of run %d of %s at once, at most %d", k, run, id, v.parallel)
			}
		}
	}
}

// Leaders come and go, their pictures lag, requests are lost, repeated and delayed: each time of the schedule that passes
// while anybody plans makes one run, in order, and none twice.
func TestScheduleRunsOncePerTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newSim(t)
		m.node("n0")
		m.service("j", func(s *skepv1.ServiceSpec) {
			setJob(s, 1, 1)
			schedule(s, "@every 10s", skepv1.Concurrency_CONCURRENCY_ALLOW)
		})
		begun := m.now
		stale := NewState() // a leader that was deposed and does not know
		sync := func() {
			stale = NewState()
			if err := stale.PutSpec("service.j", enc(m.specs["j"])); err != nil {
				t.Fatal(err)
			}
		}
		sync()
		var late []RunChange
		var runs []time.Time
		answer := func(asked []RunChange) {
			was := m.specs["j"].JobIteration
			m.answer(asked)
			if v := m.specs["j"]; v.JobIteration != was {
				runs = append(runs, v.Run.Due.AsTime())
			}
		}
		for range rapid.IntRange(5, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			case 0:
				sync()
			case 1:
				answer(stale.Plan(m.now, m.ids, nil).Runs)
			case 2:
				late = append(late, m.s.Plan(m.now, m.ids, nil).Runs...)
			case 3:
				answer(late)
			case 4:
				p := m.s.Plan(m.now, m.ids, nil)
				answer(p.Runs)
				answer(p.Runs)
			default:
			}
			if rapid.Bool().Draw(t, "end") {
				m.end("j", Complete)
			}
			// Every time that passes is seen by somebody, at the latest 9 s after it.
			m.now = m.now.Add(time.Duration(rapid.IntRange(0, 9000).Draw(t, "ms")) * time.Millisecond)
			m.agents()
			p := m.plan(1<<30, true)
			answer(p.Runs)
		}
		want := int(m.now.Sub(begun.Truncate(time.Second)) / (10 * time.Second))
		if len(runs) != want {
			t.Fatalf("%d runs in %v, want %d: %v", len(runs), m.now.Sub(begun), want, runs)
		}
		for i, due := range runs {
			if !due.Equal(begun.Truncate(time.Second).Add(time.Duration(i+1) * 10 * time.Second)) {
				t.Fatalf("run %d is for %v: %v", i+1, due, runs)
			}
		}
	})
}
