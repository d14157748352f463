package task

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// soonAgain is a harness in which what ends begins anew as soon as no manager hears of it.
func soonAgain(t *testing.T, task *skepv1.TaskSpec) *harness {
	h := &harness{t: t, dir: t.TempDir(), rt: newFake(), election: time.Millisecond, task: task}
	h.open(nil)
	return h
}

// awaitRestarts waits until a task runs for the n-th time since its first.
func (h *harness) awaitRestarts(id string, n uint32) *skepv1.TaskStatus {
	h.t.Helper()
	var st *skepv1.TaskStatus
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, st = h.set.Job(id); st.GetState() == runningSt && st.GetRestarts() == n {
			return st
		}
	}
	h.t.Fatalf("it does not run for the %d. time again: %v", n, st)
	return nil
}

func (h *harness) awaitReleased(id string) {
	h.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		h.rt.mu.Lock()
		released := h.rt.released[id]
		h.rt.mu.Unlock()
		if released {
			return
		}
	}
	h.t.Fatal("it is not cleared away")
}

// What ends by itself while no manager hears of it begins anew, as the same task; also when its agent was killed in between.
func TestAgainWithoutManagers(t *testing.T) {
	h := soonAgain(t, nil)
	r := rec(runningSt)
	h.apply(r)
	h.await(r.Id, runningSt)
	h.rt.exit(r.Id) <- Exit{Code: 1}
	if st := h.awaitRestarts(r.Id, 1); st.ExitCode != nil || st.Err != "" || st.Message != "started, and again by its node while no manager was heard (1 times)" {
		t.Errorf("%v", st)
	}
	h.rt.exit(r.Id) <- Exit{Code: 0} // the condition is any
	h.awaitRestarts(r.Id, 2)
	h.set.Close()
	h.open(map[string]Found{r.Id: {Phase: PhaseStopped, Exit: Exit{Code: 7}}})
	h.awaitRestarts(r.Id, 3)
	if n := h.rt.called("renew"); n != 3 {
		t.Errorf("renewed %d times", n)
	}
	h.apply(with(r, shut))
	h.await(r.Id, shut)
	h.awaitReleased(r.Id)
}

// A manager that knows of the end makes another task in its place: this one is over.
func TestTheirsToReplace(t *testing.T) {
	h := &harness{t: t, dir: t.TempDir(), rt: newFake(), election: time.Hour}
	h.open(nil)
	r := rec(runningSt)
	h.apply(r)
	st := h.await(r.Id, runningSt)
	h.set.Told([]*skepv1.TaskStatus{st, {TaskId: "nobody's", State: failedSt}}) // of before the end
	h.rt.exit(r.Id) <- Exit{Code: 1}
	st = h.await(r.Id, failedSt)
	h.rt.mu.Lock()
	if h.rt.released[r.Id] {
		t.Error("cleared away before a manager knew")
	}
	h.rt.mu.Unlock()
	h.set.Told([]*skepv1.TaskStatus{st})
	h.awaitReleased(r.Id)
	if n := h.rt.called("renew"); n != 0 {
		t.Errorf("renewed %d times", n)
	}
}

// What is told to end, or is not the node's any more, is not begun anew.
func TestNotAgainWhenTold(t *testing.T) {
	h := &harness{t: t, dir: t.TempDir(), rt: newFake(), election: time.Hour}
	h.open(nil)
	told, left := rec(runningSt), rec(runningSt)
	h.apply(told, left)
	for _, r := range []*skepv1.TaskRecord{told, left} {
		h.await(r.Id, runningSt)
		h.rt.exit(r.Id) <- Exit{Code: 1}
		h.await(r.Id, failedSt)
	}
	h.apply(with(told, shut))
	h.awaitReleased(told.Id)
	h.awaitReleased(left.Id)
	if n := h.rt.called("renew"); n != 0 {
		t.Errorf("renewed %d times", n)
	}
}

// The restart policy holds without managers too, and what must never run twice waits for them.
func TestWhatBeginsAnew(t *testing.T) {
	restart := func(p *skepv1.RestartPolicy) *skepv1.TaskSpec { return &skepv1.TaskSpec{Restart: p} }
	mount := func(m *skepv1.Mount) *skepv1.TaskSpec {
		return &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Mounts: []*skepv1.Mount{m}}}
	}
	onFailure := skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE
	for _, c := range []struct {
		name   string
		task   *skepv1.TaskSpec
		mode   *skepv1.ServiceMode
		policy skepv1.PartitionPolicy
		exit   Exit
		want   int // restarts, of two ends
	}{
		{name: "the default", exit: Exit{Code: 1}, want: 2},
		{name: "out of memory", exit: Exit{Code: 137, OOM: true}, want: 2},
		{name: "nobody knows how", exit: Exit{Code: -1, Lost: "its shim died"}, want: 2},
		{name: "with its node", exit: Exit{Code: -1, Lost: "a power cut", WithNode: true}},
		{name: "no restarts", exit: Exit{Code: 1}, task: restart(&skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_NONE})},
		{name: "on failure, failed", exit: Exit{Code: 1}, task: restart(&skepv1.RestartPolicy{Condition: onFailure}), want: 2},
		{name: "on failure, finished", task: restart(&skepv1.RestartPolicy{Condition: onFailure})},
		{name: "one attempt", exit: Exit{Code: 1}, task: restart(&skepv1.RestartPolicy{MaxAttempts: 1}), want: 1},
		{name: "a delay of its own", exit: Exit{Code: 1}, task: restart(&skepv1.RestartPolicy{Delay: durationpb.New(time.Millisecond)}), want: 2},
		{name: "a job", exit: Exit{Code: 1}, mode: &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{}}}},
		{name: "on partition stop", exit: Exit{Code: 1}, policy: skepv1.PartitionPolicy_PARTITION_POLICY_STOP},
		{name: "a volume of its own", exit: Exit{Code: 1}, task: mount(&skepv1.Mount{Type: skepv1.Mount_TYPE_VOLUME, Source: "data", VolumeDriver: "rexray"})},
		{name: "a local volume", exit: Exit{Code: 1}, task: mount(&skepv1.Mount{Type: skepv1.Mount_TYPE_VOLUME, Source: "data"}), want: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &harness{t: t, dir: t.TempDir(), rt: newFake(), election: time.Millisecond, task: c.task, mode: c.mode, policy: c.policy}
			h.open(nil)
			r := rec(runningSt)
			h.apply(r)
			h.await(r.Id, runningSt)
			for n := range 2 {
				h.rt.exit(r.Id) <- c.exit
				if n == c.want {
					break
				}
				h.awaitRestarts(r.Id, uint32(n)+1)
			}
			if c.want < 2 {
				h.awaitReleased(r.Id) // it was left to the managers
			}
			if n := h.rt.called("renew"); n != c.want {
				t.Errorf("renewed %d times, want %d", n, c.want)
			}
		})
	}
}
