package reconcile

import (
	"strings"
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// Two at a time: the first of them runs for a moment, the next is prepared meanwhile, and then the first fails. The update
// pauses and nothing more goes down for it, whether the failure and the preparation are told together or one after the other.
func TestNothingGoesDownForAPausedUpdate(t *testing.T) {
	for name, c := range map[string]struct {
		action   skepv1.FailureAction
		together bool
		end      string
	}{
		"told together":       {pauseOnFailure, true, "v1:4 v2:1"},
		"one after the other": {pauseOnFailure, false, "v1:4 v2:1"},
		"rolled back":         {rollbackOnFailure, true, "v1:6"},
	} {
		t.Run(name, func(t *testing.T) {
			m := rolling(t, 6, func(u *skepv1.UpdateConfig) { u.Parallelism, u.FailureAction = 2, c.action })
			m.update("v2")
			next := func() *Task { // prepared and held, of a third unit
				for _, x := range m.s.services["s"].tasks {
					if x.Revision == 2 && x.Desired == Ready && len(m.newest("v2")) > 0 {
						return x
					}
				}
				return nil
			}
			for range 20 {
				m.plan(1<<30, false)
				if next() != nil {
					break
				}
				m.agents()
				m.now = m.now.Add(10 * time.Millisecond)
			}
			third, first := next(), m.newest("v2")[0]
			if third == nil {
				m.dump()
				t.Fatal("no third unit was begun")
			}
			end := func() {
				seen := m.nodes[first.Node().ID].seen[first.ID]
				seen.State, seen.SinceUnixMs = skepv1.TaskState(Failed), m.now.UnixMilli()
				m.report(first.Node().ID, &skepv1.NodeStatus{NodeId: first.Node().ID, AppliedGeneration: first.Node().page.Revision})
			}
			if c.together {
				m.agents()
				end()
			} else {
				end()
				m.plan(1<<30, false)
			}
			for range 10 {
				m.plan(1<<30, false)
				if up := len(m.running("v1")) + len(m.running("v2")); up < 4 {
					m.dump()
					t.Fatalf("%d of 6 run after an update of 2 at a time failed", up)
				}
				m.agents()
				for _, r := range m.rollbacks {
					m.rollback(r)
				}
				m.rollbacks = nil
				m.now = m.now.Add(10 * time.Millisecond)
			}
			m.pass(30 * time.Second)
			if c.action == pauseOnFailure {
				if st := m.status(); st.State != "paused" || !strings.HasPrefix(st.Message, "update paused due to") {
					t.Errorf("%v", st)
				}
				if len(m.running("v1")) < 4 {
					m.dump()
					t.Errorf("%s in the end", m.serving())
				}
				m.control("s", func(c *skepv1.RolloutControl) { c.Resume++ })
				m.pass(30 * time.Second)
				m.stateIs(t, "completed", "update completed", "v2:6")
				return
			}
			m.stateIs(t, "rollback_completed", "rollback completed", "v1:6")
		})
	}
}

// newest are the tasks of an image that run.
func (m *sim) newest(image string) (out []*Task) {
	for _, x := range m.s.services["s"].tasks {
		if m.image(x) == image && x.wanted() && x.State() == Running {
			out = append(out, x)
		}
	}
	return out
}
