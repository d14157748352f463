package task

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/id"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	preparing = skepv1.TaskState_TASK_STATE_PREPARING
	readySt   = skepv1.TaskState_TASK_STATE_READY
	runningSt = skepv1.TaskState_TASK_STATE_RUNNING
	completed = skepv1.TaskState_TASK_STATE_COMPLETE
	shut      = skepv1.TaskState_TASK_STATE_SHUTDOWN
	failedSt  = skepv1.TaskState_TASK_STATE_FAILED
	rejectSt  = skepv1.TaskState_TASK_STATE_REJECTED
)

// fake is a runtime without containers. Each hook may be nil.
type fake struct {
	mu       sync.Mutex
	exits    map[string]chan Exit
	released map[string]bool
	calls    []string

	prepare func(ctx context.Context, j *Job) error
	start   func(j *Job) error
}

func newFake() *fake { return &fake{exits: map[string]chan Exit{}, released: map[string]bool{}} }

func (f *fake) note(call string) { f.mu.Lock(); f.calls = append(f.calls, call); f.mu.Unlock() }

func (f *fake) called(call string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == call {
			n++
		}
	}
	return n
}

func (f *fake) exit(id string) chan Exit {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.exits[id] == nil {
		f.exits[id] = make(chan Exit, 1)
	}
	return f.exits[id]
}

func (f *fake) Prepare(ctx context.Context, j *Job, _ func(string)) (Prepared, error) {
	f.note("prepare")
	if f.prepare != nil {
		if err := f.prepare(ctx, j); err != nil {
			return Prepared{}, err
		}
	}
	return Prepared{ContainerID: j.ID()}, nil
}

func (f *fake) Make(_ context.Context, j *Job) error {
	f.note("make " + j.ID())
	return nil
}

func (f *fake) Start(_ context.Context, j *Job) (uint32, error) {
	f.note("start")
	if f.start != nil {
		if err := f.start(j); err != nil {
			return 0, err
		}
	}
	return 42, nil
}

func (f *fake) Wait(ctx context.Context, id string) (Exit, error) {
	select {
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	case e := <-f.exit(id):
		return e, nil
	}
}

func (f *fake) Stop(context.Context, *Job) (*Exit, error) {
	f.note("stop")
	return &Exit{Code: 143}, nil
}

func (f *fake) Renew(context.Context, *Job) error {
	f.note("renew")
	return nil
}

func (f *fake) Release(_ context.Context, id string) error {
	f.mu.Lock()
	f.released[id] = true
	f.mu.Unlock()
	return nil
}

func (f *fake) List(context.Context) (map[string]Found, error) { return nil, nil }

type harness struct {
	t   *testing.T
	dir string
	rt  *fake
	set *Set
	gen uint64

	policy   skepv1.PartitionPolicy
	task     *skepv1.TaskSpec    // nil: an empty one
	mode     *skepv1.ServiceMode // nil: the default
	election time.Duration       // 0: the default
}

func (h *harness) open(found map[string]Found) {
	h.t.Helper()
	s, err := Open(Config{Dir: h.dir, Runtime: h.rt, Log: zap.NewNop(), Backoff: time.Millisecond, Election: h.election, Specs: func(_ context.Context, svc string, rev uint64) (*skepv1.Revision, error) {
		task := h.task
		if task == nil {
			task = &skepv1.TaskSpec{}
		}
		return &skepv1.Revision{ServiceId: svc, Number: rev, Spec: &skepv1.ServiceSpec{Task: task, Mode: h.mode, OnPartition: h.policy}}, nil
	}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.set = s
	s.Resume(found)
	h.t.Cleanup(s.Close)
}

func begin(t *testing.T) *harness {
	h := &harness{t: t, dir: t.TempDir(), rt: newFake()}
	h.open(nil)
	return h
}

func (h *harness) apply(recs ...*skepv1.TaskRecord) {
	h.t.Helper()
	h.gen++
	if ok, err := h.set.Apply(h.gen, &skepv1.NodeTasks{Tasks: recs}, false); !ok || err != nil {
		h.t.Fatalf("apply: %v %v", ok, err)
	}
}

func (h *harness) await(id string, s skepv1.TaskState) *skepv1.TaskStatus {
	h.t.Helper()
	var st *skepv1.TaskStatus
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, st = h.set.Job(id); st.GetState() == s {
			return st
		}
	}
	h.t.Fatalf("task is not %s: %v", s, st)
	return nil
}

func rec(desired skepv1.TaskState) *skepv1.TaskRecord {
	return &skepv1.TaskRecord{Id: id.New(), ServiceId: "s", Revision: 1, Slot: 1, Desired: desired}
}

func with(r *skepv1.TaskRecord, desired skepv1.TaskState) *skepv1.TaskRecord {
	return &skepv1.TaskRecord{Id: r.Id, ServiceId: r.ServiceId, Revision: r.Revision, Slot: r.Slot, Desired: desired}
}

func TestStates(t *testing.T) {
	h := begin(t)
	r := rec(runningSt)
	h.apply(r)
	if st := h.await(r.Id, runningSt); st.Pid != 42 || st.Message != "started" {
		t.Errorf("%v", st)
	}
	h.rt.exit(r.Id) <- Exit{Code: 0}
	if st := h.await(r.Id, completed); st.Message != "finished" || st.ExitCode == nil {
		t.Errorf("%v", st)
	}
	r2 := rec(runningSt)
	h.apply(r, r2)
	h.await(r2.Id, runningSt)
	h.apply(r, with(r2, shut))
	if st := h.await(r2.Id, shut); st.GetExitCode() != 143 {
		t.Errorf("%v", st)
	}
}

func TestErrorsBeforeAndAfterStarting(t *testing.T) {
	h := begin(t)
	h.rt.prepare = func(context.Context, *Job) error { return errors.New("no such image: x") }
	r := rec(runningSt)
	h.apply(r)
	if st := h.await(r.Id, rejectSt); st.Err != "no such image: x" {
		t.Errorf("%v", st)
	}
	h.rt.prepare, h.rt.start = nil, func(*Job) error { return errors.New("starting container failed: x") }
	r2 := rec(runningSt)
	h.apply(r, r2)
	if st := h.await(r2.Id, failedSt); st.Err != "starting container failed: x" {
		t.Errorf("%v", st)
	}
}

func TestTemporaryErrorsAreTriedAgain(t *testing.T) {
	h := begin(t)
	var mu sync.Mutex
	tries := map[string]int{}
	again := func(what string) error {
		mu.Lock()
		defer mu.Unlock()
		if tries[what]++; tries[what] < 4 {
			return Temporary(fmt.Errorf("%s: try %d", what, tries[what]))
		}
		return nil
	}
	h.rt.prepare = func(context.Context, *Job) error { return again("prepare") }
	h.rt.start = func(*Job) error { return again("start") }
	r := rec(runningSt)
	h.apply(r)
	h.await(r.Id, runningSt)
}

func TestStopInterruptsPreparing(t *testing.T) {
	h := begin(t)
	h.rt.prepare = func(ctx context.Context, _ *Job) error { <-ctx.Done(); return ctx.Err() }
	r := rec(runningSt)
	h.apply(r)
	h.await(r.Id, preparing)
	h.apply(with(r, skepv1.TaskState_TASK_STATE_REMOVE))
	h.await(r.Id, shut)
	h.apply()
	for deadline := time.Now().Add(20 * time.Second); h.set.Known(r.Id); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a task that left the set is still known")
		}
	}
	if !h.rt.released[r.Id] {
		t.Error("not released")
	}
}

func TestHoldAtReady(t *testing.T) {
	h := begin(t)
	r := rec(readySt)
	h.apply(r)
	h.await(r.Id, readySt)
	late := with(r, runningSt)
	late.NotBeforeUnixMs = time.Now().Add(300 * time.Millisecond).UnixMilli()
	h.apply(late)
	h.await(r.Id, runningSt)
	if time.Now().UnixMilli() < late.NotBeforeUnixMs {
		t.Error("started before its time")
	}
}

func TestOldGenerationsAreIgnored(t *testing.T) {
	h := begin(t)
	r := rec(runningSt)
	h.gen = 10
	h.apply(r)
	h.await(r.Id, runningSt)
	if ok, err := h.set.Apply(10, &skepv1.NodeTasks{}, false); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	if !h.set.Known(r.Id) {
		t.Error("an old set was applied")
	}
}

func TestRestart(t *testing.T) {
	h := begin(t)
	lives, ended, vanished, waiting, stopping := rec(runningSt), rec(runningSt), rec(runningSt), rec(readySt), rec(runningSt)
	all := []*skepv1.TaskRecord{lives, ended, vanished, waiting, stopping}
	h.apply(all...)
	for _, r := range all {
		want := runningSt
		if r == waiting {
			want = readySt
		}
		h.await(r.Id, want)
	}
	h.set.Close()
	h.rt.calls = nil
	h.open(map[string]Found{
		lives.Id: {Phase: PhaseRunning, Pid: 42}, ended.Id: {Phase: PhaseStopped, Exit: Exit{Code: 7}}, waiting.Id: {Phase: PhaseCreated},
		stopping.Id: {Phase: PhaseRunning, Pid: 42},
	})
	if h.set.Generation() != h.gen {
		t.Errorf("generation %d, want %d", h.set.Generation(), h.gen)
	}
	if st := h.await(ended.Id, failedSt); st.GetExitCode() != 7 {
		t.Errorf("%v", st)
	}
	// It was there when the node went down and is not any more: that is no failure.
	if st := h.await(vanished.Id, skepv1.TaskState_TASK_STATE_ORPHANED); st.ExitCode != nil || st.Message != "ended with its node" {
		t.Errorf("%v", st)
	}
	h.await(lives.Id, runningSt)
	h.rt.mu.Lock()
	if slices.Contains(h.rt.calls, "start") || slices.Contains(h.rt.calls, "stop") {
		t.Errorf("a restart touched what runs: %v", h.rt.calls)
	}
	h.rt.mu.Unlock()
	h.apply(lives, ended, vanished, with(waiting, runningSt), with(stopping, shut))
	h.await(waiting.Id, runningSt)
	h.await(stopping.Id, shut)
	h.rt.exit(lives.Id) <- Exit{Code: 137, OOM: true, Limit: 32 << 20}
	if st := h.await(lives.Id, failedSt); st.Err != "task: out of memory (limit 32MiB), exit 137" || !st.OomKilled {
		t.Errorf("%v", st)
	}
}

// Without managers a task ends if its service says so, whatever it does just then, and is not begun again by itself.
func TestAlone(t *testing.T) {
	h := begin(t)
	h.policy = skepv1.PartitionPolicy_PARTITION_POLICY_STOP
	runs, held := rec(runningSt), rec(readySt)
	h.apply(runs, held)
	h.await(runs.Id, runningSt)
	h.await(held.Id, readySt)
	if !h.set.StopsAlone() {
		t.Fatal("no task would end")
	}
	h.set.Alone("")
	h.set.Alone("no manager")
	for _, r := range []*skepv1.TaskRecord{runs, held} {
		if st := h.await(r.Id, shut); st.Err != "no manager" {
			t.Errorf("%v", st)
		}
	}
	h.set.Alone("")
	if h.set.StopsAlone() {
		t.Error("what has ended would end")
	}
	h.apply(runs, held)
	h.await(runs.Id, shut)
	h.policy = skepv1.PartitionPolicy_PARTITION_POLICY_KEEP
	keeps := rec(runningSt)
	h.apply(runs, held, keeps)
	h.await(keeps.Id, runningSt)
	h.set.Alone("no manager")
	h.rt.exit(keeps.Id) <- Exit{Code: 3}
	h.await(keeps.Id, failedSt)
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 512: "512B", 32 << 20: "32MiB", 1536: "1.5KiB", 1 << 30: "1GiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
