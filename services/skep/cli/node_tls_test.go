package cli

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// What node ls says of certificates is true: Ready only where the vault and the node say so.
func TestTLSStatus(t *testing.T) {
	c := newCluster(t)
	c.secondNode()
	for i, left := range []time.Duration{time.Hour, time.Hour, -time.Hour, 0} {
		if i > 1 {
			n := proto.CloneOf(c.nodes[0])
			n.Meta.Id, n.Description.Hostname = fmt.Sprintf("node%d", i), fmt.Sprintf("w%d", i+1)
			c.nodes = append(c.nodes, n)
		}
		if c.nodes[i].Description.CertUntilUnixMs = testNow.Add(left).UnixMilli(); left == 0 {
			c.nodes[i].Description.CertUntilUnixMs = 0 // an older version, which does not say
		}
	}
	waits := []*skepv1.CAWaiting{{NodeId: node2}}
	for name, x := range map[string]struct {
		ca   *skepv1.CAReply
		want string
	}{
		"no rotation":          {&skepv1.CAReply{}, "w1=Ready\nw2=Ready\nw3=Needs Rotation\nw4=Unknown\n"},
		"it has begun":         {&skepv1.CAReply{Rotation: &skepv1.CARotation{}}, "w1=Unknown\nw2=Unknown\nw3=Needs Rotation\nw4=Unknown\n"},
		"it waits for one":     {&skepv1.CAReply{Rotation: &skepv1.CARotation{}, Progress: &skepv1.CAProgress{Nodes: 4, Moved: 3, Waiting: waits}}, "w1=Ready\nw2=Needs Rotation\nw3=Needs Rotation\nw4=Unknown\n"},
		"it waits for several": {&skepv1.CAReply{Rotation: &skepv1.CARotation{}, Progress: &skepv1.CAProgress{Nodes: 4, Moved: 1, Waiting: waits}}, "w1=Unknown\nw2=Needs Rotation\nw3=Needs Rotation\nw4=Unknown\n"},
	} {
		c.roots = []*skepv1.CAReply{x.ca}
		if r := c.run("node", "ls", "--format", "{{.Hostname}}={{.TLSStatus}}"); r.code != 0 || r.out != x.want {
			t.Errorf("%s: %d %s%s", name, r.code, r.out, r.err)
		}
	}
	c.roots = []*skepv1.CAReply{{}}
	want(t, c.run("node", "ls", "--format", "json"), 0, `"TLSStatus":"Needs Rotation"`, "")
	asked := false
	c.on = func(m proto.Message) error {
		if _, is := m.(*skepv1.Empty); is {
			asked = true
			return fault.Denied("no")
		}
		return nil
	}
	want(t, c.run("node", "ls", "--format", "{{.Hostname}}={{.TLSStatus}}"), 0, "w1=Unknown\nw2=Unknown\nw3=Needs Rotation\nw4=Unknown\n", "is not known")
	if !asked {
		t.Error("the vault was not asked")
	}
}
