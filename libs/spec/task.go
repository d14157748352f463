package spec

import (
	"maps"
	"regexp"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/constraint"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// The least a container may reserve, and of CPUs be limited to. MinMemoryLimit is more.
const (
	MinNanoCPUs = 1e6
	MinMemory   = 4 << 20
)

func validateTask(s *skepv1.ServiceSpec) error {
	t := s.Task
	if t.GetContainer() == nil {
		return fault.Invalid("ContainerSpec: missing in service spec")
	}
	if err := validateRequirements(t.Resources); err != nil {
		return err
	}
	if err := validateRestart(t.Restart); err != nil {
		return err
	}
	if err := validatePlacement(t.Placement); err != nil {
		return err
	}
	if err := validateNetworks(s); err != nil {
		return err
	}
	if t.LogDriver != nil && t.LogDriver.Name == "" && len(t.LogDriver.Options) > 0 {
		return fault.Invalid("log-opt needs a log-driver: name one, such as json-file")
	}
	if _, err := ReadLog(t.LogDriver); err != nil {
		return err
	}
	if err := validateContainer(t.Container); err != nil {
		return err
	}
	host := HostNetwork(s)
	for _, k := range slices.Sorted(maps.Keys(t.Container.Sysctls)) {
		if err := CheckSysctl(k, host); err != nil {
			return err
		}
	}
	return validateTemplates(s)
}

func notNegative(field string, d *durationpb.Duration) error {
	if d == nil {
		return nil
	}
	if err := d.CheckValid(); err != nil {
		return fault.Invalid("%s is not a valid duration: %v", field, err)
	}
	if d.AsDuration() < 0 {
		return fault.Invalid("%s cannot be negative", field)
	}
	return nil
}

func validateRestart(r *skepv1.RestartPolicy) error {
	if r == nil {
		return nil
	}
	if _, ok := skepv1.RestartCondition_name[int32(r.Condition)]; !ok {
		return fault.Invalid("invalid RestartCondition: \"%d\": use none, on-failure or any", r.Condition)
	}
	if err := notNegative("TaskSpec: restart-delay", r.Delay); err != nil {
		return err
	}
	if err := notNegative("TaskSpec: restart-backoff", r.MaxDelay); err != nil {
		return err
	}
	return notNegative("TaskSpec: restart-window", r.Window)
}

func validateRequirements(r *skepv1.ResourceRequirements) error {
	if r == nil {
		return nil
	}
	if err := validateResources(r.Limits); err != nil {
		return err
	}
	if err := validateResources(r.Reservations); err != nil {
		return err
	}
	if m := r.Limits.GetMemoryBytes(); m != 0 && m < MinMemoryLimit {
		return fault.Invalid("invalid limit-memory %d: Must be at least 6MiB: with less a container does not start", m)
	}
	if len(r.Limits.GetGeneric()) > 0 {
		return fault.Invalid("generic resources can be reserved, not limited: use generic-resource")
	}
	if r.Reservations.GetPids() != 0 {
		return fault.Invalid("pids can be limited, not reserved: use limit-pids")
	}
	if l, v := r.Limits.GetMemoryBytes(), r.Reservations.GetMemoryBytes(); l > 0 && v > l {
		return fault.Invalid("reserve-memory %d is above limit-memory %d", v, l)
	}
	if l, v := r.Limits.GetNanoCpus(), r.Reservations.GetNanoCpus(); l > 0 && v > l {
		return fault.Invalid("reserve-cpu %g is above limit-cpu %g", float64(v)/1e9, float64(l)/1e9)
	}
	if r.SwapBytes != nil {
		if *r.SwapBytes < -1 {
			return fault.Invalid("invalid memory swap value %d: use -1 for unlimited, or a size", *r.SwapBytes)
		}
		if r.Limits.GetMemoryBytes() == 0 {
			return fault.Invalid("memory swap provided, but no memory-limit was set")
		}
	}
	if v := r.MemorySwappiness; v != nil && (*v < -1 || *v > 100) {
		return fault.Invalid("invalid memory-swappiness value %d: use 0 to 100", *v)
	}
	return nil
}

func validateResources(r *skepv1.Resources) error {
	if r == nil {
		return nil
	}
	if r.NanoCpus != 0 && r.NanoCpus < MinNanoCPUs {
		return fault.Invalid("invalid cpu value %g: Must be at least %g", float64(r.NanoCpus)/1e9, MinNanoCPUs/1e9)
	}
	if r.MemoryBytes != 0 && r.MemoryBytes < MinMemory {
		return fault.Invalid("invalid memory value %d: Must be at least 4MiB", r.MemoryBytes)
	}
	if r.Pids < -1 {
		return fault.Invalid("invalid limit-pids value %d: use a number of processes, or 0 for no limit", r.Pids)
	}
	seen := map[string]bool{}
	for _, g := range r.Generic {
		switch {
		case g.Kind == "":
			return fault.Invalid("invalid generic-resource: the kind is empty, use kind=count")
		case len(g.Named) > 0:
			return fault.Invalid("Named Generic Resources is not supported for service create or update")
		case g.Value <= 0:
			return fault.Invalid("invalid generic-resource %s=%d: the count must be 1 or more", g.Kind, g.Value)
		case seen[g.Kind]:
			return fault.Invalid("duplicate generic-resource `%s`", g.Kind)
		}
		seen[g.Kind] = true
	}
	return nil
}

var spreadDescriptor = regexp.MustCompile(`^(?i:node\.labels|engine\.labels)\.\S+$|^node\.(?:id|hostname|platform\.os|platform\.arch)$`)

func validatePlacement(p *skepv1.Placement) error {
	if p == nil {
		return nil
	}
	if err := constraint.Check(p.Constraints); err != nil {
		if fault.Of(err) == fault.CodeInvalid {
			return err
		}
		return fault.Invalid("%v", err)
	}
	for _, pref := range p.Preferences {
		if pref.Spread == "" {
			return fault.Invalid(`placement preference must be of the format "<strategy>=<arg>"`)
		}
		if !spreadDescriptor.MatchString(pref.Spread) {
			return fault.Invalid("placement preference spread=%s: spread over node.labels.<name> or engine.labels.<name>", pref.Spread)
		}
	}
	return nil
}

// alias is a host name, of one part or several.
var alias = regexp.MustCompile(`^[a-zA-Z0-9_](?:[-a-zA-Z0-9_.]*[a-zA-Z0-9_])?$`)

func validateNetworks(s *skepv1.ServiceSpec) error {
	nets := s.GetTask().GetNetworks()
	seen := map[string]bool{}
	for _, n := range nets {
		word := Predefined(n.Target)
		switch {
		case n.Target == "":
			return fault.Invalid("network attachment without a network: use a name or id")
		case word == NetworkIngress:
			return fault.Invalid("Service cannot be explicitly attached to the ingress network")
		case seen[n.Target]:
			return fault.Invalid("service is already attached to network %s", n.Target)
		case (word == NetworkHost || word == NetworkNone) && len(nets) > 1:
			return fault.Invalid("network %s cannot be combined with other networks: leave out %s or the others", word, word)
		}
		for _, p := range s.GetEndpoint().GetPorts() {
			switch {
			case word == NetworkNone:
				return fault.Invalid("port %d cannot be published: tasks on network none have no interface, use another network", p.TargetPort)
			case word == NetworkHost && p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_INGRESS:
				return fault.Invalid("port %d cannot be published in ingress mode: the routing mesh does not reach tasks on network host, use mode=host or another network", p.TargetPort)
			}
		}
		for _, a := range n.Aliases {
			if len(a) > 253 || !alias.MatchString(a) {
				return fault.Invalid("invalid alias %q on network %s: use letters, digits, '-', '_' and '.', as in a host name", a, n.Target)
			}
		}
		seen[n.Target] = true
	}
	return validateFixed(s)
}
