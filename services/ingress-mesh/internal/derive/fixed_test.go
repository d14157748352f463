package derive

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

// fixedService writes a revision of a service whose task has addresses of its own on network net.
func (c *cluster) fixedService(id string, revision uint64, v4, v6 string) {
	spec := &skepv1.ServiceSpec{Name: "svc-" + id, Task: &skepv1.TaskSpec{Networks: []*skepv1.NetworkAttachment{{Target: "net", Ipv4Address: v4, Ipv6Address: v6}}}}
	c.must(c.p.PutRevision(fmt.Sprintf("service.%s.%d", id, revision), enc(c.t, &skepv1.Revision{Spec: spec})))
	c.must(c.p.PutSpec("service."+id, enc(c.t, &skepv1.Service{Spec: spec, Revision: revision})))
}

// has gives a node one task of a service in a state, with its addresses on network net.
func (c *cluster) has(node, task, service string, state skepv1.TaskState, v4, v6 string) {
	c.must(c.p.PutTasks(node, enc(c.t, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{{Id: task, ServiceId: service, Slot: 1, Revision: 1, Desired: running}}})))
	st := &skepv1.TaskStatus{TaskId: task, State: state}
	if v4 != "" {
		st.Networks = []*skepv1.NetworkAddress{{NetworkId: "net", Addr: v4 + "/24", Addr6: v6 + "/64"}}
	}
	c.must(c.p.PutStatus(node, enc(c.t, &skepv1.NodeStatus{Tasks: []*skepv1.TaskStatus{st}})))
}

func (c *cluster) down(node string, down bool) {
	state := skepv1.NodeState_NODE_STATE_READY
	if down {
		state = skepv1.NodeState_NODE_STATE_DOWN
	}
	c.must(c.p.PutNode("live."+node, enc(c.t, &skepv1.NodeLive{State: state})))
}

// lease asks for single addresses of net as a node does.
func (c *cluster) leaseSingle(node string, addrs ...string) error {
	c.t.Helper()
	x, _, err := c.p.Lease(node, &skepv1.LeaseBlockRequest{NodeId: node, NetworkId: "net", Addresses: addrs})
	if x != nil {
		c.written(*x)
	}
	return err
}

// settle plans and commits until nothing is left to look at: what one node leaves another may have.
func (c *cluster) settle() {
	c.t.Helper()
	for range 5 {
		changes, problems := c.p.Plan(nil)
		if len(problems) > 0 {
			c.t.Fatal(problems)
		}
		for _, x := range changes {
			c.written(x)
		}
		if !c.p.Dirty() {
			return
		}
	}
	c.t.Fatal("dirty after five plans")
}

func (c *cluster) at(node string) string {
	var out []string
	eps := c.get(keys.Endpoint.Key("net", node)).GetEndpoints()
	for _, e := range eps.GetEndpoints() {
		out = append(out, strings.TrimSpace(e.TaskId+" "+e.Addr+" "+e.Addr6))
	}
	return fmt.Sprint(eps.GetAddresses(), out)
}

func TestAnAddressOfItsOwnGoesWithTheTask(t *testing.T) {
	const v4, v6 = "10.9.0.5", "fd00:9::15"
	c := newCluster(t)
	for i, n := range []string{"n1", "n2", "n3"} {
		c.node(n, uint32(i+1))
	}
	c.network("net", "10.9.0.0/24", "fd00:9::/64")
	c.fixedService("s", 1, v4, v6)
	c.service("other", 1, nil, "net")
	c.settle()
	if r := c.p.Info("net").GetReserved(); !slices.Equal(r, []string{v4, v6}) {
		t.Fatalf("nodes are told of %v", r)
	}
	refused := func(node string, code fault.Code, word string, addrs ...string) {
		t.Helper()
		if err := c.leaseSingle(node, addrs...); !fault.Is(err, code) || !strings.Contains(err.Error(), word) {
			t.Errorf("%s asks for %v: %v", node, addrs, err)
		}
	}
	refused("n1", fault.CodeDenied, "no task", v4) // it has none, nor does the scheduler say so
	c.has("n1", "t1", "s", prep, "", "")
	refused("n1", fault.CodeDenied, "no task", "10.9.0.6")
	c.must(c.leaseSingle("n1", v4, v6))
	c.has("n1", "t1", "s", running, v4, v6)
	c.settle()
	if got := c.at("n1"); got != "[10.9.0.5 fd00:9::15] [t1 10.9.0.5 fd00:9::15]" {
		t.Errorf("on n1: %s", got)
	}
	// Another node's task of the service waits; other tasks and other nodes cannot speak as it.
	c.has("n2", "t2", "s", prep, v4, v6)
	refused("n2", fault.CodeConflict, "host-n1", v4, v6)
	c.has("n3", "t3", "other", running, v4, v6)
	c.settle()
	if got := c.at("n2") + c.at("n3"); strings.Contains(got, v4) {
		t.Errorf("somebody else has the address: %s", got)
	}
	// It has ended: the next one gets it.
	c.has("n1", "t1", "s", shutdown, v4, v6)
	c.settle()
	if got := c.at("n1"); strings.Contains(got, v4) {
		t.Errorf("of a task that ended: %s", got)
	}
	c.must(c.leaseSingle("n2", v4, v6))
	c.has("n2", "t2", "s", running, v4, v6)
	c.settle()
	if got := c.at("n2"); got != "[10.9.0.5 fd00:9::15] [t2 10.9.0.5 fd00:9::15]" {
		t.Errorf("on n2: %s", got)
	}
	// Its node is down: it is free. It was down for a moment, and nobody took it: it has it again.
	c.down("n2", true)
	c.settle()
	if got := c.at("n2"); strings.Contains(got, v4) {
		t.Errorf("of a node that is down: %s", got)
	}
	c.has("n3", "t3", "other", prep, "", "")
	c.settle()
	if found := Audit(c.p.Evidence()); len(found) > 0 {
		t.Errorf("what is as it should be is a finding: %v", found)
	}
	c.down("n2", false)
	c.settle()
	if got := c.at("n2"); !strings.Contains(got, "t2 "+v4) {
		t.Errorf("of a node that is up again: %s", got)
	}
	// Somebody took it: it has not.
	c.down("n2", true)
	c.settle()
	c.has("n1", "t4", "s", prep, "", "")
	c.must(c.leaseSingle("n1", v4, v6))
	c.down("n2", false)
	c.settle()
	if got := c.at("n2"); strings.Contains(got, v4) {
		t.Errorf("two nodes have it: %s and %s", c.at("n1"), got)
	}
	if found := Audit(c.p.Evidence()); slices.ContainsFunc(found, func(s string) bool { return strings.Contains(s, "leased to node") }) {
		t.Error(found)
	}
}

// A task got the address by chance, before a service named it: it keeps it, and the service's task waits.
func TestAnAddressOfItsOwnThatIsInUse(t *testing.T) {
	c := newCluster(t)
	c.node("n1", 1)
	c.node("n2", 2)
	c.network("net", "10.9.0.0/24")
	c.service("other", 1, nil, "net")
	c.has("n1", "t1", "other", prep, "", "")
	x, block, err := c.p.Lease("n1", &skepv1.LeaseBlockRequest{NodeId: "n1", NetworkId: "net", WantBlock: true})
	c.must(err)
	c.written(*x)
	c.has("n1", "t1", "other", running, "10.9.0.2", "")
	c.settle()
	c.fixedService("s", 1, "10.9.0.2", "")
	c.has("n2", "t2", "s", prep, "", "")
	c.settle()
	if err := c.leaseSingle("n2", "10.9.0.2"); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "task t1 on node host-n1") {
		t.Errorf("an address in use: %v (block %s)", err, block)
	}
	if got := c.at("n1"); got != "[] [t1 10.9.0.2]" {
		t.Errorf("the task that had it: %s", got)
	}
	c.has("n1", "t1", "other", running, "10.9.0.3", "")
	c.settle()
	blocker, told, err := c.p.Blocker("n2", &skepv1.LeaseBlockRequest{NodeId: "n2", NetworkId: "net", Addresses: []string{"10.9.0.2"}})
	if err != nil || blocker != "n1" || len(told) != 1 {
		t.Errorf("who must leave it alone: %q %v %v", blocker, told, err)
	}
	c.must(c.leaseSingle("n2", "10.9.0.2"))
	// A liar that has the block says it is its task's all the same.
	c.has("n1", "t1", "other", running, "10.9.0.2", "")
	c.has("n2", "t2", "s", running, "10.9.0.2", "")
	c.settle()
	if got := c.at("n1") + c.at("n2"); got != "[] [][10.9.0.2] [t2 10.9.0.2]" {
		t.Errorf("who has it: %s", got)
	}
}
