package state

import (
	"fmt"
	"slices"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/spec"
	"skep.dev/libs/stack"
	skepv1 "skep.dev/proto/skep/v1"
)

// stackPorts refuses ports that two services of the stack want, that the cluster lives by, that a service has which the plan
// does not move, or that services hand round in a circle.
func (s *Service) stackPorts(want *skepv1.StackSpec, ops []*stack.Op) error {
	own := s.ownPorts()
	moves := map[string]bool{} // ids of services whose ports are what the plan says
	for _, o := range ops {
		if o.Kind == stack.Service && o.Verb != skepv1.StackChange_VERB_LEAVE {
			moves[o.ID] = true
		}
	}
	taken := map[string]string{} // who has a port on the mesh, or "host" for one on the nodes
	var waits []*skepv1.ServiceSpec
	for _, sp := range want.Services {
		wait := &skepv1.ServiceSpec{Name: sp.Name}
		waits = append(waits, wait)
		ports := sp.GetEndpoint().GetPorts()
		if len(ports) > maxPorts {
			return fault.Invalid("service %s: %d published ports: at most %d for one service", sp.Name, len(ports), maxPorts)
		}
		if n := len(spec.Overlays(sp)); n > maxNetworks {
			return fault.Invalid("service %s would be on %d networks: at most %d for one service", sp.Name, n, maxNetworks)
		}
		for _, p := range ports {
			if p.PublishedPort == 0 {
				continue
			}
			key := keys.PortKey(p.Protocol, p.PublishedPort)
			host := p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_HOST
			if other, ok := taken[key]; ok && other != sp.Name && !(host && other == "host") {
				if other == "host" {
					other = "another"
				}
				return fault.Conflict("services %s and %s of stack %s both publish port %d/%s", other, sp.Name, want.Name, p.PublishedPort, p.Protocol)
			}
			if taken[key] = sp.Name; host {
				taken[key] = "host"
			}
			if err := own.refuse(p); err != nil {
				return fmt.Errorf("service %s: %w", sp.Name, err)
			}
			k, _ := s.ix.Key(key)
			h := parseHolder(k.Value)
			if other := s.ix.ServiceName(h.ingress); other != "" && other != sp.Name {
				wait.DependsOn = append(wait.DependsOn, &skepv1.Dependency{Service: other})
			}
			switch {
			case h.ingress != "" && !moves[h.ingress]:
				return fmt.Errorf("service %s: %w", sp.Name, s.portTaken(p.PublishedPort, h.ingress, "as an ingress port"))
			case !host && slices.ContainsFunc(h.hosts, func(id string) bool { return !moves[id] }):
				return fmt.Errorf("service %s: %w", sp.Name, s.portTaken(p.PublishedPort, h.hosts[0], "as a host-published port"))
			}
		}
	}
	if _, err := stack.Order(waits); err != nil {
		return fault.Conflict("services of stack %s exchange published ports, and each would wait for the other to give up its own: deploy it once without one of them", want.Name)
	}
	return nil
}
