package task

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/restart"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Told says what a manager has stored of the node's tasks. What it knows to have ended is its to replace.
func (s *Set) Told(tasks []*skepv1.TaskStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range tasks {
		w := s.tasks[st.GetTaskId()]
		if w == nil || st.GetState() < skepv1.TaskState_TASK_STATE_COMPLETE {
			continue
		}
		w.mu.Lock()
		news := !w.told
		w.told = true
		w.mu.Unlock()
		if news {
			w.nudge()
		}
	}
}

// again begins a task anew that ended by itself while no manager hears of it: they would have made another in its place, by
// its restart policy, and cannot. It waits until one was told, or for the policy's delay, and for as long as an election may
// take. done says that the task runs again, or that the caller is to look anew; an error is to be tried again.
//
// It stays the same task, with its address, files and volumes; only its root file system is a new one. What must not run
// twice is left to the managers, because to the node it looks the same whether they are gone or have given the task to
// another: work that is done once, tasks of --on-partition stop, and those with a volume that one task alone may have.
func (w *worker) again(ctx context.Context) (done bool, err error) {
	if w.renewing.IsZero() {
		w.renewing = time.Now().Add(w.pause())
	}
	w.mu.Lock()
	mine := !w.told && !w.endingLocked() && w.mayLocked()
	w.mu.Unlock()
	if !mine {
		return false, nil
	}
	if wait := time.Until(w.renewing); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-t.C:
		}
		return true, nil
	}
	rctx, end := w.interruptible(ctx)
	defer end()
	err = w.set.cfg.Runtime.Renew(rctx, w.job())
	switch {
	case err == nil:
	case rctx.Err() != nil:
		return true, nil
	case IsTemporary(err):
		return true, err
	default:
		w.set.cfg.Log.Warn("begin a task anew that ended while no manager was heard", zap.String("task", w.id), zap.Error(err))
		return false, nil
	}
	w.renewing = time.Time{}
	w.renewed()
	return true, nil
}

// pause is how long after a task's end it may begin anew.
func (w *worker) pause() time.Duration {
	return max(w.job().Revision.GetSpec().GetTask().GetRestart().GetDelay().AsDuration(), w.set.cfg.Election)
}

// mayLocked reports whether a task that ended may begin anew without a manager.
func (w *worker) mayLocked() bool {
	s := w.revision.GetSpec()
	st := w.status
	completed := st.State == skepv1.TaskState_TASK_STATE_COMPLETE
	switch {
	case !completed && st.State != skepv1.TaskState_TASK_STATE_FAILED,
		st.ContainerId == "",
		w.record.Desired != skepv1.TaskState_TASK_STATE_RUNNING,
		spec.IsJob(s),
		s.GetOnPartition() == skepv1.PartitionPolicy_PARTITION_POLICY_STOP,
		slices.ContainsFunc(s.GetTask().GetContainer().GetMounts(), spec.MayBeExclusive):
		return false
	}
	// As the planner counts: the first of them is no restart. Those before this process began count as begun when the last did.
	for uint32(len(w.began)) < st.Restarts+1 {
		w.began = append(w.began, st.StartedUnixMs)
	}
	return restart.Of(s).Allows(len(w.began), func(i int) restart.Task {
		return restart.Task{Created: w.began[i], SelfEnded: true, Completed: completed && i == len(w.began)-1}
	}, st.SinceUnixMs)
}

// renewed is the one step back that a status takes: of an end that no manager knows.
func (w *worker) renewed() {
	w.mu.Lock()
	why := w.status.Err
	if why == "" {
		why = "task: it finished"
	}
	w.status = proto.CloneOf(w.status)
	w.status.State = skepv1.TaskState_TASK_STATE_STARTING // setStatus goes on from there
	w.began = append(w.began, time.Now().UnixMilli())
	w.mu.Unlock()
	w.setStatus(func(st *skepv1.TaskStatus) {
		st.Restarts++
		st.SinceUnixMs = time.Now().UnixMilli()
		st.Message = fmt.Sprintf("starting again, while no manager is heard (%s)", why)
		st.Err, st.ExitCode, st.OomKilled = "", nil, false
		st.Health, st.HealthOutput = skepv1.HealthState_HEALTH_STATE_NONE, ""
	})
}
