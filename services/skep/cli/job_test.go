package cli

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

const completed = skepv1.TaskState_TASK_STATE_COMPLETE

// jobCluster has one job called web whose runs a test decides.
func jobCluster(t *testing.T) *cluster {
	c := newCluster(t)
	s := webService()
	s.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: 1, TotalCompletions: 1}}}
	s.JobIteration, s.Run = 1, &skepv1.RunControl{Iteration: 1, Started: timestamppb.New(testNow.Add(-5 * time.Minute)), Due: timestamppb.New(testNow.Add(-5 * time.Minute))}
	c.services = []*skepv1.Service{s}
	serve(c, c.rs, api.ServiceRun, func(r *skepv1.RunServiceRequest) (*skepv1.ServiceReply, error) {
		v, err := c.find(r.Ref)
		if err != nil {
			return nil, err
		}
		v.Runs = append(v.Runs, v.Run)
		v.JobIteration++
		v.Run = &skepv1.RunControl{Iteration: v.JobIteration, Started: timestamppb.New(testNow)}
		c.services = []*skepv1.Service{v}
		return &skepv1.ServiceReply{Service: v}, nil
	})
	c.flush()
	return c
}

func runTask(id string, run uint64, state skepv1.TaskState) *skepv1.Task {
	t := webTask(id, 1, state)
	t.Desired, t.JobIteration = completed, run
	return t
}

func TestServiceRun(t *testing.T) {
	c := jobCluster(t)
	c.looked = func(n int) {
		c.tasks = []*skepv1.Task{runTask("t1", 1, completed)}
		if n > 1 {
			c.tasks = append(c.tasks, runTask("t2", 2, running))
		}
		if n > 2 {
			c.tasks[1] = runTask("t2", 2, completed)
		}
	}
	r := c.run("service", "run", "web")
	want(t, r, 0, "2\n", "job complete")
	if r.out != "2\n" {
		t.Errorf("standard output must be the run's number alone: %q", r.out)
	}
	c.looked = nil
	want(t, c.run("service", "run", "--detach", "web"), 0, "3\n", "")
	want(t, c.run("service", "run"), ExitUsage, "", "requires 1 argument")
	want(t, c.run("service", "run", "nope"), ExitError, "", "no such service: nope")
	c.on = func(proto.Message) error {
		return fault.Conflict("run 3 of job web still goes: wait for it")
	}
	want(t, c.run("service", "run", webID), ExitError, "", "run 3 of job web still goes")
}

func TestServiceRunFails(t *testing.T) {
	c := jobCluster(t)
	c.services[0].Spec.Task.Restart = &skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_NONE}
	bad := runTask("t2", 2, skepv1.TaskState_TASK_STATE_FAILED)
	bad.Desired, bad.Status.Err = skepv1.TaskState_TASK_STATE_SHUTDOWN, "task: non-zero exit (7)"
	code := int32(7)
	bad.Status.ExitCode = &code
	c.tasks = []*skepv1.Task{runTask("t1", 1, completed), bad}
	want(t, c.run("service", "run", "web"), ExitError, "2\n", "Error: job web failed: 0 of 1 tasks completed and no more will be started by its restart policy\nweb.1: task: non-zero exit (7)")
	r := c.run("service", "runs", "web")
	want(t, r, 0, "RUN", "")
	lines := strings.Split(r.out, "\n")
	for i, words := range [][]string{{"2", "-", "failed", "0/1", "1", "7"}, {"1", "2026-01-02T14:55:00Z", "completed", "1/1", "0", "-"}} {
		for _, w := range words {
			if !strings.Contains(lines[i+1], w) {
				t.Errorf("line %q lacks %q", lines[i+1], w)
			}
		}
	}
	want(t, c.run("service", "runs", "-q", "web"), 0, "2\n1\n", "")
	want(t, c.run("service", "runs", "--json", "web"), 0, `"exit_codes": [`, "")
}

func TestRunsOfWhatIsNoJob(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	want(t, c.run("service", "runs", "web"), ExitError, "", "service web is not a job")
}

func TestCreateScheduledDoesNotWait(t *testing.T) {
	c := newCluster(t)
	r := c.run("service", "create", "--name", "web", "--mode", "replicated-job", "--schedule", "@every 1h", "busybox")
	want(t, r, 0, webID+"\n", "The job runs next in")
	want(t, c.run("service", "create", "--mode", "replicated-job", "--schedule", "0 0 30 2 *", "busybox"), ExitUsage, "", "never comes")
	want(t, c.run("service", "create", "--schedule", "@daily", "busybox"), ExitUsage, "", "a schedule can only be used with replicated-job or global-job mode")
}

func TestRemovalWarnsOfDependents(t *testing.T) {
	c := jobCluster(t)
	c.warn = "service api depends on it"
	want(t, c.run("service", "rm", "-d", "web"), 0, "web\n", "Warning: service api depends on it")
}
