package cli

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// prunable is a cluster with a node of every kind that has been down.
func prunable(t *testing.T) (*cluster, *[]string) {
	c := newCluster(t)
	withClaims(c)
	c.upkeep.claims = []*skepv1.VolumeClaim{{Driver: "rexray", Name: "data", NodeId: "holder"}}
	add := func(id string, down time.Duration, change func(*skepv1.Node)) {
		n := proto.CloneOf(c.nodes[0])
		n.Meta.Id, n.Description.Hostname = id, "name-"+id
		n.Status = &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_DOWN, SinceUnixMs: testNow.Add(-down).UnixMilli()}
		if change != nil {
			change(n)
		}
		c.nodes = append(c.nodes, n)
	}
	add("old1", 48*time.Hour, nil)
	add("old2", 25*time.Hour, nil)
	add("fresh", time.Hour, nil)
	add("holder", 48*time.Hour, nil)
	add("boss", 48*time.Hour, func(n *skepv1.Node) { n.Manager = &skepv1.ManagerStatus{} })
	add("voter", 48*time.Hour, func(n *skepv1.Node) { n.Witness = true })
	add("wanted", 48*time.Hour, func(n *skepv1.Node) { n.Spec = &skepv1.NodeSpec{Role: manager} }) // it was promoted, and went down
	add("untold", 0, func(n *skepv1.Node) { n.Status.SinceUnixMs = 0 })
	add("back", 48*time.Hour, nil) // between the list and its removal
	var removed []string
	c.on = func(m proto.Message) error {
		if r, is := m.(*skepv1.RemoveNodeRequest); is {
			if r.Force {
				t.Errorf("%s is removed by force", r.Ref)
			}
			if r.Ref == "back" {
				return fault.Invalid("node back is not down and can't be removed")
			}
			removed = append(removed, r.Ref)
		}
		return nil
	}
	return c, &removed
}

// Nodes that were down for long go, after a question; managers, witnesses and who holds a volume never do.
func TestNodePrune(t *testing.T) {
	c, removed := prunable(t)
	kept := []string{"name-boss (boss) stays: it has been down for 48h0m0s, and it is a manager", "skep node rm --force boss", "name-voter (voter) stays", "it is a witness", "name-wanted (wanted) stays",
		"name-holder (holder) stays", "it holds volume data: if it is surely off, skep node rm holder"}
	for line, code := range map[string]int{"node prune --dry-run": 0, "node prune -f --dry-run": 0, "node prune": ExitError} { // nobody says yes
		r := c.run(strings.Fields(line)...)
		if r.code != code || !strings.Contains(r.out, "To be removed:\n  name-back (back), down for 48h0m0s\n  name-old1 (old1), down for 48h0m0s\n  name-old2 (old2), down for 25h0m0s\n") || len(*removed) > 0 {
			t.Errorf("%s: %d, removed %v\n%s%s", line, r.code, *removed, r.out, r.err)
		}
		for _, k := range kept {
			if !strings.Contains(r.err, k) {
				t.Errorf("%s does not say %q:\n%s", line, k, r.err)
			}
		}
	}
	r := c.run("node", "prune", "-f")
	if got := strings.Join(*removed, " "); r.code != 0 || got != "old1 old2" || r.out != "old1\nold2\n" || !strings.Contains(r.err, "node back is not down") {
		t.Errorf("removed %s: %d %s%s", got, r.code, r.out, r.err)
	}
	*removed = nil
	if r := c.run("node", "prune", "-f", "--down-for", "0s"); r.code != 0 || strings.Join(*removed, " ") != "fresh old1 old2" {
		t.Errorf("removed %v: %d %s%s", *removed, r.code, r.out, r.err)
	}
	want(t, c.run("node", "prune", "-f", "--down-for", "999h"), 0, "", "No worker has been down for 999h0m0s or longer.")
	want(t, c.run("node", "prune", "--down-for", "-1s"), ExitUsage, "", "must not be negative")
}

// Whoever cannot be asked who holds volumes keeps every node.
func TestNodePruneWithoutTheClaims(t *testing.T) {
	c, removed := prunable(t)
	on := c.on
	c.on = func(m proto.Message) error {
		if _, is := m.(*skepv1.ListClaimsRequest); is {
			return fault.Denied("no")
		}
		return on(m)
	}
	if r := c.run("node", "prune", "-f"); r.code != 1 || len(*removed) > 0 || !strings.Contains(r.err, "ask which nodes hold volumes") {
		t.Errorf("removed %v: %d %s%s", *removed, r.code, r.out, r.err)
	}
}
