package reconcile

import (
	"hash/fnv"
	"math"

	skepv1 "skep.dev/proto/skep/v1"
)

// A unit whose tasks keep failing waits longer each time. History is trimmed to a few tasks a unit, so the length of the
// row is carried from record to record: a task says how many failed in a row before it was made.

const (
	// patientFailures in a row are restarted after the plain delay.
	patientFailures = 5
	// leastGrowing is what doubles where the delay is shorter: a delay of 0 would never grow.
	leastGrowing = 100
	// jitterPart of a grown delay is left to the jitter, so that tasks that failed together do not come back together.
	jitterPart = 10
	// lastingRun is how long a task must have run, at least, for its end to begin a new row.
	lastingRun = 10 * 60 * 1000
)

// longest is the longest a task of the service is ever held back for.
func (r *restartPolicy) longest() int64 { return max(r.delay, r.maxDelay) }

// wait is how long a unit waits after the failure of the task with that id, the n-th in a row: the delay, from the
// failure after patience on twice as long each time up to maxDelay, less a jitter that depends on the id alone.
func (r *restartPolicy) wait(id string, n, patience uint32) int64 {
	if n <= patience || r.maxDelay <= r.delay {
		return r.delay
	}
	d := max(r.delay, leastGrowing)
	for range n - patience {
		if d *= 2; d >= r.maxDelay {
			d = r.maxDelay
			break
		}
	}
	h := fnv.New32a()
	h.Write([]byte(id)) //nolint:errcheck // a hash takes everything
	return max(r.delay, d-d*int64(h.Sum32()>>16)/(jitterPart<<16))
}

// failures is how many tasks of a unit have failed in a row when last, its newest, has ended. One that completed ends
// the row; one that ran for long begins it anew, and needs no more exact clock than that; one that was lost, or moved,
// is no failure and forgives none.
func (p *planner) failures(last *Task) uint32 {
	n := last.more().Failures
	if p.ranFor(last) >= max(lastingRun, 2*p.v.restart.maxDelay) {
		n = 0
	}
	switch {
	case !last.selfEnded():
		return n
	case last.State() == Complete:
		return 0
	}
	return n + 1
}

// ranFor is how long a task ran, or has run so far, in ms.
func (p *planner) ranFor(t *Task) int64 {
	if t.Seen != Running {
		return int64(t.ran)
	}
	// It runs, was lost or moved, or was ended for its health: no agent says how long it ran.
	end := p.now
	if t.VerdictAt > 0 {
		end = t.VerdictAt
	}
	return end - t.SeenAt
}

// inherit gives a new task of a unit what the ones before it leave it.
func (p *planner) inherit(u *unit, t *Task) {
	if len(u.tasks) == 0 {
		return
	}
	if last := u.tasks[len(u.tasks)-1]; last.runs(t.Revision) {
		if n := p.failures(last); n > 0 {
			t.edit().Failures = n
		}
	}
	if p.s.downForHealth(u.tasks) {
		t.edit().ForHealth = true
	}
}

// remember keeps of a report what these rules ask for; was and since are what the report before it said.
func (t *Task) remember(r *skepv1.TaskStatus, was TaskState, since int64) {
	if t.Seen == Running && r.GetHealth() != skepv1.HealthState_HEALTH_STATE_UNHEALTHY {
		t.served = true
	}
	if t.Seen <= Running || was > Running {
		return
	}
	began := r.GetStartedUnixMs()
	if began == 0 && was == Running {
		began = since
	}
	if began > 0 && t.SeenAt > began {
		t.ran = uint32(min(t.SeenAt-began, math.MaxUint32))
	}
}
