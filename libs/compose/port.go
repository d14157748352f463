package compose

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	skepv1 "skep.dev/proto/skep/v1"
)

// maxPorts bounds the ports of one service, with its ranges written out.
const maxPorts = 1000

// ports reads ports and deploy.endpoint_mode.
func (s *service) ports() {
	e := &skepv1.EndpointSpec{}
	switch mode := strings.ToLower(s.deploy().EndpointMode); mode {
	case "", "vip":
	case "dnsrr":
		e.Mode = skepv1.EndpointSpec_MODE_DNSRR
	default:
		s.wrongAt(s.at("deploy", "endpoint_mode"), "unknown mode: use vip or dnsrr")
	}
	for i, p := range s.in.Ports {
		at := s.at("ports", itoa(i))
		for _, one := range s.port(at, p) {
			if len(e.Ports) == maxPorts {
				s.wrongAt(at, "the service publishes more than %d ports", maxPorts)
				return
			}
			// The later of two files says what a published port leads to, as with docker stack.
			if j := slices.IndexFunc(e.Ports, func(o *skepv1.PortConfig) bool { return samePort(o, one) }); j >= 0 {
				e.Ports[j] = one
			} else {
				e.Ports = append(e.Ports, one)
			}
		}
	}
	slices.SortStableFunc(e.Ports, func(a, b *skepv1.PortConfig) int {
		return cmp.Or(cmp.Compare(a.PublishedPort, b.PublishedPort), cmp.Compare(a.TargetPort, b.TargetPort),
			cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostIp, b.HostIp))
	})
	if len(e.Ports) > 0 || e.Mode != skepv1.EndpointSpec_MODE_VIP {
		s.out.Endpoint = e
	}
}

func samePort(a, b *skepv1.PortConfig) bool {
	return a.PublishedPort != 0 && a.PublishedPort == b.PublishedPort && a.Protocol == b.Protocol && a.HostIp == b.HostIp
}

// port is one entry; a range makes several.
func (s *service) port(at []string, p types.ServicePortConfig) []*skepv1.PortConfig {
	one := skepv1.PortConfig{Name: p.Name, Protocol: strings.ToLower(p.Protocol), TargetPort: p.Target}
	switch one.Protocol {
	case "":
		one.Protocol = "tcp"
	case "tcp", "udp", "sctp":
	default:
		s.wrongAt(at, "unknown protocol %.20q: use tcp, udp or sctp", p.Protocol)
		return nil
	}
	switch p.Mode {
	case "", "ingress":
	case "host":
		one.PublishMode = skepv1.PublishMode_PUBLISH_MODE_HOST
	default:
		s.wrongAt(at, "unknown mode %.20q: use ingress or host", p.Mode)
		return nil
	}
	if one.TargetPort == 0 || one.TargetPort > 65535 {
		s.wrongAt(at, "the port in the container must be 1 to 65535")
		return nil
	}
	if p.HostIP != "" {
		ip, err := netip.ParseAddr(p.HostIP)
		switch {
		case err != nil:
			s.wrongAt(at, "%.60q is no address", p.HostIP)
			return nil
		case ip.IsUnspecified():
		case one.PublishMode != skepv1.PublishMode_PUBLISH_MODE_HOST:
			s.wrongAt(at, "every node publishes the port on all its addresses, not on %s alone: leave the address out, or write the long form with mode: host and host_ip", ip)
			return nil
		default:
			one.HostIp = ip.String()
		}
	}
	first, last, err := portRange(p.Published)
	if err != nil {
		s.wrongAt(at, "the published port %v", err)
		return nil
	}
	if last-first >= maxPorts {
		s.wrongAt(at, "it publishes more than %d ports", maxPorts)
		return nil
	}
	var out []*skepv1.PortConfig
	for n := first; n <= last; n++ {
		// One field after the other: a message is not copied.
		out = append(out, &skepv1.PortConfig{Name: one.Name, Protocol: one.Protocol, TargetPort: one.TargetPort,
			PublishMode: one.PublishMode, HostIp: one.HostIp, PublishedPort: n})
	}
	return out
}

func portRange(text string) (first, last uint32, err error) {
	if text == "" {
		return 0, 0, nil
	}
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	a, errA := strconv.ParseUint(from, 10, 32)
	b, errB := strconv.ParseUint(to, 10, 32)
	switch {
	case errA != nil || errB != nil:
		return 0, 0, fmt.Errorf("is no number and no range such as 8000-8004")
	case a > 65535 || b > 65535 || isRange && (a == 0 || b < a):
		return 0, 0, fmt.Errorf("must be 1 to 65535")
	}
	return uint32(a), uint32(b), nil
}

// sharedPorts finds two services that publish the same port of the mesh.
func (s *stack) sharedPorts() {
	type key struct {
		port     uint32
		protocol string
	}
	owner := map[key]string{}
	for _, one := range s.services {
		for _, p := range one.out.GetEndpoint().GetPorts() {
			k := key{p.PublishedPort, p.Protocol}
			if p.PublishedPort == 0 || p.PublishMode != skepv1.PublishMode_PUBLISH_MODE_INGRESS {
				continue
			}
			if other, ok := owner[k]; ok && other != one.name {
				s.wrongAt(one.at("ports"), "the service %s publishes %d/%s already: use another port", other, k.port, k.protocol)
				continue
			}
			owner[k] = one.name
		}
	}
}
