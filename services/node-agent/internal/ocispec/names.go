package ocispec

import (
	"skep.dev/libs/taskname"
	skepv1 "skep.dev/proto/skep/v1"
)

// Names is what a template may ask for.
type Names = taskname.Names

// NamesOf fills Names for a task on a node.
func NamesOf(nodeID, nodeHostname, arch string, rec *skepv1.TaskRecord, svc *skepv1.ServiceSpec) Names {
	return taskname.Of(nodeID, nodeHostname, arch, rec, svc)
}
