package scheduler

import (
	"fmt"
	"sync/atomic"
	"testing"

	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

// assassin stops a leader at its n-th commit step: before the write, or after it but before anybody was told.
func assassin(n int64) (func(string) error, *atomic.Bool) {
	var steps atomic.Int64
	var dead atomic.Bool
	return func(at string) error {
		if dead.Load() || steps.Add(1) >= n {
			dead.Store(true)
			return fmt.Errorf("%w: step %d, %s the write", errFailpoint, n, at)
		}
		return nil
	}, &dead
}

// Kill the leader at every commit step of a scale from 1 to 50, an update and a drain, with a standby taking over: no
// slot may ever be given twice, none may be lost, and everything comes to rest.
func TestKillAtEveryStep(t *testing.T) {
	n := kvtest.Server(t)
	f := newFake(t, n, 5)
	round := 0
	for _, job := range []struct {
		name string
		want int
		do   func(id string)
	}{
		{"scale", 50, func(id string) { f.putService(id, 1, service(id, 50, "v1")) }},
		{"update", 12, func(id string) {
			s := service(id, 12, "v2")
			s.Update = &skepv1.UpdateConfig{Parallelism: 4}
			f.putService(id, 2, s)
		}},
		{"update start-first", 12, func(id string) {
			s := service(id, 12, "v2")
			s.Update = &skepv1.UpdateConfig{Parallelism: 3, Order: skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST}
			f.putService(id, 2, s)
		}},
		{"drain", 12, func(string) { f.setNode("node3", skepv1.Availability_AVAILABILITY_DRAIN) }},
		{"node down", 12, func(string) { f.live("node2", skepv1.NodeState_NODE_STATE_DOWN) }},
	} {
		t.Run(job.name, func(t *testing.T) {
			f.t = t
			for step := int64(1); ; step++ {
				round++
				id := fmt.Sprintf("svc%d", round)
				start := uint64(12)
				if job.name == "scale" {
					start = 1
				}
				fp, _ := assassin(1 << 40)
				_, stop := f.start("first"+id, fp)
				f.putService(id, 1, service(id, start, "v1"))
				f.awaitRunning(id, int(start))
				stop()

				fp, dead := assassin(step)
				_, stopVictim := f.start("victim"+id, fp)
				f.awaitLeader("victim" + id)
				_, stopStandby := f.start("standby"+id, nil)
				job.do(id)
				settled := func() error {
					if err := f.duplicates(id); err != nil {
						return err
					}
					run := f.running(id)
					if len(run) != job.want {
						return fmt.Errorf("%d run", len(run))
					}
					for _, r := range run {
						if job.name[:4] == "upda" && r.Revision != 2 {
							return fmt.Errorf("%s is of revision %d", r.Id, r.Revision)
						}
						if job.name == "drain" && r.node == "node3" || job.name == "node down" && r.node == "node2" {
							return fmt.Errorf("%s is still on %s", r.Id, r.node)
						}
					}
					wanted := 0
					for _, r := range f.records(id) {
						if r.Desired <= skepv1.TaskState_TASK_STATE_COMPLETE && !f.dead[r.node] {
							wanted++
						}
					}
					if wanted != job.want {
						return fmt.Errorf("%d wanted", wanted)
					}
					return nil
				}
				f.await(fmt.Sprintf("%s, killed at step %d", job.name, step), settled)
				killed := dead.Load()
				f.removeService(id)
				f.await("nothing left of "+id, func() error {
					for _, r := range f.records(id) {
						if !f.dead[r.node] {
							return fmt.Errorf("%s is left", r.Id)
						}
					}
					return nil
				})
				stopVictim()
				f.setNode("node3", skepv1.Availability_AVAILABILITY_ACTIVE)
				f.live("node2", skepv1.NodeState_NODE_STATE_READY)
				f.await("nothing left anywhere", func() error {
					if k := len(f.records(id)); k > 0 {
						return fmt.Errorf("%d records", k)
					}
					return nil
				})
				stopStandby()
				if !killed {
					t.Logf("%d steps", step-1)
					break
				}
			}
		})
	}
}
