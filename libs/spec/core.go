package spec

import (
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// Core is what of a service's spec its tasks are made from: while it is the same, tasks of another revision are as good as
// new ones. Left out are the placement (only tasks that no longer fit it are replaced), registry credentials, another
// patience with tasks that fail, and what the mesh does without the task: ports on it, and the endpoint mode.
func Core(s *skepv1.ServiceSpec) *skepv1.ServiceSpec {
	t := proto.CloneOf(s.GetTask())
	if t == nil {
		t = &skepv1.TaskSpec{}
	}
	t.Placement = nil
	if t.Container != nil {
		t.Container.RegistryAuth = nil
	}
	if t.Restart != nil {
		t.Restart.MaxDelay = nil
	}
	return &skepv1.ServiceSpec{Task: t, Endpoint: &skepv1.EndpointSpec{Ports: HostPorts(s)}}
}

// Overlays are the networks a spec's tasks join, without the words for predefined ones: ids, once a spec is resolved.
func Overlays(s *skepv1.ServiceSpec) []string {
	var out []string
	for _, n := range s.GetTask().GetNetworks() {
		if Predefined(n.GetTarget()) == "" {
			out = append(out, n.GetTarget())
		}
	}
	return out
}
