package state

import (
	"strings"
	"testing"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	skepv1 "skep.dev/proto/skep/v1"
)

func (r *rig) admitWitness(hostname string) *skepv1.Node {
	r.t.Helper()
	return must[*skepv1.NodeReply](r.t)(call(r, api.NodeAdmit, &skepv1.AdmitNodeRequest{
		NodeId: id.New(), Hostname: hostname, Role: manager, Addr: "10.1.1.1", Witness: true, Availability: skepv1.Availability_AVAILABILITY_ACTIVE})).Node
}

// A witness is a manager that never takes tasks: it has no number and no subnet, and its availability stays drain.
func TestWitness(t *testing.T) {
	r := newManagers(t)
	m1 := r.admit("m1", manager)
	v := r.admitWitness("v1")
	w := r.admit("w1", worker)
	if v.Number != 0 || v.Subnet != "" || !v.Witness || !v.GetManager().GetWitness() || v.Spec.Availability != skepv1.Availability_AVAILABILITY_DRAIN || w.Number != 2 {
		t.Errorf("admitted: %v; the next node has number %d", v, w.Number)
	}
	if _, err := call(r.rig, api.NodeAdmit, &skepv1.AdmitNodeRequest{NodeId: id.New(), Hostname: "v2", Role: worker, Witness: true}); !fault.Is(err, fault.CodeInvalid) {
		t.Errorf("a worker as a witness: %v", err)
	}
	for n, as := range map[*skepv1.Node]bool{v: false, m1: true} {
		if _, err := call(r.rig, api.NodeAdmit, &skepv1.AdmitNodeRequest{NodeId: n.Meta.Id, Hostname: "x", Role: manager, Witness: as}); !fault.Is(err, fault.CodeConflict) {
			t.Errorf("%s turns into something else: %v", n.Description.Hostname, err)
		}
	}

	active, pause := skepv1.Availability_AVAILABILITY_ACTIVE, skepv1.Availability_AVAILABILITY_PAUSE
	for what, req := range map[string]*skepv1.UpdateNodeRequest{
		"active": {Ref: "v1", Availability: &active}, "pause": {Ref: "v1", Availability: &pause},
		"a whole spec": {Ref: "v1", Spec: &skepv1.NodeSpec{Role: manager}},
	} {
		if _, err := call(r.rig, api.NodeUpdate, req); err == nil || !strings.Contains(err.Error(), "node v1 is a witness: it has nothing to run tasks with") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := must[*skepv1.NodeReply](t)(call(r.rig, api.NodeUpdate, &skepv1.UpdateNodeRequest{Ref: "v1", LabelAdd: map[string]string{"zone": "c"}})).Node; n.Spec.Labels["zone"] != "c" {
		t.Errorf("its zone: %v", n.Spec)
	}

	// The last manager does not go while only a witness would stay; the witness may, and may come back.
	r.group(m1, v)
	r.beat(m1, v)
	_, err := r.role("m1", worker)
	wantErr(t, err, lastManager+": only witnesses would stay, which have no services")
	if n, err := r.role("v1", worker); err != nil || n.Role != manager {
		t.Fatalf("demoted: %v %v", n, err)
	}
	r.group(m1)
	n, err := r.settle(v)
	if err != nil || n.Role != worker || !n.Witness || n.Manager != nil || n.Spec.Availability != skepv1.Availability_AVAILABILITY_DRAIN {
		t.Errorf("settled: %v %v", n, err)
	}
	if n, err := r.role("v1", manager); err != nil || n.Role != manager || !n.GetManager().GetWitness() {
		t.Errorf("promoted again: %v %v", n, err)
	}
}
