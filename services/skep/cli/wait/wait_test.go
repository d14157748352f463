package wait

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

const (
	pending   = skepv1.TaskState_TASK_STATE_PENDING
	preparing = skepv1.TaskState_TASK_STATE_PREPARING
	running   = skepv1.TaskState_TASK_STATE_RUNNING
	complete  = skepv1.TaskState_TASK_STATE_COMPLETE
	failed    = skepv1.TaskState_TASK_STATE_FAILED
	shutdown  = skepv1.TaskState_TASK_STATE_SHUTDOWN
)

var epoch = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)

// service is one called web with n replicas.
func service(n uint64) *skepv1.Service {
	return &skepv1.Service{
		Meta: &skepv1.Meta{Id: "svc"}, Revision: 1,
		Spec: &skepv1.ServiceSpec{Name: "web", Mode: &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Replicated{Replicated: &skepv1.ReplicatedMode{Replicas: n}}},
			Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "a"}, Restart: &skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_ANY}}},
	}
}

// task is task number n of slot, made n seconds after the epoch.
func task(slot, n int, rev uint64, desired, state skepv1.TaskState, why string) *skepv1.Task {
	return &skepv1.Task{
		Meta: &skepv1.Meta{Id: fmt.Sprintf("t%d.%d", slot, n), CreatedAt: timestamppb.New(epoch.Add(time.Duration(n) * time.Second))},
		Slot: uint64(slot), Name: fmt.Sprintf("web.%d", slot), NodeId: "n1", NodeHostname: "w1", Revision: rev, Desired: desired,
		Status: &skepv1.TaskStatus{State: state, Err: why},
	}
}

// fake is a cluster whose state a test sets.
type fake struct {
	mu      sync.Mutex
	svc     *skepv1.Service
	tasks   []*skepv1.Task
	revs    []*skepv1.Revision
	explain *skepv1.ExplainReply
	err     error
	looks   int
	wake    chan struct{}
	// step, if set, changes the state before look number n.
	step func(f *fake, n int)
}

func (f *fake) Service(context.Context, string) (*skepv1.Service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	if f.step != nil {
		f.step(f, f.looks)
	}
	return f.svc, f.err
}

func (f *fake) Tasks(context.Context, string) ([]*skepv1.Task, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tasks, f.err
}

func (f *fake) Revisions(context.Context, string) ([]*skepv1.Revision, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revs, f.err
}

func (f *fake) Explain(context.Context, string) (*skepv1.ExplainReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.explain == nil {
		return nil, fault.Unavailable("no scheduler")
	}
	return f.explain, nil
}

func (f *fake) run(t *testing.T, change func(*Options)) (string, error) {
	t.Helper()
	var b bytes.Buffer
	o := Options{Service: f.svc, Wake: f.wake, Hold: 50 * time.Millisecond, Out: &b, Now: time.Now, Timeout: 20 * time.Second}
	if change != nil {
		change(&o)
	}
	err := Converge(t.Context(), f, o)
	return b.String(), err
}

func TestConverges(t *testing.T) {
	f := &fake{svc: service(2), step: func(f *fake, n int) {
		switch n {
		case 1:
			f.tasks = nil
		case 2:
			f.tasks = []*skepv1.Task{task(1, 1, 1, running, pending, "no suitable node (insufficient resources on 2 nodes)"), task(2, 1, 1, running, preparing, "")}
		case 3:
			f.tasks = []*skepv1.Task{task(1, 1, 1, running, preparing, ""), task(2, 1, 1, running, running, "")}
		case 4:
			f.tasks[0] = task(1, 1, 1, running, running, "")
		}
	}}
	out, err := f.run(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "converges", out)
}

// TestHoldsUntilStable: a task that dies within the hold starts the wait over.
func TestHoldsUntilStable(t *testing.T) {
	f := &fake{svc: service(1), step: func(f *fake, n int) {
		switch {
		case n == 2:
			f.tasks = []*skepv1.Task{task(1, 1, 1, shutdown, failed, "task: non-zero exit (1)"), task(1, 2, 1, skepv1.TaskState_TASK_STATE_READY, skepv1.TaskState_TASK_STATE_READY, "")}
		case n == 1 || n == 3:
			f.tasks = []*skepv1.Task{task(1, n, 1, running, running, "")}
		}
	}}
	out, err := f.run(t, func(o *Options) { o.Hold = 300 * time.Millisecond })
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "holds", out)
}

func TestUpdateOutcomes(t *testing.T) {
	status := func(state, msg string) *skepv1.UpdateStatus {
		return &skepv1.UpdateStatus{State: state, Message: msg, StartedAt: timestamppb.New(epoch)}
	}
	for _, c := range []struct {
		name   string
		states []string
		manual bool
		kind   error
		want   string
	}{
		{"completed", []string{"updating", "completed"}, false, nil, ""},
		{"paused", []string{"updating", "paused"}, false, ErrPaused, "service update paused: because"},
		{"rolled back", []string{"updating", "rollback_started", "rollback_completed"}, false, ErrRolledBack, "service rolled back: because"},
		{"rollback paused", []string{"rollback_started", "rollback_paused"}, false, ErrPaused, "service rollback paused: because"},
		{"rolled back by hand", []string{"rollback_started", "rollback_completed"}, true, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{svc: service(1), tasks: []*skepv1.Task{task(1, 1, 1, running, running, "")}}
			f.step = func(f *fake, n int) {
				s := service(1)
				s.UpdateStatus = status(c.states[min(n, len(c.states))-1], "because")
				f.svc = s
			}
			_, err := f.run(t, func(o *Options) { o.Rollback = c.manual; o.Hold = time.Hour })
			if c.kind == nil && err != nil || c.kind != nil && (!errors.Is(err, c.kind) || err.Error() != c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestOldStatusIsNotNews: the outcome of an update before this one is not taken for its own.
func TestOldStatusIsNotNews(t *testing.T) {
	old := &skepv1.UpdateStatus{State: "paused", Message: "long ago", StartedAt: timestamppb.New(epoch)}
	f := &fake{svc: service(1), tasks: []*skepv1.Task{task(1, 1, 1, running, running, "")}}
	f.svc.UpdateStatus = old
	if _, err := f.run(t, func(o *Options) { o.Before = old }); err != nil {
		t.Fatal(err)
	}
}

// TestWaitsForTheNewRevision: tasks of an older revision count only when nothing they see changed.
// An update that was paused, is resumed and pauses again looks as it did; it is news all the same, and ends the wait.
func TestPausedAgain(t *testing.T) {
	for _, state := range []string{"paused", "rollback_paused"} {
		before := &skepv1.UpdateStatus{State: state, Message: "task a failed", StartedAt: timestamppb.New(epoch), Resume: 1}
		after := proto.CloneOf(before)
		after.Resume, after.Message = 2, "task b failed"
		if newStatus(after, before) != after {
			t.Errorf("%s again is not seen", state)
		}
		if newStatus(before, before) != nil {
			t.Errorf("%s of before counts", state)
		}
	}
}

func TestWaitsForTheNewRevision(t *testing.T) {
	f := &fake{svc: service(1)}
	f.svc.Revision = 2
	older := service(1).Spec
	older.Task.Container.Image = "old"
	f.revs = []*skepv1.Revision{{Number: 2, Spec: f.svc.Spec}, {Number: 1, Spec: older}}
	f.step = func(f *fake, n int) {
		f.tasks = []*skepv1.Task{task(1, 1, 1, running, running, "")}
		if n > 2 {
			f.tasks = []*skepv1.Task{task(1, 1, 1, shutdown, running, ""), task(1, 2, 2, running, running, "")}
		}
	}
	out, err := f.run(t, nil)
	if err != nil || f.looks < 3 {
		t.Fatalf("%v after %d looks\n%s", err, f.looks, out)
	}
	// A change of the service's own labels replaces nothing.
	relabelled := service(1).Spec
	relabelled.Labels = map[string]string{"a": "b"}
	if ok := current(f.svc, []*skepv1.Revision{{Number: 1, Spec: relabelled}}); !ok[1] {
		t.Error("a label of the service makes tasks out of date")
	}
	placed := service(1).Spec
	placed.Task.Placement = &skepv1.Placement{Constraints: []string{"a==b"}}
	if ok := current(f.svc, []*skepv1.Revision{{Number: 1, Spec: placed}}); !ok[1] {
		t.Error("a change of placement alone makes tasks out of date")
	}
}

func TestGivesUp(t *testing.T) {
	f := &fake{svc: service(2), tasks: []*skepv1.Task{task(1, 1, 1, running, running, ""), task(2, 1, 1, shutdown, failed, "task: non-zero exit (1)"), task(2, 2, 1, shutdown, failed, "task: non-zero exit (1)")}}
	f.svc.Spec.Task.Restart.MaxAttempts = 1
	start := time.Now()
	out, err := f.run(t, nil)
	if !errors.Is(err, ErrGaveUp) || !strings.Contains(err.Error(), "web.2: task: non-zero exit (1)") {
		t.Fatalf("%v\n%s", err, out)
	}
	if d := time.Since(start); d < gaveUpAfter {
		t.Errorf("gave up after %s already", d)
	}
}

// With --restart-window attempts that are older count no more: such a task is about to be restarted.
func TestGivesUpWithinTheWindowOnly(t *testing.T) {
	for _, c := range []struct {
		age  time.Duration // of the one restart, when it ended
		want bool
	}{{9 * time.Second, true}, {10 * time.Second, false}} {
		s := service(1)
		s.Spec.Task.Restart.MaxAttempts, s.Spec.Task.Restart.Window = 1, durationpb.New(10*time.Second)
		ts := []*skepv1.Task{task(1, 1, 1, shutdown, failed, "boom"), task(1, 2, 1, shutdown, failed, "boom")}
		ts[1].VerdictUnixMs = ts[1].Meta.CreatedAt.AsTime().Add(c.age).UnixMilli()
		if p := assess(s, ts, map[uint64]bool{1: true}); p.Slots[0].GaveUp != c.want {
			t.Errorf("restarted %v before its end: gave up %v", c.age, p.Slots[0].GaveUp)
		}
		s.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: 1, TotalCompletions: 1}}}
		if p := assess(s, ts, map[uint64]bool{1: true}); p.Slots[0].GaveUp != c.want {
			t.Errorf("a job's, restarted %v before its end: gave up %v", c.age, p.Slots[0].GaveUp)
		}
	}
}

func TestOneShotIsDone(t *testing.T) {
	f := &fake{svc: service(1), tasks: []*skepv1.Task{task(1, 1, 1, shutdown, complete, "")}}
	f.svc.Spec.Task.Restart.Condition = skepv1.RestartCondition_RESTART_CONDITION_NONE
	if _, err := f.run(t, nil); err != nil {
		t.Fatal(err)
	}
}

func TestScaleDownWaitsForSurplus(t *testing.T) {
	f := &fake{svc: service(1), step: func(f *fake, n int) {
		f.tasks = []*skepv1.Task{task(1, 1, 1, running, running, ""), task(2, 1, 1, running, running, "")}
		if n > 2 {
			f.tasks[1] = task(2, 1, 1, skepv1.TaskState_TASK_STATE_REMOVE, running, "")
		}
	}}
	if _, err := f.run(t, nil); err != nil || f.looks < 3 {
		t.Fatalf("%v after %d looks", err, f.looks)
	}
}

// Which slots stay is the scheduler's choice: it takes tasks from the fullest nodes.
func TestScaleDownKeepsAnySlots(t *testing.T) {
	revs := map[uint64]bool{1: true}
	gone := task(3, 3, 1, skepv1.TaskState_TASK_STATE_SHUTDOWN, skepv1.TaskState_TASK_STATE_SHUTDOWN, "")
	p := assess(service(3), []*skepv1.Task{task(1, 1, 1, running, running, ""), task(2, 2, 1, running, running, ""), gone, task(4, 4, 1, running, running, "")}, revs)
	if !p.Converged() || p.Done != 3 {
		t.Errorf("three tasks run in slots 1, 2 and 4, and it says %+v", p)
	}
	p = assess(service(2), []*skepv1.Task{task(1, 1, 1, running, running, ""), task(2, 2, 1, running, running, ""), gone, task(4, 4, 1, running, running, "")}, revs)
	if p.Converged() || p.Surplus != 1 {
		t.Errorf("one task too many runs, and it says %+v", p)
	}
}

func TestToZero(t *testing.T) {
	f := &fake{svc: service(0)}
	if _, err := f.run(t, nil); err != nil {
		t.Fatal(err)
	}
}

func TestGlobal(t *testing.T) {
	g := service(0)
	g.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
	f := &fake{svc: g, step: func(f *fake, n int) {
		if n > 1 {
			a, b := task(0, 1, 1, running, running, ""), task(0, 2, 1, running, preparing, "")
			a.Name, b.Name, b.NodeId, b.NodeHostname = "web.n1", "web.n2", "n2", "w2"
			if n > 2 {
				b.Status.State = running
			}
			f.tasks = []*skepv1.Task{b, a}
		}
	}, explain: &skepv1.ExplainReply{Next: []*skepv1.Operation{{Verb: "create"}}}}
	out, err := f.run(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "global", out)
}

// Nothing comes of an update on a node that is down or paused until somebody does something: the wait ends when the others
// are done, and names it.
func TestGlobalWithANodeAway(t *testing.T) {
	for name, c := range map[string]struct {
		state  skepv1.NodeState
		avail  skepv1.Availability
		job    bool
		rev    uint64 // of the task there
		want   string // begins the error
		follow string
	}{
		"down":                {state: skepv1.NodeState_NODE_STATE_DOWN, rev: 1, want: "service web is as asked on 1 of 2 nodes: node w2 is down\n", follow: "skep node rm w2"},
		"down, and as it was": {state: skepv1.NodeState_NODE_STATE_DOWN, rev: 2},
		"paused":              {state: skepv1.NodeState_NODE_STATE_READY, avail: skepv1.Availability_AVAILABILITY_PAUSE, rev: 1, want: "service web is as asked on 1 of 2 nodes: node w2 is paused\n", follow: "--availability active w2"},
		"a job":               {state: skepv1.NodeState_NODE_STATE_DOWN, job: true, rev: 2, want: "job web is done on 1 of 2 nodes: node w2 is down\n", follow: "skep node rm w2"},
	} {
		t.Run(name, func(t *testing.T) {
			g := service(0)
			g.Revision = 2
			g.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
			a, b := task(0, 1, 2, running, running, ""), task(0, 2, c.rev, running, running, "")
			a.Name, b.Name, b.NodeId, b.NodeHostname, b.NodeState, b.NodeAvailability = "web.n1", "web.n2", "n2", "w2", c.state, c.avail
			if c.job {
				g.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_GlobalJob{GlobalJob: &skepv1.GlobalJobMode{}}}
				a.Status.State = complete
			}
			f := &fake{svc: g, tasks: []*skepv1.Task{a, b}, revs: []*skepv1.Revision{{Number: 1, Spec: &skepv1.ServiceSpec{Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "old"}}}}}}
			out, err := f.run(t, nil)
			if c.want == "" {
				if err != nil {
					t.Fatal(err, out)
				}
				return
			}
			if !errors.Is(err, ErrAway) || !strings.HasPrefix(err.Error(), c.want) || !strings.Contains(err.Error(), c.follow) {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}

func TestGlobalWithoutNodes(t *testing.T) {
	g := service(0)
	g.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
	f := &fake{svc: g, explain: &skepv1.ExplainReply{Placing: &skepv1.Placing{Summary: "no suitable node (scheduling constraints not satisfied on 3 nodes)"}}}
	out, err := f.run(t, nil)
	if err != nil || !strings.Contains(out, "scheduling constraints not satisfied on 3 nodes") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestJob(t *testing.T) {
	j := service(0)
	j.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: 1, TotalCompletions: 2}}}
	f := &fake{svc: j, step: func(f *fake, n int) {
		f.tasks = []*skepv1.Task{task(0, 1, 1, complete, complete, "")}
		if n > 1 {
			f.tasks = append(f.tasks, task(1, 2, 1, complete, complete, ""))
		}
	}}
	if _, err := f.run(t, func(o *Options) { o.Hold = time.Hour }); err != nil {
		t.Fatal(err)
	}
}

func TestTimeoutTellsWhy(t *testing.T) {
	f := &fake{svc: service(1), tasks: []*skepv1.Task{task(1, 1, 1, running, pending, "no suitable node")}}
	_, err := f.run(t, func(o *Options) { o.Timeout = 100 * time.Millisecond })
	if !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "no suitable node") {
		t.Fatal(err)
	}
}

func TestCancel(t *testing.T) {
	f := &fake{svc: service(1)}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Converge(ctx, f, Options{Service: f.svc, Out: &bytes.Buffer{}, Now: time.Now})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestRemovedMeanwhile(t *testing.T) {
	f := &fake{svc: service(1), err: fault.NotFound("no such service: svc")}
	if _, err := f.run(t, nil); err == nil || !strings.Contains(err.Error(), "removed meanwhile") {
		t.Fatal(err)
	}
}

// TestManagersAway: a failover in the middle is told and survived.
func TestManagersAway(t *testing.T) {
	f := &fake{svc: service(1), tasks: []*skepv1.Task{task(1, 1, 1, running, running, "")}, step: func(f *fake, n int) {
		f.err = nil
		if n < 3 {
			f.err = fault.Unavailable("nobody answers")
		}
	}}
	out, err := f.run(t, nil)
	if err != nil || strings.Count(out, "cannot reach the managers") != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestEventsWake: an event is acted on long before the next regular look.
func TestEventsWake(t *testing.T) {
	f := &fake{svc: service(1), wake: make(chan struct{}, 1)}
	pace := pacer{wake: f.wake, next: time.Hour}
	go func() { f.wake <- struct{}{} }()
	start := time.Now()
	if !pace.wait(t.Context(), time.Hour) || time.Since(start) > relist/2 {
		t.Errorf("woke after %s", time.Since(start))
	}
}

func TestGone(t *testing.T) {
	f := &fake{svc: service(2), tasks: []*skepv1.Task{task(1, 1, 1, shutdown, running, ""), task(2, 1, 1, shutdown, running, "")}}
	var b bytes.Buffer
	done := make(chan error, 1)
	go func() {
		done <- Gone(t.Context(), f, Options{Service: f.svc, Out: &b, Now: time.Now, Timeout: 20 * time.Second})
	}()
	time.AfterFunc(100*time.Millisecond, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.tasks = nil
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if b.String() != "waiting for 2 tasks to stop on w1\n" {
		t.Errorf("%q", b.String())
	}
}

func TestBars(t *testing.T) {
	revs := map[uint64]bool{1: true}
	s := service(3)
	ts := []*skepv1.Task{
		task(1, 1, 1, running, running, ""), task(2, 1, 1, running, preparing, ""),
		task(3, 1, 1, shutdown, failed, "task: non-zero exit (1)"), task(3, 2, 1, skepv1.TaskState_TASK_STATE_READY, skepv1.TaskState_TASK_STATE_READY, ""),
	}
	var b strings.Builder
	page := func(title string, lines []string) {
		b.WriteString("--- " + title + "\n" + strings.Join(lines, "\n") + "\n")
	}
	page("three", bars(assess(s, ts, revs), 0, "", 80, epoch))
	page("narrow", bars(assess(s, ts, revs), 0, "", 40, epoch))
	page("none yet", bars(assess(s, nil, revs), 0, "", 80, epoch))
	page("verify", bars(assess(service(1), ts[:1], revs), 4200*time.Millisecond, "", 80, epoch))
	rb := service(1)
	rb.UpdateStatus = &skepv1.UpdateStatus{State: "rollback_started", Message: "update rolled back due to failure of task x"}
	page("rollback", bars(assess(rb, []*skepv1.Task{task(1, 1, 2, running, running, "")}, revs), 0, "", 80, epoch))
	many := service(50)
	var mt []*skepv1.Task
	for i := 1; i <= 40; i++ {
		st, why := running, ""
		if i > 25 {
			st, why = pending, "no suitable node (insufficient resources on 3 nodes)"
		}
		mt = append(mt, task(i, 1, 1, running, st, why))
	}
	page("many", bars(assess(many, mt, revs), 0, "", 80, epoch))
	golden.Check(t, "bars", b.String())
}

// TestTerminalRepaints: each drawing replaces the one before.
func TestTerminalRepaints(t *testing.T) {
	var b bytes.Buffer
	d := newDisplay(Options{Out: &b, Terminal: true, Now: time.Now})
	d.repaint([]string{"a", "b"})
	d.repaint([]string{"c"})
	want := "\r\x1b[2Ka\n\r\x1b[2Kb\n" + "\x1b[2A\r\x1b[2Kc\n\r\x1b[2K\n\x1b[1A"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

// TestRepeatedFailuresAreToldOnce: a task that is rejected over and over fills no screen.
func TestRepeatedFailuresAreToldOnce(t *testing.T) {
	var b bytes.Buffer
	d := newDisplay(Options{Out: &b, Now: time.Now})
	revs := map[uint64]bool{1: true}
	bad := func(n int) *skepv1.Task {
		return task(1, n, 1, shutdown, skepv1.TaskState_TASK_STATE_REJECTED, "no such image: x")
	}
	for n := 1; n < 9; n += 2 {
		d.draw(assess(service(1), []*skepv1.Task{bad(n)}, revs), 0)
		d.draw(assess(service(1), []*skepv1.Task{bad(n), task(1, n+1, 1, running, preparing, "")}, revs), 0)
	}
	d.draw(assess(service(1), []*skepv1.Task{task(1, 10, 1, running, running, "")}, revs), 0)
	d.draw(assess(service(1), []*skepv1.Task{bad(11)}, revs), 0)
	golden.Check(t, "repeats", b.String())
}

// again is a task that waits to be started after n failures in a row.
func waiting(slot, n int, failures uint32, state skepv1.TaskState, why string) *skepv1.Task {
	k := task(slot, n, 1, skepv1.TaskState_TASK_STATE_READY, state, why)
	k.Failures, k.NotBeforeUnixMs = failures, epoch.Add(10*time.Second).UnixMilli()
	if state == pending {
		k.NodeId, k.NodeHostname = "", ""
	}
	return k
}

// TestEachAttemptIsTold: how often, why, and when it is tried again.
func TestEachAttemptIsTold(t *testing.T) {
	var b bytes.Buffer
	d := newDisplay(Options{Out: &b, Now: func() time.Time { return epoch }})
	revs := map[uint64]bool{1: true}
	bad := func(n int) *skepv1.Task {
		return task(1, n, 1, shutdown, skepv1.TaskState_TASK_STATE_REJECTED, "no such image: x")
	}
	for n := uint32(1); n < 4; n++ {
		ts := []*skepv1.Task{bad(int(2 * n))}
		d.draw(assess(service(1), ts, revs), 0)
		ts = append(ts, waiting(1, int(2*n)+1, n, pending, "no such image: x"))
		d.draw(assess(service(1), ts, revs), 0)
		d.draw(assess(service(1), ts, revs), 0)
		ts[1].Status.State, ts[1].NodeHostname, ts[1].Status.Err = preparing, "w2", ""
		d.draw(assess(service(1), ts, revs), 0)
	}
	b.WriteString("--- a crash loop\n")
	for n := uint32(1); n < 3; n++ {
		ts := []*skepv1.Task{task(2, int(2*n), 1, shutdown, failed, "task: non-zero exit (1)"), waiting(2, int(2*n)+1, n, skepv1.TaskState_TASK_STATE_READY, "")}
		d.draw(assess(service(1), ts, revs), 0)
	}
	b.WriteString("--- on a terminal\n")
	for _, l := range bars(assess(service(1), []*skepv1.Task{bad(1), waiting(1, 2, 3, pending, "no such image: x")}, revs), 0, "", 100, epoch) {
		b.WriteString(l + "\n")
	}
	golden.Check(t, "attempts", b.String())
}

// TestRejectedForEver: a wait ends when every node that suits has rejected the task, or so many have that it is enough.
func TestRejectedForEver(t *testing.T) {
	failedThere, fresh := &skepv1.ScoredNode{Failures: 5}, &skepv1.ScoredNode{}
	for _, c := range []struct {
		name       string
		failures   uint32
		candidates []*skepv1.ScoredNode
		state      skepv1.TaskState
		ends       bool
	}{
		{"twice", 2, []*skepv1.ScoredNode{failedThere}, skepv1.TaskState_TASK_STATE_REJECTED, false},
		{"everywhere", 3, []*skepv1.ScoredNode{failedThere, failedThere}, skepv1.TaskState_TASK_STATE_REJECTED, true},
		{"another node is left", 3, []*skepv1.ScoredNode{failedThere, fresh}, skepv1.TaskState_TASK_STATE_REJECTED, false},
		{"often enough", 6, []*skepv1.ScoredNode{failedThere, fresh}, skepv1.TaskState_TASK_STATE_REJECTED, true},
		{"a crash loop", 9, []*skepv1.ScoredNode{failedThere}, failed, false},
	} {
		f := &fake{svc: service(2), explain: &skepv1.ExplainReply{Placing: &skepv1.Placing{Candidates: c.candidates}}}
		f.tasks = []*skepv1.Task{task(1, 1, 1, shutdown, c.state, "no such image: x"), waiting(1, 2, c.failures, pending, "no such image: x"), task(2, 1, 1, running, running, "")}
		p := newFollower(Options{Service: f.svc, Now: time.Now})
		p.fresh = map[uint64]bool{1: true}
		done, _, err := p.see(t.Context(), f, f.svc, f.tasks, epoch)
		if ends := errors.Is(err, ErrGaveUp); ends != c.ends || done {
			t.Errorf("%s: %v, done %t", c.name, err, done)
		}
		if c.name == "everywhere" {
			golden.Check(t, "rejected", err.Error()+"\n")
		}
	}
}

// A global service's tasks that wait for their places belong to different nodes.
func TestGlobalTasksThatWait(t *testing.T) {
	s := service(0)
	s.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
	var ts []*skepv1.Task
	for _, node := range []string{"n1", "n2"} {
		bad, next := task(0, 1, 1, shutdown, skepv1.TaskState_TASK_STATE_REJECTED, "no such path"), waiting(0, 2, 3, pending, "no such path")
		bad.NodeId, bad.NodeHostname, bad.Name, next.Name = node, "host-"+node, "web."+node, "web."+node
		ts = append(ts, bad, next)
	}
	p := assess(s, ts, map[uint64]bool{1: true})
	if len(p.Slots) != 2 || p.Slots[0].Label != "host-n1" || p.Slots[1].Label != "host-n2" || !p.Slots[0].Rejected {
		t.Errorf("%+v", p.Slots)
	}
}
