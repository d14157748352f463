package spec

import (
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// Core is what of a service's spec its tasks are made from: while it is the same, tasks of another revision are as good as
// new ones. Left out are the placement (only tasks that no longer fit it are replaced), registry credentials, another
// patience with tasks that fail, and what the mesh does without the task: ports on it, and the endpoint mode. So are the versions of secrets and configs that
// come to running tasks with a signal.
func Core(s *skepv1.ServiceSpec) *skepv1.ServiceSpec {
	t := proto.CloneOf(s.GetTask())
	if t == nil {
		t = &skepv1.TaskSpec{}
	}
	t.Placement = nil
	if c := t.Container; c != nil {
		c.RegistryAuth = ""
		unversioned(c.Secrets, c.SecretUpdateSignal != "")
		unversioned(c.Configs, c.ConfigUpdateSignal != "")
	}
	if t.Restart != nil {
		t.Restart.MaxDelay = nil
	}
	return &skepv1.ServiceSpec{Task: t, Endpoint: &skepv1.EndpointSpec{Ports: HostPorts(s)}, OnPartition: s.GetOnPartition()}
}

// unversioned: whether a version was asked for is nothing to a task; nor which one it is, where newer ones come to tasks
// that run.
func unversioned(files []*skepv1.FileReference, inPlace bool) {
	for _, f := range files {
		f.Pinned = false
		if inPlace {
			f.Version = 0
		}
	}
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
