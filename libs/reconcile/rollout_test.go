package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	pauseOnFailure    = skepv1.FailureAction_FAILURE_ACTION_PAUSE
	continueOnFailure = skepv1.FailureAction_FAILURE_ACTION_CONTINUE
	rollbackOnFailure = skepv1.FailureAction_FAILURE_ACTION_ROLLBACK
	stopFirst         = skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST
	startFirst        = skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST
)

// rolling is a service of n replicas of v1 on three nodes, whose updates are watched for five seconds.
func rolling(t fataler, n uint64, change func(u *skepv1.UpdateConfig)) *sim {
	m := newSim(t)
	for i := range 3 {
		m.node(fmt.Sprint("n", i+1))
	}
	m.service("s", func(s *skepv1.ServiceSpec) {
		setReplicas(s, n)
		s.Update = &skepv1.UpdateConfig{Parallelism: 1, Monitor: durationpb.New(5 * time.Second), FailureAction: pauseOnFailure, Order: stopFirst, Timeout: durationpb.New(10 * time.Minute)}
		s.Rollback = &skepv1.UpdateConfig{Parallelism: 1, Monitor: durationpb.New(5 * time.Second), FailureAction: pauseOnFailure, Order: stopFirst, Timeout: durationpb.New(10 * time.Minute)}
		s.Task.Restart.Delay = durationpb.New(5 * time.Second)
		change(s.Update)
	})
	m.converge()
	return m
}

func (m *sim) update(image string) {
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = image })
}

// pass lets d go by, everybody working every 100 ms.
func (m *sim) pass(d time.Duration) {
	m.fatal.Helper()
	for end := m.now.Add(d); m.now.Before(end); m.now = m.now.Add(100 * time.Millisecond) {
		m.plan(1<<30, false)
		m.agents()
		for _, r := range m.rollbacks {
			m.rollback(r)
		}
		m.rollbacks = nil
	}
	m.plan(1<<30, false)
}

func (m *sim) status() *skepv1.UpdateStatus { return m.s.services["s"].rollout.record().GetStatus() }

// serving counts the tasks of each image that run and are meant to.
func (m *sim) serving() string {
	n := map[string]int{}
	for _, t := range m.s.services["s"].tasks {
		if t.wanted() && t.State() == Running && t.Desired == Running {
			n[m.image(t)]++
		}
	}
	var out []string
	for k, v := range n {
		out = append(out, fmt.Sprint(k, ":", v))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (m *sim) stateIs(t *testing.T, state, message, serving string) {
	t.Helper()
	st := m.status()
	if st.GetState() != state || !strings.HasPrefix(st.GetMessage(), message) || m.serving() != serving {
		m.dump()
		t.Fatalf("got %s (%s), %s; want %s (%s…), %s", st.GetState(), st.GetMessage(), m.serving(), state, message, serving)
	}
}

func TestAnUpdateIsWatchedToItsEnd(t *testing.T) {
	m := rolling(t, 3, func(*skepv1.UpdateConfig) {})
	m.update("v2")
	m.pass(2 * time.Second)
	m.stateIs(t, "updating", "update in progress", "v2:3")
	m.pass(5 * time.Second)
	m.stateIs(t, "completed", "update completed", "v2:3")
	if m.status().CompletedAt == nil {
		t.Error("no time of completion")
	}
}

func TestAFailureWithinTheMonitorPauses(t *testing.T) {
	for _, image := range []string{"bad", "late"} {
		m := rolling(t, 4, func(u *skepv1.UpdateConfig) { u.Delay = durationpb.New(4 * time.Second) })
		m.update(image)
		m.pass(time.Minute)
		st := m.status()
		if st.State != "paused" || !strings.HasPrefix(st.Message, "update paused due to failure or early termination of task ") {
			t.Fatalf("%s: %v", image, st)
		}
		if got := m.serving(); !strings.HasSuffix(got, "v1:3") {
			t.Errorf("%s: %s serve after an update of one at a time failed", image, got)
		}
		m.update("v3")
		m.pass(time.Minute)
		m.stateIs(t, "completed", "update completed", "v3:4")
	}
}

// One that fails later than the monitor is the restart policy's affair.
func TestAFailureAfterTheMonitorIsNoneOfTheUpdate(t *testing.T) {
	m := rolling(t, 2, func(u *skepv1.UpdateConfig) { u.Monitor = durationpb.New(time.Second) })
	m.update("late")
	m.pass(10 * time.Second)
	if st := m.status(); st.State != "completed" {
		t.Fatal(st)
	}
}

func TestAFailedUpdateRollsBack(t *testing.T) {
	for _, order := range []skepv1.UpdateOrder{stopFirst, startFirst} {
		m := rolling(t, 4, func(u *skepv1.UpdateConfig) { u.FailureAction, u.Order = rollbackOnFailure, order })
		m.update("bad")
		m.pass(time.Minute)
		m.stateIs(t, "rollback_completed", "rollback completed", "v1:4")
		if v := m.specs["s"]; v.Revision != 3 || v.RollbackTo != 1 || !strings.HasPrefix(v.RollbackReason, "update rolled back due to failure or early termination of task ") {
			t.Errorf("the service after the rollback: %v", v)
		}
	}
}

// Until state has made the revision, plans go on asking; the first to do so may have died with its question.
func TestARollbackIsAskedForUntilItIsMade(t *testing.T) {
	m := rolling(t, 2, func(u *skepv1.UpdateConfig) { u.FailureAction = rollbackOnFailure })
	m.update("bad")
	asked := 0
	for range 100 {
		asked += len(m.plan(1<<30, false).Rollbacks)
		m.agents()
		m.now = m.now.Add(100 * time.Millisecond)
	}
	if asked < 5 || m.status().State != "rollback_started" {
		t.Fatalf("asked %d times, %v", asked, m.status())
	}
	m.s.RefuseRollback("s", 2, "network front is gone")
	m.plan(1<<30, false)
	m.stateIs(t, "paused", "update rolled back due to failure", "v1:1")
	if !strings.HasSuffix(m.status().Message, "and the rollback was refused: network front is gone") {
		t.Error(m.status().Message)
	}
}

func TestAFailedRollbackPauses(t *testing.T) {
	m := rolling(t, 2, func(u *skepv1.UpdateConfig) { u.FailureAction = rollbackOnFailure })
	m.update("v2")
	m.pass(10 * time.Second)
	m.images["s"][1] = "bad" // what it goes back to is not what it was
	m.rollback(Rollback{Service: m.s.services["s"], From: 2, To: 1})
	m.pass(10 * time.Second)
	m.stateIs(t, "rollback_paused", "rollback paused due to failure", "v2:1")
}

// What failed before is nothing to go back to.
func TestARollbackGoesToWhatWasGood(t *testing.T) {
	m := rolling(t, 3, func(u *skepv1.UpdateConfig) { u.FailureAction = rollbackOnFailure })
	m.update("mute")
	m.pass(2 * time.Second)
	m.update("bad")
	m.pass(time.Minute)
	m.stateIs(t, "rollback_completed", "rollback completed", "v1:3")
	is(t, m.specs["s"].RollbackTo, "1")
}

func TestTheRatioOfFailures(t *testing.T) {
	for _, c := range []struct {
		ratio  float64
		broken int // nodes on which everything fails
		want   string
	}{{0, 1, "paused"}, {0.4, 1, "completed"}, {0.4, 2, "paused"}, {0.5, 3, "paused"}, {1, 3, "completed"}} {
		m := newSim(t)
		for i := range 3 {
			m.node(fmt.Sprint("n", i+1))
		}
		m.service("s", func(s *skepv1.ServiceSpec) {
			setGlobal(s)
			s.Update = &skepv1.UpdateConfig{Parallelism: 1, Monitor: durationpb.New(5 * time.Second), FailureAction: pauseOnFailure, MaxFailureRatio: c.ratio, Order: stopFirst}
		})
		m.converge()
		for i := range c.broken {
			m.nodes[fmt.Sprint("n", i+1)].fail = true
		}
		m.update("v2")
		m.pass(time.Minute)
		if got := m.status(); got.State != c.want {
			t.Errorf("ratio %v, %d of 3 nodes broken: %v, want %s", c.ratio, c.broken, got, c.want)
		} else if c.want == "completed" && got.Message != fmt.Sprintf("update completed; %d of 3 tasks failed", c.broken) {
			t.Error(got.Message)
		}
	}
}

func TestContinueGoesOn(t *testing.T) {
	m := rolling(t, 3, func(u *skepv1.UpdateConfig) { u.FailureAction = continueOnFailure })
	m.update("bad")
	m.pass(time.Minute)
	m.stateIs(t, "completed", "update completed; 3 of 3 tasks failed", "")
}

func TestAnUpdateThatDoesNotServeTimesOut(t *testing.T) {
	m := rolling(t, 2, func(u *skepv1.UpdateConfig) { u.Order = startFirst })
	m.update("mute")
	m.pass(9 * time.Minute)
	m.stateIs(t, "updating", "update in progress", "v1:2")
	m.pass(2 * time.Minute)
	m.stateIs(t, "paused", "update paused due to task ", "v1:2")
	if !strings.Contains(m.status().Message, "does not serve after 10m0s") {
		t.Error(m.status().Message)
	}
	// One that cannot be placed, with the reason.
	m = rolling(t, 2, func(u *skepv1.UpdateConfig) { u.Timeout = durationpb.New(time.Minute) })
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.labels.zone==nowhere"} })
	m.pass(2 * time.Minute)
	m.stateIs(t, "paused", "update paused due to task ", "v1:2")
	if !strings.Contains(m.status().Message, "(no suitable node (scheduling constraints not satisfied on 3 nodes))") {
		t.Error(m.status().Message)
	}
}

func TestPauseAndResume(t *testing.T) {
	m := rolling(t, 4, func(u *skepv1.UpdateConfig) { u.Delay = durationpb.New(2 * time.Second) })
	m.update("v2")
	m.pass(500 * time.Millisecond)
	m.control("s", func(c *skepv1.RolloutControl) { c.Paused = true })
	m.pass(time.Minute)
	m.stateIs(t, "paused", "update paused by request", "v1:3 v2:1")
	m.control("s", func(c *skepv1.RolloutControl) { c.Paused, c.Resume = false, c.Resume+1 })
	m.pass(time.Minute)
	m.stateIs(t, "completed", "update completed", "v2:4")

	// A resumed update that fails again pauses again, and old failures count for nothing.
	m.update("bad")
	m.pass(time.Minute)
	m.stateIs(t, "paused", "update paused due to failure", "v2:3")
	m.control("s", func(c *skepv1.RolloutControl) { c.Resume++ })
	m.images["s"][3] = "v3" // whatever it lacked is there now
	m.pass(time.Minute)
	m.stateIs(t, "completed", "update completed", "v3:4")
}

// Scaling neither disturbs an update nor restarts one that is paused.
func TestScaleDuringAnUpdate(t *testing.T) {
	m := rolling(t, 4, func(u *skepv1.UpdateConfig) { u.Delay = durationpb.New(2 * time.Second) })
	m.update("v2")
	m.pass(500 * time.Millisecond)
	began := m.status().StartedAt
	m.control("s", func(c *skepv1.RolloutControl) { c.Paused = true })
	m.pass(time.Second)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 6) })
	m.pass(time.Minute)
	m.stateIs(t, "paused", "update paused by request", "v1:5 v2:1")
	m.control("s", func(c *skepv1.RolloutControl) { c.Paused, c.Resume = false, c.Resume+1 })
	m.pass(time.Minute)
	m.stateIs(t, "completed", "update completed", "v2:6")
	if !m.status().StartedAt.AsTime().Equal(began.AsTime()) {
		t.Error("the update began anew")
	}
}

func TestCanary(t *testing.T) {
	m := rolling(t, 5, func(u *skepv1.UpdateConfig) { u.Parallelism = 0 })
	m.canary = 2
	m.update("v2")
	m.pass(time.Second)
	m.stateIs(t, "updating", "update in progress", "v1:3 v2:2")
	m.pass(time.Minute)
	m.stateIs(t, "canary", "2 of 5 tasks run revision 2: skep service promote or abort", "v1:3 v2:2")
	m.control("s", func(c *skepv1.RolloutControl) { c.Canary = 4 })
	m.pass(time.Minute)
	m.stateIs(t, "canary", "4 of 5", "v1:1 v2:4")
	m.control("s", func(c *skepv1.RolloutControl) { c.Canary = 0 })
	m.pass(time.Minute)
	m.stateIs(t, "completed", "update completed", "v2:5")

	m.update("bad")
	m.pass(time.Minute)
	m.stateIs(t, "paused", "update paused due to failure", "v2:3")

	m.update("v4")
	m.pass(time.Minute)
	m.stateIs(t, "canary", "2 of 5", "v2:3 v4:2")
	m.rollback(Rollback{Service: m.s.services["s"], From: 4, To: 2, Reason: "canary aborted"})
	m.canary = 0
	m.pass(time.Minute)
	m.stateIs(t, "rollback_completed", "rollback completed", "v2:5")
}

// A clock that jumps while an update is watched or waits for its delay neither hangs it nor makes it forget.
func TestUpdateOverAClockJump(t *testing.T) {
	for _, jump := range []time.Duration{-time.Hour, time.Hour} {
		m := rolling(t, 3, func(u *skepv1.UpdateConfig) { u.Delay = durationpb.New(3 * time.Second) })
		m.update("v2")
		m.pass(time.Second)
		m.now = m.now.Add(jump)
		m.pass(30 * time.Second)
		m.stateIs(t, "completed", "update completed", "v2:3")
		m.update("bad")
		m.pass(time.Second)
		m.now = m.now.Add(jump)
		m.pass(30 * time.Second)
		m.stateIs(t, "paused", "update paused due to failure", "v2:2")
	}
}

// Whatever the policy, and whoever plans: stop-first never leaves fewer than replicas − parallelism serving, start-first
// never runs more than replicas + parallelism, another planner that read the same bytes would do the same next, and once
// it is over there is nothing left to do.
func TestUpdatesKeepTheirBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 9).Draw(t, "replicas")
		par := rapid.IntRange(0, 4).Draw(t, "parallelism")
		order := rapid.SampledFrom([]skepv1.UpdateOrder{stopFirst, startFirst}).Draw(t, "order")
		m := rolling(t, uint64(n), func(u *skepv1.UpdateConfig) {
			u.Parallelism, u.Order = uint64(par), order
			u.Delay = durationpb.New(time.Duration(rapid.IntRange(0, 2).Draw(t, "delay")) * time.Second)
			u.Monitor = durationpb.New(time.Duration(rapid.IntRange(0, 2).Draw(t, "monitor")) * 2 * time.Second)
		})
		if par == 0 {
			par = n
		}
		m.update("v2")
		within := func() {
			serving, running := 0, 0
			for _, x := range m.s.services["s"].tasks {
				if x.Seen == Running {
					running++
					if x.Desired == Running {
						serving++
					}
				}
			}
			if order == stopFirst && serving < n-par {
				m.dump()
				t.Fatalf("%d of %d serve, %d at a time", serving, n, par)
			}
			if running > n+par || order == stopFirst && running > n {
				m.dump()
				t.Fatalf("%d of %d run, %d at a time", running, n, par)
			}
		}
		for range rapid.IntRange(5, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "who") {
			case 0, 1:
				ids := NewIDs([32]byte{1})
				a, b := m.s.Plan(m.now, ids, nil), m.shadow.Plan(m.now, NewIDs([32]byte{1}), nil)
				if x, y := steps(a), steps(b); x != y {
					t.Fatalf("one would\n%s\nthe other\n%s", x, y)
				}
				m.plan(rapid.SampledFrom([]int{1, 2, 99}).Draw(t, "most"), rapid.Bool().Draw(t, "feed"))
			case 2:
				m.agent(fmt.Sprint("n", rapid.IntRange(1, 3).Draw(t, "node")))
			case 3:
				m.agents()
			case 4:
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond)
			}
			within()
		}
		for range 400 {
			if m.plan(99, false).Empty() && m.status().GetState() == "completed" {
				break
			}
			within()
			m.agents()
			within()
			m.now = m.now.Add(100 * time.Millisecond)
		}
		if st := m.status(); st.State != "completed" || m.serving() != fmt.Sprint("v2:", n) {
			m.dump()
			t.Fatalf("%v, %s", st, m.serving())
		}
		if p := m.plan(99, false); !p.Empty() || len(p.Rollbacks) > 0 {
			t.Fatalf("still something to do: %v", p.Changes)
		}
	})
}

// steps is a plan in words, but for the names of what it makes.
func steps(p *Plan) string {
	var out []string
	for i := range p.Changes {
		out = append(out, p.Changes[i].String())
	}
	slices.Sort(out)
	for _, r := range p.Rollouts {
		out = append(out, r.Rollout.GetStatus().String())
	}
	return strings.Join(out, "\n")
}

// A task of the old version that waits for its restart comes back while the update is paused.
func TestAPausedUpdateRestartsWhatIsOld(t *testing.T) {
	m := rolling(t, 3, func(u *skepv1.UpdateConfig) {})
	m.control("s", func(c *skepv1.RolloutControl) { c.Paused = true })
	v := m.specs["s"]
	v.Revision, v.PreviousRevision = 2, 1
	v.Spec.Task.Container.Image = "v2"
	m.put("s", v)
	m.crash("n2", Failed)
	m.pass(10 * time.Second)
	if got := m.status(); got.State != "paused" {
		t.Fatal(got)
	}
	m.crash("n1", Failed)
	m.pass(10 * time.Second)
	up := 0
	for _, x := range m.s.services["s"].tasks {
		if x.wanted() && x.State() == Running {
			up++
		}
	}
	is(t, up, "3")
}
