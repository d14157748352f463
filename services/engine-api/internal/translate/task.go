package translate

import (
	"net/netip"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/record"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// TaskView is what of a task is to be told besides its record and status.
type TaskView struct {
	// Service is the spec of the revision that the task was made from; nil: it is not known, and what the task itself says is told.
	Service  *skepv1.ServiceSpec
	Networks Networks
}

// TaskToDocker is a task in Docker's form. Its name is left to clients, who make it of service, slot and id as they are used to.
func TaskToDocker(t *skepv1.Task, view TaskView) swarm.Task {
	made := t.GetSpec()
	if made == nil {
		made = view.Service.GetTask()
	}
	if made == nil {
		made = &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: t.GetImage()}}
	}
	out := swarm.Task{
		ID: t.GetMeta().GetId(), Meta: metaToDocker(t.GetMeta()), Annotations: annotations("", nil), Spec: TaskSpecToDocker(made),
		ServiceID: t.GetServiceId(), Slot: int(slotToDocker(t)), NodeID: t.GetNodeId(), DesiredState: taskState(t.GetDesired()),
		Status: taskStatusToDocker(t.GetStatus()), GenericResources: genericToDocker(t.GetAssigned()),
		NetworksAttachments: attachments(t.GetStatus(), view),
	}
	out.Spec.Runtime = "" // only services say it
	if t.GetJobIteration() > 0 {
		out.JobIteration = &swarm.Version{Index: t.GetJobIteration()}
	}
	return out
}

// slotToDocker: a job's first slot is 0 in Docker, and its client counts from there.
func slotToDocker(t *skepv1.Task) uint64 {
	if t.GetJobIteration() > 0 && t.GetSlot() > 0 {
		return t.GetSlot() - 1
	}
	return t.GetSlot()
}

func taskState(s skepv1.TaskState) swarm.TaskState { return swarm.TaskState(spec.Word(s)) }

// taskStatusToDocker: a task that runs and to which nobody is led is starting. Docker's tasks run only once they are healthy, and
// who reads states to lead clients to tasks knows nothing of readiness.
func taskStatusToDocker(st *skepv1.TaskStatus) swarm.TaskStatus {
	out := swarm.TaskStatus{
		Timestamp: millis(st.GetSinceUnixMs()), State: taskState(st.GetState()), Message: st.GetMessage(), Err: st.GetErr(),
		PortStatus: swarm.PortStatus{Ports: portsToDocker(st.GetPorts())},
	}
	if c := record.ConditionOf(st); c.State == skepv1.TaskState_TASK_STATE_RUNNING && !c.Serves() {
		out.State, out.Message = swarm.TaskStateStarting, "running, not ready"
		switch {
		case c.Health == skepv1.HealthState_HEALTH_STATE_UNHEALTHY:
			out.Message = "running, unhealthy"
		case c.Health == skepv1.HealthState_HEALTH_STATE_STARTING:
			out.Message = "running, health check: starting"
		}
	}
	if st.GetContainerId() != "" || st.GetPid() != 0 || st.GetExitCode() != 0 {
		out.ContainerStatus = &swarm.ContainerStatus{ContainerID: st.GetContainerId(), PID: int(st.GetPid()), ExitCode: int(st.GetExitCode())}
	}
	return out
}

// attachments are the networks a task has addresses on. One with ports on the mesh is on the network of published ports too, by
// its address on its node.
func attachments(st *skepv1.TaskStatus, view TaskView) []swarm.NetworkAttachment {
	var out []swarm.NetworkAttachment
	add := func(id string, texts ...string) {
		a := swarm.NetworkAttachment{Network: attachedNetwork(id, view.Networks)}
		for _, t := range texts {
			if p, ok := prefix(t); ok {
				a.Addresses = append(a.Addresses, p)
			}
		}
		if len(a.Addresses) > 0 {
			out = append(out, a)
		}
	}
	for _, p := range view.Service.GetEndpoint().GetPorts() {
		if p.GetPublishMode() == skepv1.PublishMode_PUBLISH_MODE_INGRESS {
			add(spec.NetworkIngress, st.GetAddresses()...)
			break
		}
	}
	for _, n := range st.GetNetworks() {
		add(n.GetNetworkId(), n.GetAddr(), n.GetAddr6())
	}
	return out
}

// attachedNetwork is a network as a task's attachment holds it: whole where it is known, by its id where not.
func attachedNetwork(id string, networks Networks) swarm.Network {
	var n *skepv1.Network
	if networks != nil {
		n = networks(id)
	}
	if n == nil {
		n = &skepv1.Network{Meta: &skepv1.Meta{Id: id}, Spec: &skepv1.NetworkSpec{Name: id, Driver: spec.DriverOverlay}}
	}
	s := n.GetSpec()
	driver := swarm.Driver{Name: s.GetDriver(), Options: networkOptions(n)}
	return swarm.Network{
		ID: id, Meta: metaToDocker(n.GetMeta()), DriverState: driver,
		Spec: swarm.NetworkSpec{
			Annotations: annotations(s.GetName(), s.GetLabels()), DriverConfiguration: &swarm.Driver{Name: s.GetDriver(), Options: s.GetDriverOpts()},
			IPv6Enabled: s.GetIpv6(), Internal: s.GetInternal(), Attachable: s.GetAttachable(), Ingress: id == spec.NetworkIngress,
			IPAMOptions: &swarm.IPAMOptions{Driver: swarm.Driver{Name: ipamDriver}, Configs: attachedIPAM(s.GetIpam())}, Scope: scopeSwarm,
		},
		IPAMOptions: &swarm.IPAMOptions{Driver: swarm.Driver{Name: ipamDriver}, Configs: attachedIPAM(n.GetIpam())},
	}
}

func attachedIPAM(list []*skepv1.IPAMConfig) []swarm.IPAMConfig {
	var out []swarm.IPAMConfig
	for _, c := range list {
		subnet, part, gateway := ipamParts(c)
		out = append(out, swarm.IPAMConfig{Subnet: subnet, Range: part, Gateway: gateway})
	}
	return out
}

// ipamParts are a subnet's addresses. What is none stays away.
func ipamParts(c *skepv1.IPAMConfig) (subnet, part netip.Prefix, gateway netip.Addr) {
	subnet, _ = netip.ParsePrefix(c.GetSubnet())
	part, _ = netip.ParsePrefix(c.GetIpRange())
	gateway, _ = netip.ParseAddr(c.GetGateway())
	return subnet, part, gateway
}
