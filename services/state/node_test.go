package state

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	worker  = skepv1.NodeRole_NODE_ROLE_WORKER
	manager = skepv1.NodeRole_NODE_ROLE_MANAGER
	ready   = skepv1.NodeState_NODE_STATE_READY
	down    = skepv1.NodeState_NODE_STATE_DOWN
)

func TestCluster(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	_, err := call(r, api.ClusterInspect, &skepv1.Empty{})
	wantErr(t, err, "there is no cluster yet: run skep init first")
	_, err = call(r, api.NodeAdmit, &skepv1.AdmitNodeRequest{NodeId: id.New()})
	wantErr(t, err, "there is no cluster yet: run skep init first")

	cid := id.New()
	init := &skepv1.InitClusterRequest{ClusterId: cid, CaDigest: "d"}
	for range 2 { // the same init again is no error: its answer may have been lost
		c := must[*skepv1.ClusterReply](t)(call(r, api.ClusterInit, init)).Cluster
		if c.Meta.Id != cid || c.Spec.TaskHistoryLimit != 5 || c.Spec.NodeSubnetPool != "100.64.0.0/10" {
			t.Fatalf("cluster %v", c)
		}
	}
	_, err = call(r, api.ClusterInit, &skepv1.InitClusterRequest{ClusterId: id.New(), CaDigest: "d"})
	wantErr(t, err, "the cluster is initialised already, its id is "+cid)

	c := must[*skepv1.ClusterReply](t)(call(r, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Spec: &skepv1.ClusterSpec{TaskHistoryLimit: 2}})).Cluster
	if c.Spec.TaskHistoryLimit != 2 || c.Spec.HeartbeatPeriod.AsDuration().Seconds() != 1 {
		t.Fatalf("updated %v", c)
	}
	_, err = call(r, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Spec: &skepv1.ClusterSpec{SubnetSize: 26}})
	wantErr(t, err, "address pools, subnet sizes and the data path port cannot be changed after skep init: nodes and networks are built on them")
	_, err = call(r, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Version: 1, Spec: &skepv1.ClusterSpec{}})
	wantErr(t, err, "update out of sequence")
}

func TestNodes(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	m1 := r.admit("m1", manager)
	w1 := r.admit("w1", worker)
	if m1.Number != 1 || m1.Subnet != "100.64.0.0/23" || w1.Number != 2 || w1.Subnet != "100.64.2.0/23" || w1.Description.Hostname != "w1" {
		t.Fatalf("admitted %v %v", m1, w1)
	}
	again := must[*skepv1.NodeReply](t)(call(r, api.NodeAdmit, &skepv1.AdmitNodeRequest{NodeId: w1.Meta.Id})).Node
	if again.Number != 2 || again.Meta.Version != w1.Meta.Version {
		t.Fatalf("admitted twice %v", again)
	}
	if m1.Manager == nil || m1.Manager.Reachability != "reachable" || !m1.Manager.Leader || w1.Manager != nil {
		t.Fatalf("manager status %v %v", m1.Manager, w1.Manager)
	}
	r.putLive(m1.Meta.Id, ready)
	r.putLive(w1.Meta.Id, ready)

	update := func(u *skepv1.UpdateNodeRequest) (*skepv1.Node, error) {
		reply, err := call(r, api.NodeUpdate, u)
		return reply.GetNode(), err
	}
	n := must[*skepv1.Node](t)(update(&skepv1.UpdateNodeRequest{Ref: "W1", Availability: skepv1.Availability_AVAILABILITY_DRAIN.Enum(), LabelAdd: map[string]string{"env": "test"}}))
	if n.Spec.Availability != skepv1.Availability_AVAILABILITY_DRAIN || n.Spec.Labels["env"] != "test" {
		t.Fatalf("updated %v", n)
	}
	_, err := update(&skepv1.UpdateNodeRequest{Ref: "w1", Version: w1.Meta.Version, LabelAdd: map[string]string{"a": "b"}})
	wantErr(t, err, "update out of sequence")
	_, err = update(&skepv1.UpdateNodeRequest{Ref: "w1", LabelRm: []string{"nope"}})
	wantErr(t, err, "key nope doesn't exist in node's labels: it has env")
	_, err = update(&skepv1.UpdateNodeRequest{Ref: "w1", LabelAdd: map[string]string{"a!": "x"}})
	wantErr(t, err, "label 'a!': no constraint could match it: use letters, digits and - _ . / : @")
	_, err = update(&skepv1.UpdateNodeRequest{Ref: "w1", LabelAdd: map[string]string{"a": "x\ny"}})
	wantErr(t, err, `label 'a': no constraint could match its value: "x\ny" holds characters that are not printed`)
	_, err = update(&skepv1.UpdateNodeRequest{Ref: "m1", Role: worker.Enum()})
	wantErr(t, err, "attempting to demote the last manager of the swarm")
	must[*skepv1.Node](t)(update(&skepv1.UpdateNodeRequest{Ref: "w1", Role: manager.Enum()}))
	must[*skepv1.Node](t)(update(&skepv1.UpdateNodeRequest{Ref: "w1", Role: worker.Enum()}))
	must[*skepv1.NodeReply](t)(call(r, api.NodeSettle, &skepv1.SettleNodeRequest{NodeId: w1.Meta.Id}))

	list := func(f ...*skepv1.Filter) []string {
		t.Helper()
		var out []string
		for _, n := range must[*skepv1.ListNodesReply](t)(call(r, api.NodeList, &skepv1.ListNodesRequest{Filters: f})).Nodes {
			out = append(out, n.Description.Hostname)
		}
		slices.Sort(out)
		return out
	}
	if got := list(&skepv1.Filter{Key: "node.label", Values: []string{"env=test"}}, &skepv1.Filter{Key: "role", Values: []string{"worker"}}); fmt.Sprint(got) != "[w1]" {
		t.Fatalf("listed %v", got)
	}
	_, err = call(r, api.NodeList, &skepv1.ListNodesRequest{Filters: []*skepv1.Filter{{Key: "color"}}})
	wantErr(t, err, "invalid filter 'color': use availability, id, label, membership, name, node.label, role, status")

	for _, x := range []struct{ key, value, want string }{
		{"status", "Ready", "[m1 w1]"}, {"status", "down", "[]"}, {"status", "sick", "[]"}, {"availability", "drain", "[w1]"}, {"availability", "active", "[m1]"}, {"availability", "pause", "[]"},
	} {
		if got := list(&skepv1.Filter{Key: x.key, Values: []string{x.value}}); fmt.Sprint(got) != x.want {
			t.Errorf("%s=%s: %v, want %s", x.key, x.value, got, x.want)
		}
	}
	for key, use := range map[string]string{"status": "use ready, sick, down, unknown, disconnected", "availability": "use active, pause, drain"} {
		_, err = call(r, api.NodeList, &skepv1.ListNodesRequest{Filters: []*skepv1.Filter{{Key: key, Values: []string{"nope"}}}})
		wantErr(t, err, fmt.Sprintf("invalid value 'nope' of filter '%s': %s", key, use))
	}
	sick := &skepv1.Node{Status: &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY}, Description: &skepv1.NodeDescription{Trouble: "containerd hangs"}}
	if got := spec.NodeStatus(sick); got != "sick" {
		t.Errorf("a node whose containerd hangs is %s", got)
	}

	rm := func(ref string, force bool) error {
		_, err := call(r, api.NodeRemove, &skepv1.RemoveNodeRequest{Ref: ref, Force: force})
		return err
	}
	wantErr(t, rm("w1", false), fmt.Sprintf("node %s is not down and can't be removed: skep leave there first, or skep node rm --force %s, which ends its tasks", w1.Meta.Id, w1.Meta.Id))
	wantErr(t, rm("m1", true), fmt.Sprintf("node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", m1.Meta.Id))
	r.putLive(w1.Meta.Id, down)
	if err := rm("w1", false); err != nil {
		t.Fatal(err)
	}
	wantErr(t, rm("w1", false), "no such node: w1; did you mean m1?")
	_, err = r.report(w1.Meta.Id, &skepv1.NodeStatus{Report: 1})
	wantErr(t, err, fmt.Sprintf("node %s is not part of this cluster (it may have been removed)", w1.Meta.Id))
	if fault.Of(err) != fault.CodeNotFound {
		t.Fatalf("code %s", fault.Of(err))
	}
	// Its number is free again.
	if n := r.admit("w2", worker); n.Number != 2 {
		t.Fatalf("number %d", n.Number)
	}
}

func TestSameHostNameTwice(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	// The first one is down when the second, perhaps the same machine set up anew, takes its name.
	r.putLive(r.admit("w", worker).Meta.Id, skepv1.NodeState_NODE_STATE_DOWN)
	r.admit("w", worker)
	_, err := call(r, api.NodeInspect, &skepv1.Ref{Ref: "w"})
	wantErr(t, err, "node w is ambiguous (2 matches found): 2 nodes have that name, use an id")
}

func TestAgentEndpoints(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	n := r.admit("w1", worker)
	r.admit("m1", manager)
	svc, other := r.mustCreate("web", 2), r.mustCreate("other", 1)
	nid := n.Meta.Id

	d := must[*skepv1.DescribeReply](t)(call(r, api.StateDescribe.At(nid), &skepv1.DescribeRequest{
		NodeId: nid, Description: &skepv1.NodeDescription{Hostname: "w1", Addr: "10.1.1.2", Resources: &skepv1.Resources{NanoCpus: 2e9}}}))
	if d.Node.GetNumber() != n.Number || d.Cluster == nil || fmt.Sprint(d.ManagerAddrs) != "[10.1.1.1:2377]" {
		t.Fatalf("described %v", d)
	}
	_, err := call(r, api.StateDescribe.At("nobody"), &skepv1.DescribeRequest{})
	wantErr(t, err, "node nobody is not part of this cluster (it may have been removed)")
	_, err = call(r, api.StateDescribe.At(nid), &skepv1.DescribeRequest{NodeId: "other"})
	wantErr(t, err, fmt.Sprintf("node %s cannot speak for node other", nid))

	snap := func() *skepv1.SnapshotReply {
		t.Helper()
		return must[*skepv1.SnapshotReply](t)(call(r, api.StateSnapshot.At(nid), &skepv1.SnapshotRequest{}))
	}
	if s := snap(); s.Generation != 0 || len(s.Tasks.Tasks) != 0 || s.Node == nil {
		t.Fatalf("empty snapshot %v", s)
	}
	// A large set is spread over several keys; the newest of them is the generation.
	r.putTasks(nid, &skepv1.TaskRecord{Id: id.New(), ServiceId: svc.Meta.Id, Slot: 1, Revision: 1, Desired: skepv1.TaskState_TASK_STATE_RUNNING})
	gen := r.putTasks(nid+".1", &skepv1.TaskRecord{Id: id.New(), ServiceId: svc.Meta.Id, Slot: 2, Revision: 1, Desired: skepv1.TaskState_TASK_STATE_RUNNING})
	if s := snap(); s.Generation != gen || len(s.Tasks.Tasks) != 2 {
		t.Fatalf("snapshot %v, generation %d", s, gen)
	}
	specs := must[*skepv1.SpecsReply](t)(call(r, api.StateSpecs.At(nid), &skepv1.SpecsRequest{
		Keys: []*skepv1.RevisionKey{{ServiceId: svc.Meta.Id, Revision: 1}, {ServiceId: other.Meta.Id, Revision: 1}}}))
	if len(specs.Revisions) != 1 || specs.Revisions[0].ServiceId != svc.Meta.Id || !proto.Equal(specs.Revisions[0].Spec, svc.Spec) {
		t.Fatalf("specs %v", specs)
	}
}

// A snapshot is not older than the question: an instance whose picture stands still, as after a restart of the broker,
// gives none rather than an old one.
func TestSnapshotIsNotOld(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	svc := r.mustCreate("web", 2)
	nid := r.admit("w1", skepv1.NodeRole_NODE_ROLE_WORKER).Meta.Id
	snap := func() (*skepv1.SnapshotReply, error) {
		return call(r, api.StateSnapshot.At(nid), &skepv1.SnapshotRequest{})
	}
	rec := func(slot uint64) *skepv1.TaskRecord {
		return &skepv1.TaskRecord{Id: id.New(), ServiceId: svc.Meta.Id, Slot: slot, Revision: 1, Desired: skepv1.TaskState_TASK_STATE_RUNNING}
	}
	write := func(slot uint64) uint64 {
		t.Helper()
		body, err := proto.Marshal(&skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{rec(slot)}})
		if err != nil {
			t.Fatal(err)
		}
		return must[uint64](t)(kv.Open(r.s.js, subject.Task).Put(r.ctx(), nid, body))
	}
	for slot := range uint64(200) { // asked the moment it is written
		gen := write(slot + 1)
		if s := must[*skepv1.SnapshotReply](t)(snap()); s.Generation != gen {
			t.Fatalf("a snapshot of generation %d after %d was written", s.Generation, gen)
		}
	}
	r.s.feeds.Of(subject.Task).Close()
	write(1000)
	_, err := snap()
	if !fault.Is(err, fault.CodeUnavailable) {
		t.Errorf("an instance that hears of no task any more says %v", err)
	}
}
