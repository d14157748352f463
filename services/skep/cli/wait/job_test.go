package wait

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// jobOf is a service called web that is a job of n completions, in its second run.
func jobOf(n uint64) *skepv1.Service {
	j := service(0)
	j.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: 1, TotalCompletions: n}}}
	j.JobIteration, j.Run = 2, &skepv1.RunControl{Iteration: 2}
	return j
}

// of puts a task into a run; replaces is the task before it in its slot.
func of(run uint64, replaces string, t *skepv1.Task) *skepv1.Task {
	t.JobIteration, t.Replaces = run, replaces
	return t
}

func TestJobOutcomes(t *testing.T) {
	for _, c := range []struct {
		name     string
		attempts uint64
		tasks    []*skepv1.Task
		then     func(*skepv1.Service)
		kind     error
		want     string
	}{
		{
			name: "complete, after a restart", attempts: 1, want: "job complete",
			tasks: []*skepv1.Task{
				of(1, "", task(1, 0, 1, shutdown, failed, "of an older run")),
				of(2, "", task(1, 1, 1, shutdown, failed, "boom")), of(2, "t1.1", task(1, 2, 1, complete, complete, "")),
				of(2, "", task(2, 3, 1, complete, complete, "")),
			},
		},
		{
			name: "failed", attempts: 1, kind: ErrGaveUp, want: "job web failed: 1 of 2 tasks completed and no more will be started by its restart policy\nweb.1: boom\n",
			tasks: []*skepv1.Task{
				of(2, "", task(1, 1, 1, shutdown, failed, "boom")), of(2, "t1.1", task(1, 2, 1, shutdown, failed, "boom")),
				of(2, "", task(2, 3, 1, complete, complete, "")),
			},
		},
		{
			name: "stopped by the run after it", kind: ErrStopped, want: "run 2 of job web was stopped: run 3 began",
			tasks: []*skepv1.Task{of(2, "", task(1, 1, 1, shutdown, shutdown, ""))},
			then: func(s *skepv1.Service) {
				s.JobIteration, s.Runs = 3, []*skepv1.RunControl{{Iteration: 2, Stopped: true}}
			},
		},
		{
			name: "not kept", kind: ErrStopped, want: "run 2 of job web is not kept any more: run 9 began",
			then: func(s *skepv1.Service) { s.JobIteration = 9 },
		},
		{
			name: "complete although another began", want: "job complete",
			tasks: []*skepv1.Task{of(2, "", task(1, 1, 1, complete, complete, "")), of(2, "", task(2, 1, 1, complete, complete, ""))},
			then: func(s *skepv1.Service) {
				s.JobIteration, s.Runs = 3, []*skepv1.RunControl{{Iteration: 2, Stopped: true}}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := jobOf(2)
			j.Spec.Task.Restart.MaxAttempts = c.attempts
			f := &fake{svc: proto.CloneOf(j), tasks: c.tasks}
			if c.then != nil {
				c.then(f.svc)
			}
			out, err := f.run(t, func(o *Options) { o.Service, o.Run = j, 2 })
			if c.kind == nil && err != nil || c.kind != nil && !errors.Is(err, c.kind) {
				t.Fatalf("%v\n%s", err, out)
			}
			text := out
			if err != nil {
				text = err.Error()
			}
			if !strings.Contains(text, c.want) {
				t.Errorf("%q lacks %q", text, c.want)
			}
		})
	}
}

// A failed slot is not the end while others have not been tried.
func TestJobWaitsForSlotsToCome(t *testing.T) {
	j := jobOf(2)
	j.Spec.Task.Restart.Condition = skepv1.RestartCondition_RESTART_CONDITION_NONE
	p := assessJob(j, []*skepv1.Task{of(2, "", task(1, 1, 1, shutdown, failed, "boom"))}, 2)
	if len(p.GaveUp()) != 1 || allSettled(p) {
		t.Errorf("%+v", p)
	}
}
