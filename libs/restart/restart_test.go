package restart

import (
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestAllows(t *testing.T) {
	const (
		none      = skepv1.RestartCondition_RESTART_CONDITION_NONE
		onFailure = skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE
		always    = skepv1.RestartCondition_RESTART_CONDITION_ANY
	)
	failed := func(at int64) Task { return Task{Created: at, Revision: 1, Container: 1, SelfEnded: true} }
	done := Task{Created: 1, Revision: 1, Container: 1, SelfEnded: true, Completed: true}
	lost := Task{Created: 1, Revision: 1, Container: 1}
	other := Task{Created: 1, Revision: 2, Container: 2, SelfEnded: true}
	for _, c := range []struct {
		name  string
		p     Policy
		tasks []Task
		want  bool
	}{
		{"none", Policy{Condition: none}, []Task{failed(1)}, false},
		{"none, and lost", Policy{Condition: none}, []Task{lost}, false},
		{"any, done", Policy{Condition: always}, []Task{done}, true},
		{"on failure, done", Policy{Condition: onFailure}, []Task{done}, false},
		{"any, a job's, done", Policy{Condition: always, Job: true}, []Task{done}, false},
		{"on failure, failed", Policy{Condition: onFailure}, []Task{failed(1)}, true},
		{"attempts left", Policy{Condition: always, Attempts: 2}, []Task{failed(1), failed(5000)}, true},
		{"attempts used up", Policy{Condition: always, Attempts: 2}, []Task{failed(1), failed(5000), failed(9000)}, false},
		{"outside the window", Policy{Condition: always, Attempts: 2, Window: 5000}, []Task{failed(1), failed(5000), failed(9000)}, true},
		{"inside the window", Policy{Condition: always, Attempts: 2, Window: 5001}, []Task{failed(1), failed(5000), failed(9000)}, false},
		{"used up, then lost", Policy{Condition: always, Attempts: 1}, []Task{failed(1), failed(2), lost}, true},
		{"an update is no attempt", Policy{Condition: always, Attempts: 1}, []Task{other, failed(2)}, true},
	} {
		if got := c.p.Allows(len(c.tasks), func(i int) Task { return c.tasks[i] }, 10_000); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
