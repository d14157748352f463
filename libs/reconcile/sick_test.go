package reconcile

import (
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// A node that can begin no tasks gets none; what it prepares goes elsewhere, also when it cannot say that it has let go;
// what it runs goes on.
func TestASickNode(t *testing.T) {
	m := cluster(t, 2)
	m.service("s", func(*skepv1.ServiceSpec) {})
	m.converge()
	runs := m.one(t, "s", (*Task).wanted)
	at, other := runs.Node().ID, "n1"
	if at == other {
		other = "n2"
	}
	// A second service's tasks stand in preparing there: the runtime hangs.
	m.nodes[at].hangs = true
	m.service("p", func(s *skepv1.ServiceSpec) { setReplicas(s, 4) })
	for range 4 {
		m.plan(99, false)
		m.agents()
	}
	stuck := 0
	for _, x := range m.s.services["p"].tasks {
		if x.wanted() && x.Node().ID == at {
			stuck++
		}
	}
	if stuck == 0 {
		t.Fatal("nothing was placed on the node that hangs")
	}
	m.nodes[at].desc.Trouble = "containerd does not answer"
	m.putNode(at)
	m.converge()
	n := 0
	for _, x := range m.s.services["p"].tasks {
		if !x.wanted() {
			continue
		}
		if n++; x.Node() == nil || x.Node().ID != other || x.Seen != Running {
			m.dump()
			t.Fatalf("%s is %s on %v", x.ID, x.State(), x.Node())
		}
	}
	if n != 4 || !runs.wanted() || runs.Seen != Running {
		t.Errorf("%d tasks, and the one that ran is %s", n, runs.State())
	}
	m.service("late", func(*skepv1.ServiceSpec) {})
	m.converge()
	if x := m.one(t, "late", (*Task).wanted); x.Node().ID != other {
		t.Errorf("a new task went to the sick node")
	}
	if why := m.s.Placing(m.s.services["late"], m.now); !strings.Contains(why.Summary+why.String(), at) {
		t.Errorf("explained as %v", why)
	}
	m.nodes[at].desc.Trouble, m.nodes[at].hangs = "", false
	m.putNode(at)
	m.service("p", func(s *skepv1.ServiceSpec) { setReplicas(s, 9) })
	m.converge()
	back := false
	for _, x := range m.s.services["p"].tasks {
		back = back || x.wanted() && x.Node().ID == at
	}
	if !back {
		t.Error("the node is well, and gets nothing")
	}
}
