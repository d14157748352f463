// Package job tells how the runs of a job stand. It is pure.
package job

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"skep.dev/libs/restart"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// State of a run.
type State string

// The states.
const (
	Running   State = "running"
	Completed State = "completed"
	Failed    State = "failed"  // some of its tasks failed and its restart policy lets nothing replace them
	Stopped   State = "stopped" // ended before its time, by an update or by the run after it
)

// Over: nothing more will happen.
func (s State) Over() bool { return s != Running }

// Run is how one run of a job stands.
type Run struct {
	Control   *skepv1.RunControl // its number, when it was due and when it began
	State     State
	Completed uint64  // units (slots, or nodes of a global job) that ended well
	Wanted    uint64  // units in all; of a global job those that have a task
	Failed    uint64  // tasks that failed, those that were replaced too, as far as they are kept
	GivenUp   uint64  // units that failed for good
	ExitCodes []int32 // those of tasks that failed, each once, ascending
	Ended     time.Time
}

// Runs are the runs of a job that are kept, newest first.
func Runs(v *skepv1.Service, tasks []*skepv1.Task) []Run {
	var out []Run
	if v.GetRun() != nil {
		c := &skepv1.RunControl{Due: v.Run.Due, Started: v.Run.Started, Iteration: v.JobIteration, Skipped: v.Run.Skipped}
		out = append(out, Judge(v, c, tasks))
	}
	for i := len(v.GetRuns()) - 1; i >= 0; i-- {
		out = append(out, Judge(v, v.Runs[i], tasks))
	}
	return out
}

// Judge looks at the tasks of one run; those of others may be among them.
func Judge(v *skepv1.Service, c *skepv1.RunControl, tasks []*skepv1.Task) Run {
	units := map[string][]*skepv1.Task{}
	for _, t := range tasks {
		if t.GetJobIteration() == c.GetIteration() && t.Desired != skepv1.TaskState_TASK_STATE_REMOVE {
			k := t.NodeId
			if t.Slot > 0 {
				k = strconv.FormatUint(t.Slot, 10)
			}
			units[k] = append(units[k], t)
		}
	}
	r := Run{Control: c, Wanted: uint64(len(units))}
	if n, ok := spec.Replicas(v.GetSpec()); ok {
		r.Wanted = n
	}
	live := uint64(0)
	codes := map[int32]bool{}
	for _, u := range units {
		slices.SortFunc(u, func(a, b *skepv1.Task) int {
			return a.GetMeta().GetCreatedAt().AsTime().Compare(b.GetMeta().GetCreatedAt().AsTime())
		})
		done := false
		for _, t := range u {
			s := t.GetStatus()
			done = done || s.GetState() == skepv1.TaskState_TASK_STATE_COMPLETE
			if s.GetState() > skepv1.TaskState_TASK_STATE_RUNNING {
				if at := time.UnixMilli(s.GetSinceUnixMs()); at.After(r.Ended) {
					r.Ended = at
				}
			}
			if s.GetState() == skepv1.TaskState_TASK_STATE_FAILED || s.GetState() == skepv1.TaskState_TASK_STATE_REJECTED {
				r.Failed++
				if s.ExitCode != nil {
					codes[*s.ExitCode] = true
				}
			}
		}
		switch last := u[len(u)-1]; {
		case done:
			r.Completed++
		case last.GetStatus().GetState() <= skepv1.TaskState_TASK_STATE_RUNNING && last.Desired <= skepv1.TaskState_TASK_STATE_COMPLETE:
			live++
		case last.Slot == 0 && told(last):
			r.Wanted-- // its node was drained, removed, or is not meant for the job any more
		case restart.GivenUp(v.GetSpec(), u):
			r.GivenUp++
		}
	}
	for code := range codes {
		r.ExitCodes = append(r.ExitCodes, code)
	}
	slices.SortFunc(r.ExitCodes, cmp.Compare[int32])
	switch {
	case r.Completed >= r.Wanted && r.Wanted > 0 || r.Wanted == 0 && spec.Mode(v.GetSpec()) == "replicated-job":
		r.State = Completed
	case c.GetStopped():
		r.State = Stopped
	case live == 0 && r.GivenUp > 0 && r.Completed+r.GivenUp >= r.Wanted:
		r.State = Failed
	default:
		r.State = Running
	}
	if !r.State.Over() {
		r.Ended = time.Time{}
	}
	return r
}

// told: it did not end by itself.
func told(t *skepv1.Task) bool {
	switch s := t.GetStatus().GetState(); s {
	case skepv1.TaskState_TASK_STATE_COMPLETE, skepv1.TaskState_TASK_STATE_FAILED, skepv1.TaskState_TASK_STATE_REJECTED:
		return false
	}
	return true
}
