package doctor

import (
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// duplicates tells of nodes that two machines run as.
func (d *exam) duplicates() {
	for _, n := range byName(d.After.Nodes) {
		if n.GetDuplicate() != nil {
			d.add(Error, "node "+render.Hostname(n), "%s", DuplicateText(n.Duplicate))
		}
	}
}

// DuplicateText says which two machines run as one node, and what to do.
func DuplicateText(x *skepv1.NodeDuplicate) string {
	return "two machines run as this node: " + machineText(x.GetHostname(), x.GetAddr()) + ", and " + machineText(x.GetSecondHostname(), x.GetSecondAddr()) +
		", which is refused; run `skep leave --force` on the one that is a copy, then join it with a token"
}

func machineText(hostname, addr string) string {
	if hostname == "" {
		return addr
	}
	return hostname + " at " + addr
}
