package state

import (
	"testing"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

// Founded anew by one manager, the others are workers, whatever they were on the way to be; nobody else changes.
func TestRefound(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	must[*skepv1.ClusterReply](t)(call(r, api.ClusterInit, &skepv1.InitClusterRequest{CaDigest: "d"}))
	admit := func(role skepv1.NodeRole) string {
		n := id.New()
		must[*skepv1.NodeReply](t)(call(r, api.NodeAdmit, &skepv1.AdmitNodeRequest{NodeId: n, Hostname: n, Role: role}))
		return n
	}
	const manager, worker = skepv1.NodeRole_NODE_ROLE_MANAGER, skepv1.NodeRole_NODE_ROLE_WORKER
	me, lost, turned, other := admit(manager), admit(manager), admit(manager), admit(worker)
	_, err := call(r, api.ClusterRefound, &skepv1.RefoundRequest{NodeId: id.New(), Epoch: 2})
	if !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("by a node that is not there: %v", err)
	}
	// One of the lost was on its way out.
	down := worker
	must[*skepv1.NodeReply](t)(call(r, api.NodeUpdate, &skepv1.UpdateNodeRequest{Ref: turned, Role: &down}))
	versions := map[string]uint64{}
	for range 2 {
		must[*skepv1.Empty](t)(call(r, api.ClusterRefound, &skepv1.RefoundRequest{NodeId: me, Epoch: 2}))
		for n, want := range map[string]skepv1.NodeRole{me: manager, lost: worker, turned: worker, other: worker} {
			got := must[*skepv1.NodeReply](t)(call(r, api.NodeInspect, &skepv1.Ref{Ref: n})).Node
			if got.Role != want || got.Spec.Role != want {
				t.Errorf("node %s is certified %s and is to be %s, want %s", n, got.Role, got.Spec.Role, want)
			}
			if was := versions[n]; was != 0 && was != got.Meta.Version {
				t.Errorf("node %s changed once more", n)
			}
			versions[n] = got.Meta.Version
		}
	}
}
