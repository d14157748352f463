package reconcile

import (
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// What has never served has replaced nothing; what has, goes on running whatever its checks say, also for a leader that
// sees its status for the first time.
func TestWhatHasNotServedIsStarting(t *testing.T) {
	const run, starting, well, ill = skepv1.TaskState_TASK_STATE_RUNNING, skepv1.HealthState_HEALTH_STATE_STARTING, skepv1.HealthState_HEALTH_STATE_HEALTHY, skepv1.HealthState_HEALTH_STATE_UNHEALTHY
	for _, c := range []struct {
		st   *skepv1.TaskStatus
		want TaskState
	}{
		{&skepv1.TaskStatus{State: run}, Running},
		{&skepv1.TaskStatus{State: run, Health: starting}, Starting},
		{&skepv1.TaskStatus{State: run, Health: well}, Running},
		{&skepv1.TaskStatus{State: run, NotReady: true}, Starting},
		{&skepv1.TaskStatus{State: run, Health: well, NotReady: true}, Starting},
		{&skepv1.TaskStatus{State: run, Health: ill}, Starting},
		{&skepv1.TaskStatus{State: run, Health: ill, ServedUnixMs: 1}, Running},
		{&skepv1.TaskStatus{State: run, NotReady: true, ServedUnixMs: 1}, Running},
		{&skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_FAILED, Health: starting}, Failed},
		{&skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_READY, NotReady: true}, Ready},
	} {
		if got := observed(c.st, Ready); got != c.want {
			t.Errorf("%v is seen as %v, want %v", c.st, got, c.want)
		}
	}
}
