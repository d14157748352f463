package cli

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// managersCluster has nodes m1 (a manager), w1 and w2, and a group that changes as a test says.
func managersCluster(t *testing.T) (*cluster, *skepv1.ManagerSet) {
	c := newCluster(t)
	c.nodes = nil
	for _, name := range []string{"m1", "w1", "w2"} {
		c.nodes = append(c.nodes, &skepv1.Node{
			Meta: &skepv1.Meta{Id: "id" + name}, Spec: &skepv1.NodeSpec{}, Description: &skepv1.NodeDescription{Hostname: name}, Status: &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY}})
	}
	m := c.nodes[0]
	m.Role, m.Spec.Role, m.Manager = manager, manager, &skepv1.ManagerStatus{Leader: true, Reachability: "reachable", State: "voter"}
	set := &skepv1.ManagerSet{Managers: []*skepv1.Manager{{NodeId: "idm1", Hostname: "m1"}, {NodeId: "idw1", Hostname: "w1"}}}
	serve(c, c.rs, api.ManagerList, func(*skepv1.Empty) (*skepv1.ListManagersReply, error) {
		return &skepv1.ListManagersReply{Set: set}, nil
	})
	c.flush()
	return c, set
}

// onLook runs f at each inspection of a node, under the cluster's lock.
func (c *cluster) onLook(f func(n int)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	looks := 0
	c.on = func(r proto.Message) error {
		if _, is := r.(*skepv1.Ref); is {
			looks++
			f(looks)
		}
		return nil
	}
}

func TestPromoteWaits(t *testing.T) {
	c, set := managersCluster(t)
	w1 := c.nodes[1]
	c.onLook(func(n int) {
		switch n {
		case 2: // after the update, which made it a voter at once
			w1.Manager = &skepv1.ManagerStatus{Reachability: "unknown", State: "joining"}
		case 3:
			set.Step = &skepv1.ManagerStep{Action: "join", NodeId: "idw1", WaitsFor: "its store is 12 messages behind"}
		case 4:
			set.Step, w1.Manager = nil, &skepv1.ManagerStatus{Reachability: "reachable", State: "voter"}
		}
	})
	r := c.run("node", "promote", "w1")
	want(t, r, 0, "Node w1 promoted to a manager in the swarm.\n", "")
	lines := []string{
		"w1: it restarts as a manager and asks to be let in\n",
		"w1: join w1, waits: its store is 12 messages behind\n",
		"Warning: two managers are no safer than one",
	}
	rest := r.err
	for _, l := range lines {
		_, after, found := strings.Cut(rest, l)
		if !found {
			t.Errorf("no %q in order in\n%s", l, r.err)
		}
		rest = after
	}
	c.mu.Lock()
	c.on = nil
	c.mu.Unlock()
	want(t, c.run("node", "promote", "w1"), 0, "Node w1 is already a manager.\n", "")
	r = c.run("node", "promote", "-q", "w2")
	if r.code != 0 || r.err != "" {
		t.Errorf("to three managers: %+v", r)
	}
	r = c.run("node", "demote", "-q", "w2", "w1")
	want(t, r, 0, "Manager w2 demoted in the swarm.\nManager w1 demoted in the swarm.\n", "")
	want(t, c.run("node", "demote", "w1"), 0, "Node w1 is already a worker.\n", "")
}

func TestRoleChangesThatDoNotEnd(t *testing.T) {
	c, set := managersCluster(t)
	w1 := c.nodes[1]
	stay := func(int) {
		w1.Manager = &skepv1.ManagerStatus{Reachability: "unknown", State: "joining"}
		if w1.Spec.Role == worker {
			w1.Manager = nil
		}
	}
	change := func(f func()) {
		c.mu.Lock()
		defer c.mu.Unlock()
		f()
	}
	c.onLook(stay)
	change(func() { w1.Status.State = skepv1.NodeState_NODE_STATE_DOWN })
	r := c.run("node", "promote", "--timeout", "700ms", "w1")
	want(t, r, 4, "", "node w1 is no manager after 700ms: it is down, and becomes a manager when it is back\nThe change goes on without this command")
	change(func() {
		w1.Status.State = skepv1.NodeState_NODE_STATE_READY
		set.Step = &skepv1.ManagerStep{Action: "join", NodeId: "idw1", WaitsFor: "w1 does not reach 10.0.0.1:6222"}
	})
	want(t, c.run("node", "ls"), 0, "w1", "The managers are changing: join w1, waits: w1 does not reach 10.0.0.1:6222\n")
	if r := c.run("node", "ls", "--json"); r.err != "" {
		t.Errorf("beside JSON: %s", r.err)
	}

	// Somebody else changes their mind.
	change(func() { w1.Spec.Role, w1.Role = worker, worker })
	c.onLook(func(n int) {
		if n == 3 {
			w1.Spec.Role = worker
		}
		if n >= 2 {
			w1.Manager = &skepv1.ManagerStatus{State: "joining", Reachability: "unknown"}
		}
	})
	want(t, c.run("node", "promote", "w1"), 1, "", "node w1 was made a worker again meanwhile")

	// -d waits for nothing.
	change(func() { w1.Spec.Role, w1.Role = worker, worker })
	c.onLook(stay)
	began := time.Now()
	want(t, c.run("node", "promote", "-d", "w1"), 0, "Node w1 promoted to a manager in the swarm.\n", "")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("-d took %s", took)
	}

	// A refusal is told as it is.
	change(func() {
		c.on = func(r proto.Message) error {
			if _, is := r.(*skepv1.UpdateNodeRequest); is {
				return fault.Invalid("attempting to demote the last manager of the swarm")
			}
			return nil
		}
	})
	want(t, c.run("node", "demote", "m1"), 1, "", "attempting to demote the last manager of the swarm")
}

// roleStep without a group, as an older version has it, waits for nothing.
func TestRoleStepWithoutGroup(t *testing.T) {
	n := &skepv1.Node{Spec: &skepv1.NodeSpec{Role: manager}, Role: manager, Manager: &skepv1.ManagerStatus{Reachability: "reachable"}}
	if _, done, err := roleStep(n, nil, manager); !done || err != nil {
		t.Errorf("promoted: %v, %v", done, err)
	}
	n.Spec.Role = worker
	if _, done, err := roleStep(n, nil, worker); !done || err != nil {
		t.Errorf("demoted: %v, %v", done, err)
	}
	n.Manager.State = "leaving"
	if line, done, err := roleStep(n, nil, worker); done || err != nil || line == "" {
		t.Errorf("on its way: %q, %v, %v", line, done, err)
	}
}
