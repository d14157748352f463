package translate

import (
	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

func taskFromDocker(in swarm.TaskSpec, networks Networks) (*skepv1.TaskSpec, error) {
	if err := checkRuntime(in); err != nil {
		return nil, err
	}
	out := &skepv1.TaskSpec{ForceUpdate: in.ForceUpdate, Placement: placementFromDocker(in.Placement)}
	var err error
	if out.Container, err = containerFromDocker(in.ContainerSpec); err != nil {
		return nil, err
	}
	if out.Resources, err = requirementsFromDocker(in.Resources); err != nil {
		return nil, err
	}
	if out.Restart, err = restartFromDocker(in.RestartPolicy); err != nil {
		return nil, err
	}
	for _, n := range in.Networks {
		out.Networks = append(out.Networks, &skepv1.NetworkAttachment{Target: networks.id(n.Target), Aliases: n.Aliases, DriverOpts: n.DriverOpts})
	}
	if l := in.LogDriver; l != nil && (l.Name != "" || len(l.Options) > 0) {
		out.LogDriver = &skepv1.LogDriver{Name: l.Name, Options: l.Options}
	}
	return out, nil
}

func checkRuntime(in swarm.TaskSpec) error {
	switch {
	case in.PluginSpec != nil || in.Runtime == swarm.RuntimePlugin:
		return notKept("TaskTemplate.PluginSpec", "plug-ins are installed on the nodes themselves, a service runs containers")
	case in.NetworkAttachmentSpec != nil || in.Runtime == swarm.RuntimeNetworkAttachment:
		return notKept("TaskTemplate.NetworkAttachmentSpec", "what joins a network is a service's task")
	case in.Runtime != "" && in.Runtime != swarm.RuntimeContainer:
		return unsupported("unsupported runtime: TaskTemplate.Runtime %q is not container", in.Runtime)
	case in.ContainerSpec == nil:
		return fault.Invalid("mismatched Runtime and *Spec fields: TaskTemplate.ContainerSpec is missing")
	}
	return nil
}

// TaskSpecToDocker is a task's spec. ContainerSpec is never nil: clients read it without a look.
func TaskSpecToDocker(t *skepv1.TaskSpec) swarm.TaskSpec {
	out := swarm.TaskSpec{
		ContainerSpec: containerToDocker(t.GetContainer()), Resources: requirementsToDocker(t.GetResources()),
		RestartPolicy: restartToDocker(t.GetRestart()), Placement: placementToDocker(t.GetPlacement()),
		ForceUpdate: t.GetForceUpdate(), Runtime: swarm.RuntimeContainer,
	}
	for _, n := range t.GetNetworks() {
		out.Networks = append(out.Networks, swarm.NetworkAttachmentConfig{Target: n.GetTarget(), Aliases: n.GetAliases(), DriverOpts: n.GetDriverOpts()})
	}
	if l := t.GetLogDriver(); l != nil {
		out.LogDriver = &swarm.Driver{Name: l.GetName(), Options: l.GetOptions()}
	}
	return out
}

// requirementsFromDocker: parts without anything in them, as Docker's client always sends, ask for nothing.
func requirementsFromDocker(in *swarm.ResourceRequirements) (*skepv1.ResourceRequirements, error) {
	if in == nil {
		return nil, nil
	}
	out := &skepv1.ResourceRequirements{SwapBytes: in.SwapBytes}
	if v := in.MemorySwappiness; v != nil && *v != -1 { // -1 takes an earlier value back
		out.MemorySwappiness = v
	}
	if l := in.Limits; l != nil && *l != (swarm.Limit{}) {
		out.Limits = &skepv1.Resources{NanoCpus: l.NanoCPUs, MemoryBytes: l.MemoryBytes, Pids: l.Pids}
	}
	if r := in.Reservations; r != nil && (r.NanoCPUs != 0 || r.MemoryBytes != 0 || len(r.GenericResources) > 0) {
		out.Reservations = &skepv1.Resources{NanoCpus: r.NanoCPUs, MemoryBytes: r.MemoryBytes}
		for _, g := range r.GenericResources {
			switch {
			case g.NamedResourceSpec != nil:
				return nil, unsupported("Named Generic Resources is not supported for service create or update: use DiscreteResourceSpec of kind %s", g.NamedResourceSpec.Kind)
			case g.DiscreteResourceSpec == nil:
				return nil, fault.Invalid("TaskTemplate.Resources.Reservations.GenericResources: an entry has no DiscreteResourceSpec")
			}
			out.Reservations.Generic = append(out.Reservations.Generic,
				&skepv1.GenericResource{Kind: g.DiscreteResourceSpec.Kind, Value: g.DiscreteResourceSpec.Value})
		}
	}
	if out.Limits == nil && out.Reservations == nil && out.SwapBytes == nil && out.MemorySwappiness == nil {
		return nil, nil
	}
	return out, nil
}

func requirementsToDocker(r *skepv1.ResourceRequirements) *swarm.ResourceRequirements {
	l := r.GetLimits()
	reserved := resourcesToDocker(r.GetReservations())
	out := &swarm.ResourceRequirements{
		Limits:       &swarm.Limit{NanoCPUs: l.GetNanoCpus(), MemoryBytes: l.GetMemoryBytes(), Pids: l.GetPids()},
		Reservations: &reserved,
	}
	if r != nil {
		out.SwapBytes, out.MemorySwappiness = r.SwapBytes, r.MemorySwappiness
	}
	return out
}

func resourcesToDocker(r *skepv1.Resources) swarm.Resources {
	return swarm.Resources{NanoCPUs: r.GetNanoCpus(), MemoryBytes: r.GetMemoryBytes(), GenericResources: genericToDocker(r.GetGeneric())}
}

func genericToDocker(list []*skepv1.GenericResource) []swarm.GenericResource {
	var out []swarm.GenericResource
	for _, g := range list {
		for _, n := range g.GetNamed() {
			out = append(out, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: g.GetKind(), Value: n}})
		}
		if len(g.GetNamed()) == 0 {
			out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: g.GetKind(), Value: g.GetValue()}})
		}
	}
	return out
}

var restartConditions = words[skepv1.RestartCondition]{
	"": skepv1.RestartCondition_RESTART_CONDITION_UNSPECIFIED, "none": skepv1.RestartCondition_RESTART_CONDITION_NONE,
	"on-failure": skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE, "any": skepv1.RestartCondition_RESTART_CONDITION_ANY,
}

func restartFromDocker(p *swarm.RestartPolicy) (*skepv1.RestartPolicy, error) {
	if p == nil {
		return nil, nil
	}
	condition, ok := restartConditions[string(p.Condition)]
	if !ok {
		return nil, fault.Invalid("invalid RestartCondition: %q: use none, on-failure or any", p.Condition)
	}
	out := &skepv1.RestartPolicy{Condition: condition, Delay: durationFromDocker(p.Delay), Window: durationFromDocker(p.Window)}
	if p.MaxAttempts != nil {
		out.MaxAttempts = *p.MaxAttempts
	}
	return out, nil
}

func restartToDocker(p *skepv1.RestartPolicy) *swarm.RestartPolicy {
	if p == nil {
		return nil
	}
	n := p.GetMaxAttempts()
	return &swarm.RestartPolicy{
		Condition: swarm.RestartPolicyCondition(restartConditions.of(p.GetCondition())), Delay: durationToDocker(p.GetDelay()),
		MaxAttempts: &n, Window: durationToDocker(p.GetWindow()),
	}
}

func placementFromDocker(p *swarm.Placement) *skepv1.Placement {
	if p == nil || len(p.Constraints)+len(p.Preferences)+len(p.Platforms) == 0 && p.MaxReplicas == 0 {
		return nil
	}
	out := &skepv1.Placement{Constraints: p.Constraints, MaxReplicasPerNode: p.MaxReplicas}
	for _, x := range p.Preferences {
		pref := &skepv1.PlacementPreference{} // of no strategy: libs/spec refuses it
		if x.Spread != nil {
			pref.Spread = x.Spread.SpreadDescriptor
		}
		out.Preferences = append(out.Preferences, pref)
	}
	for _, x := range p.Platforms {
		out.Platforms = append(out.Platforms, &skepv1.Platform{Os: x.OS, Arch: x.Architecture})
	}
	return out
}

func placementToDocker(p *skepv1.Placement) *swarm.Placement {
	out := &swarm.Placement{Constraints: p.GetConstraints(), MaxReplicas: p.GetMaxReplicasPerNode()}
	for _, x := range p.GetPreferences() {
		out.Preferences = append(out.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: x.GetSpread()}})
	}
	for _, x := range p.GetPlatforms() {
		out.Platforms = append(out.Platforms, swarm.Platform{Architecture: x.GetArch(), OS: x.GetOs()})
	}
	return out
}
