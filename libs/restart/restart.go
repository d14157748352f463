// Package restart says whether a restart policy lets another task follow those of a unit: a slot, or a node of a global
// service. The planner decides by it, and whoever tells how a service stands tells by it what was decided. It is pure.
package restart

import skepv1 "skep.dev/proto/skep/v1"

// Policy is what of a restart policy says whether there is another task; when there is one is the planner's affair.
type Policy struct {
	Condition skepv1.RestartCondition
	Attempts  int   // restarts a unit may have, 0 = any number
	Window    int64 // ms: only restarts less than that before the end at hand count, 0 = all
	Job       bool  // work that was done is not done again, whatever the condition
}

// Task is one of a unit.
type Task struct {
	Created   int64  // unix ms
	Revision  uint64 // of the service
	Container uint64 // the same for tasks that run the same container, whatever their revisions
	SelfEnded bool   // it ended by itself, was rejected by its node or ended for its health; it was neither lost nor told to stop
	Completed bool   // it ended well
}

// Allows says whether a task may follow the n ≥ 1 of a unit, oldest first, of which none is meant to run any more. ended
// is when the newest ended, unix ms.
func (p Policy) Allows(n int, task func(i int) Task, ended int64) bool {
	last := task(n - 1)
	switch {
	case p.Condition == skepv1.RestartCondition_RESTART_CONDITION_NONE:
		return false
	case !last.SelfEnded:
		return true
	case last.Completed && (p.Job || p.Condition == skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE):
		return false
	}
	return p.Attempts == 0 || p.Used(n, task, ended) < p.Attempts
}

// Used counts the restarts of the newest task's revision, as Swarm does: those within the window before the end that asks
// for another, one exactly a window ago no more. A task that took over from another spec's was no restart, and neither
// was one that stands in for a task that was lost.
func (p Policy) Used(n int, task func(i int) Task, ended int64) int {
	since := int64(0)
	if p.Window > 0 {
		since = ended - p.Window
	}
	revision, used := task(n-1).Revision, 0
	for i := 1; i < n; i++ {
		t, before := task(i), task(i-1)
		if t.Revision == revision && before.Container == t.Container && before.SelfEnded && t.Created > since {
			used++
		}
	}
	return used
}
