package cli

import (
	"regexp"
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestNodeListTellsOfABlockedDataPath(t *testing.T) {
	c := newCluster(t)
	c.secondNode()
	if r := c.run("node", "ls"); r.code != 0 || strings.Contains(r.out, "DATA PATH") {
		t.Errorf("all is well: %d\n%s", r.code, r.out)
	}
	want(t, c.run("node", "ls", "--format", "json"), 0, `"DataPath":"ok"`, "")
	c.nodes[0].Status.Blocked = []*skepv1.BlockedPeer{{NodeId: node2, Hostname: "w2"}, {NodeId: "x", Hostname: "m1"}}
	c.nodes[0].Status.BlockedMore = 4
	r := c.run("node", "ls")
	if !regexp.MustCompile(`ENGINE VERSION +DATA PATH\n`).MatchString(r.out) || !strings.Contains(r.out, "blocked: w2, m1 and 4 more\n") || !regexp.MustCompile(`(?m)w2 .*\bok$`).MatchString(r.out) {
		t.Errorf("%s", r.out)
	}
	want(t, c.run("node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.DataPath}}"), 0, "w1 Ready blocked: w2, m1 and 4 more\nw2 Ready ok\n", "")
	want(t, c.run("node", "ls", "--json"), 0, `"hostname": "m1"`, "")
	want(t, c.run("node", "ls", "--json"), 0, `"data_path": "blocked: w2, m1 and 4 more"`, "")
	want(t, c.run("node", "ls", "--json"), 0, `"data_path": "ok"`, "")
	want(t, c.run("node", "inspect", "--format", "{{.Status.State}}: {{.Status.Message}}", "w1"), 0, "ready: data path blocked: w2, m1 and 4 more\n", "")
	c.nodes[0].Status.State = skepv1.NodeState_NODE_STATE_DOWN
	want(t, c.run("node", "ls", "--format", "{{.Hostname}}={{.DataPath}}"), 0, "w1=\nw2=ok\n", "")
}
