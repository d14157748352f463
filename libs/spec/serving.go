package spec

import skepv1 "skep.dev/proto/skep/v1"

// Serves reports whether clients may be led to a task: it runs, its health check, if it has one, says that it is well, and
// nothing says that it is not ready.
func Serves(st *skepv1.TaskStatus) bool {
	if st.GetState() != skepv1.TaskState_TASK_STATE_RUNNING || st.GetNotReady() {
		return false
	}
	switch st.GetHealth() {
	case skepv1.HealthState_HEALTH_STATE_STARTING, skepv1.HealthState_HEALTH_STATE_UNHEALTHY:
		return false
	}
	return true
}

// Begins reports whether a task runs and has never served: what it is to replace may not go yet, and Swarm would call it
// starting. One that served and is not well now does not begin again.
func Begins(st *skepv1.TaskStatus) bool {
	return st.GetState() == skepv1.TaskState_TASK_STATE_RUNNING && st.GetServedUnixMs() == 0 && !Serves(st)
}
