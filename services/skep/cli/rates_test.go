package cli

import (
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// counting makes a node's mesh answer with a port that gets so many connections a second, by the node's own clock.
func counting(c *cluster, node string, perSecond uint64) {
	var asked atomic.Uint64
	onNode(c, api.MeshCounters.At(node), func(*skepv1.MeshCountersRequest) (*skepv1.MeshCountersReply, error) {
		n := asked.Add(1)
		return &skepv1.MeshCountersReply{ReadUnixMs: int64(n) * 2000, Services: []*skepv1.MeshServiceCounter{{ServiceId: webID, Connections: 1000 + n*2*perSecond}}}, nil
	})
}

// publishedCluster is two nodes, a service with a port and one without.
func publishedCluster(t *testing.T) *cluster {
	c := newCluster(t)
	c.secondNode()
	web, plain := webService(), webService()
	web.Endpoint = textOf(t, &skepv1.Endpoint{}, `ports { protocol: "tcp" target_port: 80 published_port: 8080 }`)
	plain.Meta.Id, plain.Spec.Name = "plainplainplainplainplai1", "plain"
	c.services = []*skepv1.Service{web, plain}
	return c
}

func rateOf(t *testing.T, out, service string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^\S+ +` + service + ` .* (\S+) *$`).FindStringSubmatch(out)
	if m == nil || !strings.Contains(out, "CONNS/S") {
		t.Fatalf("no row of %s with CONNS/S in:\n%s", service, out)
	}
	return m[1]
}

func TestTopShowsConnectionRates(t *testing.T) {
	c := publishedCluster(t)
	counting(c, nodeID, 30)
	counting(c, node2, 12)
	r := c.run("top", "--interval", "300ms")
	if got := rateOf(t, r.out, "web"); r.code != 0 || got != "42.0" {
		t.Errorf("web: %s, exit %d\n%s%s", got, r.code, r.out, r.err)
	}
	if got := rateOf(t, r.out, "plain"); got != "-" {
		t.Errorf("a service without ports: %s", got)
	}
	for _, m := range c.calls {
		if _, heavy := m.(*skepv1.MeshStateRequest); heavy {
			t.Error("top asked for a node's whole state")
		}
	}
}

// A node that does not answer leaves its share out, and that is said.
func TestTopWithoutANode(t *testing.T) {
	c := publishedCluster(t)
	counting(c, nodeID, 30)
	r := c.run("top", "--interval", "300ms")
	if got := rateOf(t, r.out, "web"); got != "30.0*" || !strings.Contains(r.out, "* without the connections at w2: no answer from there") {
		t.Errorf("web: %s\n%s%s", got, r.out, r.err)
	}
	// One that is down is not expected to.
	c.nodes[1].Status.State = skepv1.NodeState_NODE_STATE_DOWN
	r = c.run("top", "--interval", "300ms")
	if got := rateOf(t, r.out, "web"); got != "30.0" || strings.Contains(r.out, "without the connections") {
		t.Errorf("web: %s\n%s%s", got, r.out, r.err)
	}
}

func TestTopOfOneWhoMayNotAskNodes(t *testing.T) {
	c := publishedCluster(t)
	for _, n := range []string{nodeID, node2} {
		onNode(c, api.MeshCounters.At(n), func(*skepv1.MeshCountersRequest) (*skepv1.MeshCountersReply, error) {
			return nil, fault.Denied("no")
		})
	}
	r := c.run("top", "--interval", "300ms")
	if got := rateOf(t, r.out, "web"); got != "-" || strings.Contains(r.out, "no answer") {
		t.Errorf("web: %s\n%s%s", got, r.out, r.err)
	}
}

// Rules made anew count from there; a node seen for the first time has no share yet.
func TestRatesAfterAReset(t *testing.T) {
	nodes := []*skepv1.Node{{Meta: &skepv1.Meta{Id: "a"}}, {Meta: &skepv1.Meta{Id: "b"}}}
	at := func(ms int64, count uint64) *skepv1.MeshCountersReply {
		return &skepv1.MeshCountersReply{ReadUnixMs: ms, Services: []*skepv1.MeshServiceCounter{{ServiceId: "s", Connections: count}}}
	}
	r := newRates()
	for i, step := range []struct {
		a, b *skepv1.MeshCountersReply
		want float64
	}{
		{at(1000, 5000), nil, 0},
		{at(2000, 5100), at(7, 9000), 100},
		{at(4000, 40), at(1007, 9010), 20 + 10},
		{at(4000, 80), at(2007, 9010), 0}, // the clock stood still
	} {
		r.take(nodes, []*skepv1.MeshCountersReply{step.a, step.b})
		if got := r.perSec["s"]; got != step.want || r.known != (i > 0) {
			t.Errorf("step %d: %g a second, want %g", i, got, step.want)
		}
	}
}
