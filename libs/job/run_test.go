package job

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

var epoch = time.Unix(1_700_000_000, 0)

func jobs(total uint64) *skepv1.Service {
	return &skepv1.Service{JobIteration: 1, Run: &skepv1.RunControl{Started: timestamppb.New(epoch)}, Spec: &skepv1.ServiceSpec{Name: "j",
		Mode: &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: total, TotalCompletions: total}}},
		Task: &skepv1.TaskSpec{Restart: &skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_ANY}}}}
}

// tasks makes tasks of run 1 from "slot:state[:code]" words, oldest first; a state in capitals is still desired. Slot 0 is
// a global job's, on a node named by its place.
func tasks(words string) []*skepv1.Task {
	var out []*skepv1.Task
	last := map[string]string{}
	for i, w := range strings.Fields(words) {
		f := strings.Split(w, ":")
		t := &skepv1.Task{Meta: &skepv1.Meta{Id: fmt.Sprint("t", i), CreatedAt: timestamppb.New(epoch.Add(time.Duration(i) * time.Second))}, JobIteration: 1,
			NodeId: "n" + f[0], Desired: skepv1.TaskState_TASK_STATE_SHUTDOWN, Replaces: last[f[0]],
			Status: &skepv1.TaskStatus{State: skepv1.TaskState(skepv1.TaskState_value["TASK_STATE_"+strings.ToUpper(f[1])]), SinceUnixMs: epoch.UnixMilli() + int64(i)*1000}}
		if strings.ToUpper(f[1]) == f[1] {
			t.Desired = skepv1.TaskState_TASK_STATE_COMPLETE
		}
		if f[0][0] != 'g' {
			fmt.Sscan(f[0], &t.Slot) //nolint:errcheck // the test's own words
		}
		if len(f) > 2 {
			code := int32(0)
			fmt.Sscan(f[2], &code) //nolint:errcheck // likewise
			t.Status.ExitCode = &code
		}
		last[f[0]] = t.Meta.Id
		out = append(out, t)
	}
	return out
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name, tasks string
		total       uint64
		attempts    uint64
		window      time.Duration
		none        bool
		stopped     bool
		want        string // state completed/wanted failed codes
	}{
		{name: "nothing yet", total: 2, want: "running 0/2 0 []"},
		{name: "nothing to do", want: "completed 0/0 0 []"},
		{name: "all done", total: 2, tasks: "1:COMPLETE 2:COMPLETE", want: "completed 2/2 0 []"},
		{name: "one goes", total: 2, tasks: "1:COMPLETE 2:RUNNING", want: "running 1/2 0 []"},
		{name: "failed and restarted", total: 1, tasks: "1:failed:3 1:COMPLETE", want: "completed 1/1 1 [3]"},
		{name: "failed, will restart", total: 1, tasks: "1:failed:3", want: "running 0/1 1 [3]"},
		{name: "failed, never restarts", total: 1, none: true, tasks: "1:failed:3", want: "failed 0/1 1 [3]"},
		{name: "attempts used up", total: 2, attempts: 1, tasks: "1:failed:9 1:failed:3 2:COMPLETE", want: "failed 1/2 2 [3 9]"},
		{name: "attempts used up, others to come", total: 3, attempts: 1, tasks: "1:failed 1:failed 2:COMPLETE", want: "running 1/3 2 []"},
		{name: "attempts within the window", total: 1, attempts: 1, window: 2 * time.Second, tasks: "1:failed 1:failed 1:failed", want: "failed 0/1 3 []"},
		{name: "attempts outside the window", total: 1, attempts: 2, window: time.Second, tasks: "1:failed 1:failed 1:failed", want: "running 0/1 3 []"},
		{name: "stopped", total: 1, stopped: true, tasks: "1:shutdown", want: "stopped 0/1 0 []"},
		{name: "stopped too late", total: 1, stopped: true, tasks: "1:COMPLETE", want: "completed 1/1 0 []"},
		{name: "global", tasks: "g1:COMPLETE g2:COMPLETE", want: "completed 2/2 0 []"},
		{name: "global, a node was drained", tasks: "g1:COMPLETE g2:shutdown", want: "completed 1/1 0 []"},
		{name: "global, one goes", tasks: "g1:COMPLETE g2:RUNNING", want: "running 1/2 0 []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := jobs(c.total)
			if strings.Contains(c.tasks, "g1") {
				v.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_GlobalJob{GlobalJob: &skepv1.GlobalJobMode{}}}
			}
			v.Spec.Task.Restart.MaxAttempts = c.attempts
			v.Spec.Task.Restart.Window = durationpb.New(c.window)
			if c.none {
				v.Spec.Task.Restart.Condition = skepv1.RestartCondition_RESTART_CONDITION_NONE
			}
			r := Judge(v, &skepv1.RunControl{Iteration: 1, Stopped: c.stopped}, append(tasks(c.tasks), &skepv1.Task{JobIteration: 7}))
			if got := fmt.Sprintf("%s %d/%d %d %v", r.State, r.Completed, r.Wanted, r.Failed, r.ExitCodes); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if r.State == Running && !r.Ended.IsZero() || r.State == Completed && c.total > 0 && r.Ended.IsZero() {
				t.Errorf("ended %v", r.Ended)
			}
		})
	}
}

func TestDecideComparesBeforeItSets(t *testing.T) {
	v := jobs(1)
	v.Spec.Schedule = &skepv1.Schedule{Cron: "@every 10s", Concurrency: skepv1.Concurrency_CONCURRENCY_REPLACE}
	v.ScheduleDecided = timestamppb.New(epoch)
	none := func() []*skepv1.Task { return nil }
	d := &skepv1.RunDecision{Iteration: 1, Decided: v.ScheduleDecided, Due: timestamppb.New(epoch.Add(10 * time.Second))}
	if changed, err := Decide(v, d, epoch, none); !changed || err != nil || v.JobIteration != 2 || len(v.Runs) != 1 || !v.Runs[0].Stopped {
		t.Fatalf("%v %v %v", changed, err, v)
	}
	was := proto.CloneOf(v)
	if changed, err := Decide(v, d, epoch, none); changed || err != nil || !proto.Equal(v, was) {
		t.Fatalf("again: %v %v", changed, err)
	}
	old := &skepv1.RunDecision{Iteration: 1, Decided: d.Decided, Due: timestamppb.New(epoch.Add(5 * time.Second))}
	if _, err := Decide(v, old, epoch, none); fault.Of(err) != fault.CodeConflict || !proto.Equal(v, was) {
		t.Fatalf("of an older picture: %v", err)
	}
	v.Spec.Schedule = nil
	late := &skepv1.RunDecision{Iteration: 2, Decided: v.ScheduleDecided, Due: timestamppb.New(epoch.Add(20 * time.Second))}
	if _, err := Decide(v, late, epoch, none); fault.Of(err) != fault.CodeConflict {
		t.Fatalf("without a schedule: %v", err)
	}
}

// A scheduler that is away lets runs be listed, not without end.
func TestRunsAreBounded(t *testing.T) {
	v := jobs(1)
	for range 2 * maxRuns {
		Begin(v, nil, false, epoch, func() []*skepv1.Task { return nil })
	}
	if len(v.Runs) != maxRuns || v.Runs[len(v.Runs)-1].Iteration != v.JobIteration-1 {
		t.Errorf("%d runs, the last %v of %d", len(v.Runs), v.Runs[len(v.Runs)-1], v.JobIteration)
	}
}
