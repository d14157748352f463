package reconcile

import (
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// Every node loses power and comes back: what ran there ended with its node, which is no failure. It is replaced at once,
// and no failure is counted, against the tasks, the update that was under way or the nodes.
func TestAfterAPowerCutNothingWaits(t *testing.T) {
	m := rolling(t, 6, func(*skepv1.UpdateConfig) {})
	m.update("v2")
	m.pass(1e9)
	for _, n := range m.nodes {
		for id, st := range n.seen {
			if TaskState(st.State) == Running {
				n.seen[id] = &skepv1.TaskStatus{TaskId: id, State: skepv1.TaskState(Orphaned), SinceUnixMs: m.now.UnixMilli(), Message: "ended with its node"}
			}
		}
	}
	for id := range m.nodes {
		m.report(id, &skepv1.NodeStatus{NodeId: id, AppliedGeneration: m.s.nodes[id].page.Revision})
	}
	began := m.now
	for range 3 {
		m.plan(1<<30, false)
		m.agents()
	}
	if m.now != began {
		t.Fatal("time passed")
	}
	is(t, len(m.running("v1"))+len(m.running("v2")), "6")
	for _, x := range m.s.services["s"].tasks {
		is(t, x.more().Failures, "0")
	}
	is(t, []any{len(m.s.services["s"].fails), m.status().State}, "[0 updating]")
	m.converge()
	m.stateIs(t, "completed", "update completed", "v2:6")
}
