package reconcile

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"skep.dev/libs/restart"
	skepv1 "skep.dev/proto/skep/v1"
)

func TestDelayGrows(t *testing.T) {
	const s, m = 1000, 60_000
	for _, c := range []struct {
		delay, most int64
		n           uint32
		want        int64 // before the jitter
	}{
		{5 * s, 5 * m, 0, 5 * s},
		{5 * s, 5 * m, 1, 5 * s},
		{5 * s, 5 * m, 5, 5 * s},
		{5 * s, 5 * m, 6, 10 * s},
		{5 * s, 5 * m, 7, 20 * s},
		{5 * s, 5 * m, 11, 5 * m},
		{5 * s, 5 * m, 1 << 31, 5 * m},
		{5 * s, 0, 100, 5 * s}, // off
		{10 * m, 5 * m, 100, 10 * m},
		{100, 2 * s, 6, 200},
		{100, 2 * s, 10, 2 * s},
		{0, 5 * m, 5, 0},
		{0, 5 * m, 6, 200}, // nothing doubles to nothing
		{0, 0, 6, 0},
	} {
		r := restartPolicy{delay: c.delay, maxDelay: c.most}
		for _, id := range []string{"a", "b", "qn2l0ucdpqjfmbo2mqg3k6sdt"} {
			got := r.wait(id, c.n, patientFailures)
			if got > c.want || got < min(c.want-c.want/jitterPart, c.want) || c.n <= patientFailures && got != c.want || got != r.wait(id, c.n, patientFailures) {
				t.Errorf("%+v: %s waits %d", c, id, got)
			}
		}
	}
}

// Never shorter than the delay, never longer than the limit, and until that is reached longer each time.
func TestDelayIsMonotoneAndCapped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := restartPolicy{delay: rapid.Int64Range(0, 1e7).Draw(t, "delay"), maxDelay: rapid.Int64Range(0, 9e12).Draw(t, "max")}
		before := int64(0)
		for n := range uint32(80) {
			id := rapid.StringMatching(`[a-z0-9]{25}`).Draw(t, "id")
			d := r.wait(id, n, patientFailures)
			if d < r.delay || d > r.longest() {
				t.Fatalf("failure %d waits %d", n, d)
			}
			if d < before && before < r.maxDelay-r.maxDelay/jitterPart {
				t.Fatalf("failure %d waits %d, the one before waited %d of %d", n, d, before, r.maxDelay)
			}
			before = d
		}
	})
}

// loop crashes the service's only task as soon as it runs and returns how long each new one was held back.
func loop(t *testing.T, m *sim, runs time.Duration, times int) []time.Duration {
	t.Helper()
	var held []time.Duration
	for range times {
		x := m.one(t, "s", func(x *Task) bool { return x.wanted() && x.Seen == Running })
		m.now = m.now.Add(runs)
		ended := m.now
		m.crash(x.Node().ID, Failed)
		for step := 0; ; step++ {
			if step > 100 {
				m.dump()
				t.Fatal("no other task was made")
			}
			p := m.plan(99, step%2 == 0)
			m.agents()
			if y := m.one(t, "s", (*Task).wanted); y.Seen == Running {
				break
			}
			if w := p.NextWake(); p.Empty() && w.After(m.now) {
				m.now = w
			}
		}
		held = append(held, m.now.Sub(ended).Round(time.Second/2))
	}
	return held
}

func TestCrashLoopBacksOff(t *testing.T) {
	m := cluster(t, 1)
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Restart.MaxDelay = durationpb.New(time.Minute) })
	m.converge()
	held := loop(t, m, time.Second, 12)
	for i, d := range held {
		nominal := 5 * time.Second
		if i >= 5 {
			nominal = min(time.Minute, 5*time.Second<<(i-4))
		}
		if d > nominal || d < nominal*9/10-time.Second/2 || i < 5 && d != nominal {
			t.Errorf("failure %d: held for %s, want about %s", i+1, d, nominal)
		}
	}
	is(t, len(m.s.services["s"].tasks), "3") // history forgot most of them
	x := m.one(t, "s", (*Task).wanted)
	is(t, x.more().Failures, "12")

	// Less patience concerns the next one at once, and replaces nothing.
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Restart.MaxDelay = durationpb.New(10 * time.Second) })
	m.converge()
	if !x.wanted() {
		t.Fatal("another limit restarted the task")
	}
	if d := loop(t, m, time.Second, 1)[0]; d < 9*time.Second || d > 10*time.Second {
		t.Errorf("held for %s", d)
	}
	// One that lasts begins a new row.
	is(t, loop(t, m, 10*time.Minute, 2), "[5s 5s]")
	is(t, m.one(t, "s", (*Task).wanted).more().Failures, "1")
	loop(t, m, time.Second, 7)
	is(t, m.one(t, "s", (*Task).wanted).more().Failures, "8")
	// So does a new spec.
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v2" })
	m.converge()
	is(t, m.one(t, "s", (*Task).wanted).more().Failures, "0")
	is(t, loop(t, m, time.Second, 1), "[5s]")
}

// A task held back under a limit that was since lowered is not held for longer than the new one allows.
func TestTurningBackOffOffStartsWhatWaits(t *testing.T) {
	m := cluster(t, 1)
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Restart.MaxDelay = durationpb.New(time.Hour) })
	m.converge()
	loop(t, m, time.Second, 11)
	m.crash("n1", Failed)
	m.plan(99, false)
	m.agents()
	x := m.one(t, "s", (*Task).wanted)
	if x.Desired != Ready || x.NotBefore-m.now.UnixMilli() < 5*60_000 {
		t.Fatalf("%+v", x)
	}
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Restart.MaxDelay = nil })
	m.plan(99, false)
	is(t, x.Desired, "running")
}

// What is lost, or completes, is no failure.
func TestRowOfFailures(t *testing.T) {
	for _, c := range []struct {
		name string
		last *Task
		want uint32
	}{
		{"failed", &Task{Seen: Failed, More: &More{Failures: 6}}, 7},
		{"rejected", &Task{Seen: Rejected, More: &More{Failures: 6}}, 7},
		{"first", &Task{Seen: Failed}, 1},
		{"ended for its health", &Task{Seen: Shutdown, Verdict: Failed, More: &More{Failures: 1}}, 2},
		{"completed", &Task{Seen: Complete, More: &More{Failures: 6}}, 0},
		{"told to stop", &Task{Seen: Shutdown, Desired: Shutdown, More: &More{Failures: 6}}, 6},
		{"never ran", &Task{Seen: Ready, More: &More{Failures: 6}}, 6},
		{"lost while it ran", &Task{Seen: Running, SeenAt: 1, VerdictAt: 1000, More: &More{Failures: 6}}, 6},
		{"lost after long", &Task{Seen: Running, SeenAt: 1, VerdictAt: lastingRun + 1, More: &More{Failures: 6}}, 0},
		{"failed after long", &Task{Seen: Failed, ran: lastingRun, More: &More{Failures: 6}}, 1},
		{"failed just before", &Task{Seen: Failed, ran: lastingRun - 1, More: &More{Failures: 6}}, 7},
	} {
		p := &planner{v: &Service{}, now: 1 << 40}
		is(t, fmt.Sprint(c.name, " ", p.failures(c.last)), fmt.Sprint(c.name, " ", c.want))
	}
	p := &planner{v: &Service{restart: restartPolicy{maxDelay: 3600_000}}}
	is(t, p.failures(&Task{Seen: Failed, ran: 7199_999, More: &More{Failures: 6}}), "7")
	is(t, p.failures(&Task{Seen: Failed, ran: 7200_000, More: &More{Failures: 6}}), "1")
}

// How long a task ran is its agent's word: when it began and when it ended.
func TestHowLongItRan(t *testing.T) {
	st := func(state TaskState, since, started int64) *skepv1.TaskStatus {
		return &skepv1.TaskStatus{State: skepv1.TaskState(state), SinceUnixMs: since, StartedUnixMs: started}
	}
	for _, c := range []struct {
		name    string
		reports []*skepv1.TaskStatus
		want    uint32
	}{
		{"started is told", []*skepv1.TaskStatus{st(Failed, 900, 100)}, 800},
		{"running was seen", []*skepv1.TaskStatus{st(Running, 200, 0), st(Failed, 900, 0)}, 700},
		{"nothing is known", []*skepv1.TaskStatus{st(Failed, 900, 0)}, 0},
		{"said twice", []*skepv1.TaskStatus{st(Running, 200, 0), st(Failed, 900, 0), st(Failed, 900, 0)}, 700},
		{"a clock put back", []*skepv1.TaskStatus{st(Failed, 50, 100)}, 0},
		{"two months", []*skepv1.TaskStatus{st(Failed, 61*24*3600*1000, 1)}, 1<<32 - 1},
	} {
		x := &Task{}
		for _, r := range c.reports {
			x.see(r)
		}
		if x.ran != c.want {
			t.Errorf("%s: ran %d, want %d", c.name, x.ran, c.want)
		}
	}
}

// Swarm's rule of attempts: counted per slot and revision; with a window only restarts made less than the window before
// the end that asks for another.
func TestRestartAttemptsAndWindow(t *testing.T) {
	const w = 10_000
	type task struct {
		created int64
		rev     uint64
		seen    TaskState
	}
	for _, c := range []struct {
		name   string
		window int64
		tasks  []task
		ended  int64
		want   int
	}{
		{"the first is no restart", 0, []task{{0, 1, Failed}}, 100, 0},
		{"all count without a window", 0, []task{{0, 1, Failed}, {10, 1, Failed}, {90_000, 1, Failed}}, 91_000, 2},
		{"in the window", w, []task{{0, 1, Failed}, {10, 1, Failed}, {5000, 1, Failed}}, 9000, 2},
		{"one has left it", w, []task{{0, 1, Failed}, {10, 1, Failed}, {5000, 1, Failed}}, 10_011, 1},
		{"exactly a window ago is outside", w, []task{{0, 1, Failed}, {10, 1, Failed}, {5000, 1, Failed}}, 10_010, 1},
		{"just inside", w, []task{{0, 1, Failed}, {10, 1, Failed}, {5000, 1, Failed}}, 10_009, 2},
		{"a long run leaves nothing", w, []task{{0, 1, Failed}, {10, 1, Failed}}, 50_000, 0},
		{"completed under any counts too", 0, []task{{0, 1, Complete}, {10, 1, Complete}}, 100, 1},
		{"another spec's do not", 0, []task{{0, 1, Failed}, {10, 1, Failed}, {20, 3, Failed}, {30, 3, Failed}}, 100, 1},
		{"an update is no restart", 0, []task{{0, 1, Failed}, {20, 3, Failed}}, 100, 0},
		{"under a new revision of the same container it is", 0, []task{{0, 1, Failed}, {20, 2, Failed}}, 100, 1},
		{"lost ones do not", 0, []task{{0, 1, Orphaned}, {20, 1, Failed}, {30, 1, Failed}}, 100, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := &revision{core: 1}, &revision{core: 2}
			v := &Service{Exists: true, revision: 3, current: b, revs: map[uint64]*revision{1: a, 2: a, 3: b}}
			v.restart = restartPolicy{condition: skepv1.RestartCondition_RESTART_CONDITION_ANY, window: c.window, attempts: 2}
			u := &unit{}
			for _, x := range c.tasks {
				k := &Task{Service: v, Created: x.created, Revision: x.rev, Seen: x.seen, Desired: Shutdown}
				if x.seen == Orphaned {
					k.Seen, k.Verdict = Running, Orphaned
				}
				u.tasks = append(u.tasks, k)
			}
			last := u.tasks[len(u.tasks)-1]
			p := &planner{v: v, now: c.ended}
			is(t, v.restart.rule(v).Used(len(u.tasks), u.tried, p.endOf(last)), fmt.Sprint(c.want))
			last.VerdictAt = c.ended // noted then, asked later
			p.now += 1 << 30
			is(t, v.restart.rule(v).Used(len(u.tasks), u.tried, p.endOf(last)), fmt.Sprint(c.want))
			restart, _, _ := p.policy(u, last)
			is(t, restart, fmt.Sprint(c.want < 2))
		})
	}
}

// What clients say of a unit by the tasks they see is what the planner says by its own.
func TestClientsTellGivenUpAsPlanned(t *testing.T) {
	states := []TaskState{Complete, Failed, Rejected, Shutdown, Orphaned}
	rapid.Check(t, func(t *rapid.T) {
		v := &Service{Exists: true, revision: 2, revs: map[uint64]*revision{1: {core: 10}, 2: {core: 20}}}
		o := &skepv1.Service{Meta: &skepv1.Meta{Id: "v"}, Spec: &skepv1.ServiceSpec{Mode: &skepv1.ServiceMode{}, Task: &skepv1.TaskSpec{Restart: &skepv1.RestartPolicy{
			Condition: skepv1.RestartCondition(rapid.IntRange(1, 3).Draw(t, "condition")), MaxAttempts: uint64(rapid.IntRange(0, 3).Draw(t, "attempts")),
			Window: durationpb.New(time.Duration(rapid.IntRange(0, 5).Draw(t, "window")) * time.Second),
		}}}}
		setReplicas(o.Spec, 1)
		if rapid.Bool().Draw(t, "job") {
			setJob(o.Spec, 1, 1)
			v.mode = replicatedJob
		}
		r := o.Spec.Task.Restart
		v.restart = restartPolicy{condition: r.Condition, window: ms(r.Window), attempts: int(r.MaxAttempts)}
		u := &unit{}
		var views []*skepv1.Task
		at := int64(1_000_000)
		for range rapid.IntRange(1, 6).Draw(t, "tasks") {
			x := &Task{Service: v, Created: at, Revision: uint64(rapid.IntRange(1, 2).Draw(t, "rev")), Desired: Shutdown, Seen: rapid.SampledFrom(states).Draw(t, "state")}
			switch {
			case x.Seen == Orphaned:
				x.Seen, x.Verdict = Running, Orphaned
			case rapid.IntRange(0, 3).Draw(t, "verdict") == 0:
				x.Verdict = rapid.SampledFrom([]TaskState{Failed, Rejected}).Draw(t, "said")
			}
			at += int64(rapid.IntRange(1, 4).Draw(t, "ran")) * 1000
			x.VerdictAt = at
			u.tasks, views = append(u.tasks, x), append(views, x.view())
		}
		p := &planner{v: v, now: at + int64(rapid.IntRange(0, 20_000).Draw(t, "later"))}
		another, _, _ := p.policy(u, u.tasks[len(u.tasks)-1])
		if told := restart.GivenUp(o.Spec, views); told == another {
			t.Fatalf("the planner follows with another: %v, told as given up: %v", another, told)
		}
	})
}
