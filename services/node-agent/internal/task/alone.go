package task

import (
	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"
)

// Alone says that no manager is heard, why is that in words, or with "" that one is again. While it lasts, tasks of services
// with --on-partition stop end; what has ended stays so until it is told to run anew, as another task.
func (s *Set) Alone(why string) {
	s.mu.Lock()
	was := s.alone
	s.alone = why != ""
	tasks := make([]*worker, 0, len(s.tasks))
	for _, w := range s.tasks {
		tasks = append(tasks, w)
	}
	s.mu.Unlock()
	n := 0
	for _, w := range tasks {
		if w.leaveAlone(why) {
			n++
		}
	}
	if why != "" && !was && n > 0 {
		s.cfg.Log.Warn("no manager is heard: ending tasks of services with --on-partition stop", zap.Int("tasks", n), zap.String("why", why))
	}
}

// StopsAlone reports whether any task that may run is to end while no manager is heard.
func (s *Set) StopsAlone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.tasks {
		w.mu.Lock()
		stops := w.stopsAloneLocked()
		w.mu.Unlock()
		if stops {
			return true
		}
	}
	return false
}

func (w *worker) stopsAloneLocked() bool {
	return w.revision.GetSpec().GetOnPartition() == skepv1.PartitionPolicy_PARTITION_POLICY_STOP && w.status.State < skepv1.TaskState_TASK_STATE_COMPLETE
}

// leaveAlone ends the task if it is one of those, once; what has begun to end goes on to.
func (w *worker) leaveAlone(why string) bool {
	w.mu.Lock()
	if why == "" || w.alone != "" || !w.stopsAloneLocked() {
		w.mu.Unlock()
		return false
	}
	w.alone = why
	abort := w.abort
	w.mu.Unlock()
	if abort != nil {
		abort()
	}
	w.nudge()
	return true
}

// aloneLocked is why the task was ended, "" when it was told to.
func (w *worker) aloneLocked() string {
	if w.record.Desired >= skepv1.TaskState_TASK_STATE_SHUTDOWN || w.gone {
		return ""
	}
	return w.alone
}
