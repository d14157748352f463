package reconcile

import (
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// A witness takes no task, whatever its record says of its availability.
func TestAWitnessTakesNothing(t *testing.T) {
	s := NewState()
	for _, as := range []skepv1.Availability{skepv1.Availability_AVAILABILITY_ACTIVE, skepv1.Availability_AVAILABILITY_PAUSE, skepv1.Availability_AVAILABILITY_DRAIN} {
		s.putNode("v", &skepv1.NodeObject{Witness: true, Spec: &skepv1.NodeSpec{Availability: as}})
		n := s.nodes["v"]
		n.State = skepv1.NodeState_NODE_STATE_READY
		if n.accepts() || !n.drained() {
			t.Errorf("%v: accepts tasks %v, counts as drained %v", as, n.accepts(), n.drained())
		}
	}
}
