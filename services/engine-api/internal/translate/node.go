package translate

import (
	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

var (
	nodeRoles = words[skepv1.NodeRole]{"worker": skepv1.NodeRole_NODE_ROLE_WORKER, "manager": skepv1.NodeRole_NODE_ROLE_MANAGER}

	availabilities = words[skepv1.Availability]{
		"active": skepv1.Availability_AVAILABILITY_ACTIVE, "pause": skepv1.Availability_AVAILABILITY_PAUSE,
		"drain": skepv1.Availability_AVAILABILITY_DRAIN,
	}
)

// NodeFromDocker is what becomes of a node's spec when a client sends it back changed.
func NodeFromDocker(current *skepv1.Node, in swarm.NodeSpec) (*skepv1.NodeSpec, error) {
	role, ok := nodeRoles[string(in.Role)]
	if !ok {
		return nil, fault.Invalid("invalid Role: %q: use worker or manager", in.Role)
	}
	availability, ok := availabilities[string(in.Availability)]
	if !ok {
		return nil, fault.Invalid("invalid Availability: %q: use active, pause or drain", in.Availability)
	}
	out := &skepv1.NodeSpec{Name: in.Name, Labels: in.Labels, Role: role, Availability: availability}
	if current.GetWitness() && in.Availability == nodeSpecToDocker(current).Availability {
		out.Availability = current.GetSpec().GetAvailability() // it was only shown so
	}
	return out, checkText(out.ProtoReflect(), "")
}

func nodeSpecToDocker(n *skepv1.Node) swarm.NodeSpec {
	s := n.GetSpec()
	out := swarm.NodeSpec{Annotations: annotations(s.GetName(), s.GetLabels()), Role: swarm.NodeRole(nodeRoles.of(s.GetRole())),
		Availability: swarm.NodeAvailability(availabilities.of(s.GetAvailability()))}
	if n.GetWitness() { // it never runs tasks
		out.Availability = swarm.NodeAvailabilityDrain
	}
	return out
}

// NodeToDocker is a node in Docker's form; tls is what it trusts.
func NodeToDocker(n *skepv1.Node, tls swarm.TLSInfo) swarm.Node {
	d := n.GetDescription()
	out := swarm.Node{
		ID: n.GetMeta().GetId(), Meta: metaToDocker(n.GetMeta()), Spec: nodeSpecToDocker(n),
		Description: swarm.NodeDescription{
			Hostname:  d.GetHostname(),
			Platform:  swarm.Platform{Architecture: machine(d.GetPlatform().GetArch()), OS: d.GetPlatform().GetOs()},
			Resources: resourcesToDocker(d.GetResources()),
			Engine:    swarm.EngineDescription{EngineVersion: d.GetEngineVersion(), Labels: d.GetEngineLabels()},
			TLSInfo:   tls,
		},
		Status: swarm.NodeStatus{State: swarm.NodeState(spec.Word(n.GetStatus().GetState())), Message: nodeMessage(n), Addr: d.GetAddr()},
	}
	for _, p := range d.GetPlugins() {
		out.Description.Engine.Plugins = append(out.Description.Engine.Plugins, swarm.PluginDescription{Type: p.GetType(), Name: p.GetName()})
	}
	if m := n.GetManager(); m != nil {
		out.ManagerStatus = &swarm.ManagerStatus{Leader: m.GetLeader(), Reachability: swarm.Reachability(m.GetReachability()), Addr: m.GetAddr()}
		if m.GetReachability() == "" {
			out.ManagerStatus.Reachability = swarm.ReachabilityUnknown
		}
	}
	return out
}

// nodeMessage says what is wrong with a node that is ready by its state, which Docker has no word for.
func nodeMessage(n *skepv1.Node) string {
	switch {
	case n.GetStatus().GetMessage() != "":
		return n.GetStatus().GetMessage()
	case n.GetDescription().GetTrouble() != "":
		return n.GetDescription().GetTrouble()
	case len(n.GetStatus().GetBlocked()) > 0:
		return "its data path does not reach every node"
	}
	return ""
}

// machine is an architecture as Docker's nodes name theirs, which is the kernel's word.
func machine(arch string) string {
	switch arch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return arch
}
