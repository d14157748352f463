package cli

import (
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// A second machine with a node's identity is told of beside the list of nodes.
func TestNodeListTellsOfASecondMachine(t *testing.T) {
	c := newCluster(t)
	c.nodes[0].Duplicate = &skepv1.NodeDuplicate{Hostname: "w1", Addr: "10.0.0.1", SecondHostname: "w1-old", SecondAddr: "10.0.0.7"}
	want(t, c.run("node", "ls"), 0, "w1", "node w1: two machines run as this node: w1 at 10.0.0.1, and w1-old at 10.0.0.7, which is refused; run `skep leave --force`")
	if r := c.run("node", "ls", "-q"); r.err != "" {
		t.Errorf("%+v", r)
	}
	c.nodes[0].Duplicate = nil
	if r := c.run("node", "ls"); r.err != "" {
		t.Errorf("%+v", r)
	}
}
