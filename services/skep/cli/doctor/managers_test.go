package doctor

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"
)

// three makes managers of all nodes of a healthy cluster, in a group that is as it should be.
func three(t *testing.T) *Picture {
	p := healthy(t)
	set := &skepv1.ManagerSet{Replicas: 3}
	for i, n := range p.After.Nodes {
		n.Spec = &skepv1.NodeSpec{Role: skepv1.NodeRole_NODE_ROLE_MANAGER, Labels: map[string]string{}}
		n.Manager = &skepv1.ManagerStatus{Leader: i == 0, Reachability: "reachable", Version: "0.1.0", State: "voter", Server: n.Meta.Id + "-1"}
		set.Managers = append(set.Managers, &skepv1.Manager{NodeId: n.Meta.Id, Server: n.Meta.Id + "-1"})
	}
	p.Before = p.After
	p.Group = &skepv1.ListManagersReply{Set: set}
	for _, s := range p.Stores[0].State.Streams {
		s.Leader = "id-m1-1"
		s.Replicas = []*skepv1.StreamReplica{{Name: "id-w1-1", Current: true}, {Name: "id-w2-1", Current: true}}
	}
	return p
}

func TestManagers(t *testing.T) {
	zone := func(p *Picture, zones ...string) {
		for i, z := range zones {
			p.After.Nodes[i].Spec.Labels["zone"] = z
		}
	}
	for name, x := range map[string]struct {
		spoil func(p *Picture)
		want  []string // beginnings of the lines that are not OK
	}{
		"three": {func(*Picture) {}, nil},
		"one is lost": {func(p *Picture) { p.After.Nodes[2].Manager.Reachability = "unreachable" }, []string{
			"error manager w2: the other managers do not reach it: bring it back, or, if it is lost, remove it with `skep node rm --force w2`"}},
		"one is about to go": {func(p *Picture) { p.After.Nodes[2].Spec.Role = skepv1.NodeRole_NODE_ROLE_WORKER }, []string{"warning managers: two managers are no safer than one"}},
		"three zones":        {func(p *Picture) { zone(p, "a", "b", "c") }, nil},
		"a witness is a third": {func(p *Picture) {
			n := p.After.Nodes[2]
			n.Witness, n.Manager.Witness, n.Number, n.Subnet = true, true, 0, ""
		}, nil},
		"witnesses and one manager": {func(p *Picture) { p.After.Nodes[1].Witness, p.After.Nodes[2].Witness = true, true }, []string{
			"warning managers: one manager serves beside 2 witnesses (w1, w2): witnesses only vote, so the cluster is lost with that one machine. Add a manager"}},
		"some zones":        {func(p *Picture) { zone(p, "a") }, nil},
		"one zone has most": {func(p *Picture) { zone(p, "a", "b", "a") }, []string{"warning managers: zone a has 2 of 3 managers (m1, w2): if it fails, nothing can be changed until it is back"}},
		"a change gets on": {func(p *Picture) {
			p.Group.Set.Step = &skepv1.ManagerStep{Action: "join", NodeId: "id-w2", Since: timestamppb.New(testNow.Add(-50 * time.Second))}
		}, nil},
		"a change that does not": {func(p *Picture) {
			p.Group.Set.Step = &skepv1.ManagerStep{Action: "join", NodeId: "id-w2", Since: timestamppb.New(testNow.Add(-3 * time.Minute)), WaitsFor: "its store is 1,200 messages behind"}
		}, []string{"warning managers: a change waits for 3m0s (join w2): its store is 1,200 messages behind. Other changes"}},
		"different versions": {func(p *Picture) { p.After.Nodes[1].Manager.Version = "0.2.0" }, []string{"warning managers: they run different versions of skep, 0.1.0 on m1, w2; 0.2.0 on w1: finish the upgrade"}},
		"few copies": {func(p *Picture) {
			for _, s := range p.Stores[0].State.Streams {
				s.Replicas = nil
			}
		}, []string{`warning streams: 2 have fewer copies than the 3 that the managers are to keep: KV_spec (1), KV_task (1). Look for "scale"`}},
		"few copies while they are made": {func(p *Picture) {
			p.Stores[0].State.Streams[0].Replicas = nil
			p.Group.Set.Step = &skepv1.ManagerStep{Action: "scale", Since: timestamppb.New(testNow)}
		}, nil},
		"a copy that is behind": {func(p *Picture) {
			p.Stores[0].State.Streams[0].Replicas[1] = &skepv1.StreamReplica{Name: "id-w2-1", Lag: 7}
		}, []string{"warning stream KV_spec: not every manager has all of it: w2 (7 messages behind)"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := three(t)
			x.spoil(p)
			got := lines(Examine(*p), OK)
			ok := len(got) == len(x.want)
			for i := 0; ok && i < len(got); i++ {
				ok = strings.HasPrefix(got[i], x.want[i])
			}
			if !ok {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), fmt.Sprint(x.want))
			}
		})
	}
}
