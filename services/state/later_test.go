package state

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/keys"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

// What a later version put into a record survives an update by this one: of the object, and of what is in its spec.
func TestWhatALaterVersionAddsIsKept(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	n, svc := r.admit("w1", worker), r.mustCreate("web", 1)
	later := protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 7)

	read := func(key string, m proto.Message) uint64 {
		t.Helper()
		e, err := r.s.spec.Get(r.ctx(), key)
		if err == nil {
			err = proto.Unmarshal(e.Value, m)
		}
		if err != nil {
			t.Fatal(err)
		}
		return e.Revision
	}
	// add gives a stored message and its spec a field that nobody here knows.
	add := func(key string, m proto.Message) {
		t.Helper()
		rev := read(key, m)
		m.ProtoReflect().SetUnknown(later)
		spec := m.ProtoReflect().Get(m.ProtoReflect().Descriptor().Fields().ByName("spec")).Message().Interface()
		spec.ProtoReflect().SetUnknown(later)
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.s.spec.Update(r.ctx(), key, raw, rev); err != nil {
			t.Fatal(err)
		}
	}
	kept := func(key string, m proto.Message) {
		t.Helper()
		read(key, m)
		spec := m.ProtoReflect().Get(m.ProtoReflect().Descriptor().Fields().ByName("spec")).Message()
		if string(m.ProtoReflect().GetUnknown()) != string(later) || string(spec.GetUnknown()) != string(later) {
			t.Errorf("%s has lost what a later version put there: %v", key, m)
		}
	}
	node, service, cluster := keys.Node.Key(n.Meta.Id), keys.Service.Key(svc.Meta.Id), keys.Cluster.Key()
	add(node, &skepv1.NodeObject{})
	add(service, &skepv1.Service{})
	add(cluster, &skepv1.Cluster{})
	r.caughtUp()

	must[*skepv1.NodeReply](t)(call(r, api.NodeUpdate, &skepv1.UpdateNodeRequest{Ref: "w1", LabelAdd: map[string]string{"a": "b"}}))
	kept(node, &skepv1.NodeObject{})
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "web", Replicas: 3}))
	kept(service, &skepv1.Service{})
	// A client of this version reads the cluster, changes its spec and sends it back.
	c := must[*skepv1.ClusterReply](t)(call(r, api.ClusterInspect, &skepv1.Empty{})).Cluster
	c.Spec.TaskHistoryLimit = 3
	must[*skepv1.ClusterReply](t)(call(r, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Version: c.Meta.Version, Spec: c.Spec}))
	kept(cluster, &skepv1.Cluster{})
}
