package spec

import (
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// ValidateNode checks a node's spec.
func ValidateNode(n *skepv1.NodeSpec) error {
	if n == nil {
		return fault.Invalid("node spec is missing")
	}
	if _, ok := skepv1.Availability_name[int32(n.Availability)]; !ok {
		return fault.Invalid("invalid availability \"%d\", only active, pause and drain are supported", n.Availability)
	}
	if _, ok := skepv1.NodeRole_name[int32(n.Role)]; !ok {
		return fault.Invalid("invalid role \"%d\", only worker and manager are supported", n.Role)
	}
	if n.Name != "" {
		if err := ValidateName(n.Name); err != nil {
			return err
		}
	}
	return ValidateLabels(n.Labels)
}

// NodeStatus is how a node is, as lists show it and filters name it: its state, or "sick" of one that is there and can begin no
// tasks.
func NodeStatus(n *skepv1.Node) string {
	if n.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_READY && n.GetDescription().GetTrouble() != "" {
		return "sick"
	}
	return Word(n.GetStatus().GetState())
}
