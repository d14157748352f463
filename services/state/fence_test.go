package state

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// putClaim plays the scheduler; nil ends the claim.
func (r *rig) putClaim(c *skepv1.VolumeClaim, end bool) {
	r.t.Helper()
	key := keys.ClaimKey(c.Driver, c.Name)
	b := kv.Open(r.s.js, subject.Task)
	if end {
		if err := b.Delete(r.ctx(), key, 0); err != nil {
			r.t.Fatal(err)
		}
		return
	}
	body, err := proto.Marshal(c)
	if err != nil {
		r.t.Fatal(err)
	}
	rev, err := b.Put(r.ctx(), key, body)
	if err == nil {
		err = r.s.feeds.Of(subject.Task).Wait(r.ctx(), rev)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) fence(q *skepv1.FenceNodeRequest) (*skepv1.Node, error) {
	reply, err := call(r, api.NodeFence, q)
	return reply.GetNode(), err
}

// A fence is for nodes that are not up, and stands until the node is back and acts on what was decided since.
func TestFence(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	w := r.admit("w1", worker)
	id := w.Meta.Id
	r.putLive(id, ready)
	_, err := r.fence(&skepv1.FenceNodeRequest{Ref: "w1"})
	wantErr(t, err, "fence node w1: it is up and may be writing. Cut its power or its storage first and wait until node ls shows it down; to move its tasks while it works, use skep node update --availability drain w1")
	r.putLive(id, skepv1.NodeState_NODE_STATE_UNKNOWN)
	_, err = r.fence(&skepv1.FenceNodeRequest{Ref: "w1", ByCommand: true})
	wantErr(t, err, "fence node w1: only the managers' own services say that the fencing command did it")
	r.putLive(id, down)
	for range 2 { // again, it is no error
		n := must[*skepv1.Node](t)(r.fence(&skepv1.FenceNodeRequest{Ref: "w1"}))
		if n.Fence == nil || n.Fence.Author == "" || n.Fence.ByCommand {
			t.Fatalf("fenced %v", n.Fence)
		}
	}
	if n := must[*skepv1.Node](t)(r.fence(&skepv1.FenceNodeRequest{Ref: "w1", Undo: true})); n.Fence != nil {
		t.Fatalf("undone %v", n.Fence)
	}
	claim := &skepv1.VolumeClaim{Driver: "rexray", Name: "data", NodeId: id}
	r.putClaim(claim, false)
	must[*skepv1.Node](t)(r.fence(&skepv1.FenceNodeRequest{Ref: "w1"}))
	gen := r.putTasks(id, &skepv1.TaskRecord{Id: "t1", ServiceId: "s1"})
	if _, err := r.report(id, &skepv1.NodeStatus{NodeId: id, Session: "a", Report: 1, AppliedGeneration: gen - 1, Volumes: []*skepv1.HeldVolume{{Driver: "rexray", Name: "data"}}}); err != nil {
		t.Fatal(err)
	}
	fenced := func() bool {
		return must[*skepv1.NodeReply](t)(call(r, api.NodeInspect, &skepv1.Ref{Ref: "w1"})).Node.Fence != nil
	}
	stays := func(why string) {
		t.Helper()
		if r.s.mayReturn(id) || !fenced() {
			t.Fatalf("the fence ended although %s", why)
		}
	}
	stays("the node is down")
	r.putLive(id, ready)
	stays("a claim names it, and it acts on an old task set")
	claim.NodeId = "another"
	r.putClaim(claim, false)
	stays("it acts on an old task set")
	if _, err := r.report(id, &skepv1.NodeStatus{NodeId: id, Session: "a", Report: 2, AppliedGeneration: gen, Volumes: []*skepv1.HeldVolume{{Driver: "rexray:latest", Name: "data"}}}); err != nil {
		t.Fatal(err)
	}
	stays("it holds what another has now")
	// The same tasks and generation, and the volume is gone: that is news.
	if _, err := r.report(id, &skepv1.NodeStatus{NodeId: id, Session: "a", Report: 3, AppliedGeneration: gen}); err != nil {
		t.Fatal(err)
	}
	await(t, "the fence to end", func() bool { return !fenced() })
}

// What more tasks than one would write is refused, or said.
func TestVolumesWithOneWriter(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	w := r.admit("w1", worker)
	if _, err := call(r, api.StateDescribe.At(w.Meta.Id), &skepv1.DescribeRequest{NodeId: w.Meta.Id, Description: &skepv1.NodeDescription{
		Hostname: "w1", Plugins: []*skepv1.Plugin{{Type: "Volume", Name: "rexray", Scope: "global"}, {Type: "Volume", Name: "near", Scope: "local"}},
	}}); err != nil {
		t.Fatal(err)
	}
	await(t, "the plug-in", func() bool { return r.s.ix.GlobalVolumes("rexray") })
	mounted := func(name string, replicas uint64, m *skepv1.Mount) *skepv1.ServiceSpec {
		sp := webSpec(name, replicas)
		m.Target = "/data"
		sp.Task.Container.Mounts = []*skepv1.Mount{m}
		return sp
	}
	none := func(source string) *skepv1.Mount {
		return &skepv1.Mount{VolumeDriver: "rexray", Source: source, VolumeSharing: "none"}
	}
	_, err := r.create(mounted("a", 2, none("data")))
	wantErr(t, err, "volume rexray/data is for one task (volume-sharing=none), and the service would have 2: give each a volume of its own with {{.Task.Slot}} in its name, or let the tasks of one node share it with volume-sharing=onewriter")
	must[*skepv1.ServiceReply](t)(r.create(mounted("slots", 2, none("data-{{.Task.Slot}}"))))
	_, err = r.create(mounted("costly", 1, none(`{{.Task.Slot|printf}}`)))
	wantErr(t, err, `volume rexray/{{.Task.Slot|printf}}: template "{{.Task.Slot|printf}}": only fields ({{.Task.Slot}}), labels ({{index .Service.Labels "x"}}) and join may stand in the name of a volume`)
	must[*skepv1.ServiceReply](t)(r.create(mounted("one", 1, none("data"))))
	_, err = call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "one", Replicas: 2})
	wantErr(t, err, "volume rexray/data is for one task (volume-sharing=none), and the service would have 2: give each a volume of its own with {{.Task.Slot}} in its name, or let the tasks of one node share it with volume-sharing=onewriter")

	first := mounted("db", 2, &skepv1.Mount{VolumeDriver: "rexray", Source: "db"})
	first.Update = &skepv1.UpdateConfig{Parallelism: 1, Order: skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST}
	reply := must[*skepv1.ServiceReply](t)(r.create(first))
	if len(reply.Warnings) == 0 || reply.Warnings[len(reply.Warnings)-1] != "volume rexray/db has one writer: tasks are updated stop-first, whatever the update order says" {
		t.Errorf("warnings %q", reply.Warnings)
	}
	next := proto.CloneOf(first)
	next.Task.Container.Env = []string{"A=1"}
	_, err = call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "db", Spec: next, Canary: 1})
	wantErr(t, err, "volume rexray/db has one writer, so tasks of two revisions cannot run beside one another: update without --canary, or give each task a volume of its own with {{.Task.Slot}} in its name")

	for name, m := range map[string]*skepv1.Mount{
		"near": {VolumeDriver: "near", Source: "x"}, "local": {Source: "x"}, "read": {VolumeDriver: "rexray", Source: "x", ReadOnly: true}, "all": {VolumeDriver: "rexray", Source: "x", VolumeSharing: "all"},
	} {
		sp := mounted(name, 3, m)
		sp.Update = first.Update
		if w := must[*skepv1.ServiceReply](t)(r.create(sp)).Warnings; len(w) > 0 && w[len(w)-1] != "" && len(r.s.single(sp)) > 0 {
			t.Errorf("%s: %q", name, w)
		}
	}
}
