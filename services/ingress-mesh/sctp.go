package mesh

import (
	"fmt"

	"skep.dev/libs/sctp"
	skepv1 "skep.dev/proto/skep/v1"
)

// sctpFindings says which of a node's published SCTP ports its kernel cannot serve. The rules are there all the same:
// a kernel that learns it needs nothing else.
func sctpFindings(ports []*skepv1.MeshPortState, node string, kernel sctp.Ability) (out []*skepv1.MeshFinding) {
	for _, p := range ports {
		if p.Protocol != "sctp" {
			continue
		}
		subject := fmt.Sprintf("port %d/sctp", p.Port)
		if !kernel.Tracked {
			out = append(out, &skepv1.MeshFinding{Severity: severityError, Subject: subject, Text: "this node's kernel does not track SCTP connections (it is built without CONFIG_NF_CT_PROTO_SCTP), so they do not reach the service's tasks by this node: " +
				"use a kernel that does, or publish the port over another protocol"})
		}
		if kernel.Sockets {
			continue
		}
		for _, b := range p.Backends {
			if b.NodeId == node || p.HostMode {
				out = append(out, &skepv1.MeshFinding{Severity: severityWarning, Subject: subject, Text: "this node's kernel has no SCTP sockets, and task " + b.TaskId + " runs here: unless its program brings SCTP itself, it hears `protocol not supported`: " +
					"install the kernel's module sctp (Debian, Ubuntu: linux-modules-extra; Fedora, RHEL: kernel-modules-extra), or keep the service on other nodes with a constraint"})
				break // one task says it for all
			}
		}
	}
	return out
}
