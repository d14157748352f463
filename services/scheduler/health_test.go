package scheduler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

// What all replicas depend on breaks: a quarter is ended for its health and replaced at a time, also by the leader after
// the one that began it, and once it is repaired all serve.
func TestEveryReplicaUnhealthy(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 3)
	a, _ := f.start("a", nil)
	f.awaitLeader("a")
	spec := service("web", 8, "v1")
	spec.Task.Restart = &skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_ANY, Delay: dur(20 * time.Millisecond), MaxDelay: dur(100 * time.Millisecond)}
	f.putService("svc1", 1, spec)
	f.awaitRunning("svc1", 8)
	f.start("b", nil)

	ended := map[string]bool{}
	few := 8
	look := func() {
		for _, r := range f.records("svc1") {
			if strings.HasPrefix(r.Err, "unhealthy container") {
				ended[r.Id] = true
				if r.Err != "unhealthy container: connection refused" || r.Desired != skepv1.TaskState_TASK_STATE_SHUTDOWN || r.Verdict != skepv1.TaskState_TASK_STATE_FAILED {
					t.Errorf("%v", r)
				}
			}
		}
		few = min(few, len(f.running("svc1")))
	}
	until := func(n int) {
		t.Helper()
		f.await(fmt.Sprintf("%d tasks were ended for their health", n), func() error {
			if look(); len(ended) < n {
				return fmt.Errorf("%d were", len(ended))
			}
			return f.duplicates("svc1")
		})
	}
	f.probes("trying\nconnection refused\n")
	until(6)
	f.await("the others say what they wait for", func() error {
		look()
		for _, r := range f.running("svc1") {
			if r.Err == "unhealthy, not replaced: 2 of at most 2 replaced for health now" {
				return nil
			}
		}
		return fmt.Errorf("none does")
	})
	a.cfg.NC.Close() // as a crash
	f.awaitLeader("b")
	until(len(ended) + 6)
	if few < 6 {
		t.Errorf("only %d of 8 ran at some time", few)
	}
	f.probes("")
	f.awaitRunning("svc1", 8)
}

// A crash loop survives a change of leader: the row of failures is in the records.
func TestRowOfFailuresSurvivesTheLeader(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 1)
	f.fails = func(string, *skepv1.TaskRecord) bool { return true }
	a, _ := f.start("a", nil)
	f.awaitLeader("a")
	spec := service("web", 1, "v1")
	spec.Task.Restart = &skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_ANY, Delay: dur(10 * time.Millisecond), MaxDelay: dur(2 * time.Second)}
	f.putService("svc1", 1, spec)
	row := func() (most uint32) {
		for _, r := range f.records("svc1") {
			most = max(most, r.Failures)
		}
		return most
	}
	reach := func(n uint32) {
		t.Helper()
		f.await(fmt.Sprintf("%d failures in a row", n), func() error {
			if k := row(); k < n {
				return fmt.Errorf("%d so far", k)
			}
			return nil
		})
	}
	reach(7)
	f.start("b", nil)
	a.cfg.NC.Close()
	f.awaitLeader("b")
	begin := time.Now()
	f.mu.Lock()
	from := row()
	f.mu.Unlock()
	reach(from + 3)
	if from < 7 || time.Since(begin) < 500*time.Millisecond {
		t.Errorf("from %d failures on, three took %s", from, time.Since(begin))
	}
}
