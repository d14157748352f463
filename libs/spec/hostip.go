package spec

import (
	"cmp"
	"net/netip"
	"strings"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// hostIP is the address of the host a port is bound to in its one spelling, "" = all, which 0.0.0.0 and :: say too.
func hostIP(p *skepv1.PortConfig) string {
	a, err := netip.ParseAddr(p.GetHostIp())
	switch {
	case err != nil:
		return p.GetHostIp()
	case a.IsUnspecified():
		return ""
	}
	return a.Unmap().String()
}

// PortsMeet reports whether two published ports cannot both be of one node: they have one number and protocol, and an
// address in common, or at least one of them is at all addresses.
func PortsMeet(a, b *skepv1.PortConfig) bool {
	word := func(p *skepv1.PortConfig) string { return cmp.Or(strings.ToLower(p.GetProtocol()), "tcp") }
	x, y := hostIP(a), hostIP(b)
	return a.GetPublishedPort() != 0 && a.GetPublishedPort() == b.GetPublishedPort() && word(a) == word(b) && (x == y || x == "" || y == "")
}

// validateHostIP checks the address of the host that a port is bound to.
func validateHostIP(s *skepv1.ServiceSpec, p *skepv1.PortConfig) error {
	if p.HostIp == "" {
		return nil
	}
	a, err := netip.ParseAddr(p.HostIp)
	switch {
	case err != nil || a.Zone() != "" || a.IsMulticast() || a.IsLinkLocalUnicast() && a.Is6():
		return fault.Invalid("invalid host_ip %q of port %d: use an address of the node, such as 127.0.0.1", p.HostIp, p.TargetPort)
	case p.PublishMode != skepv1.PublishMode_PUBLISH_MODE_HOST && !a.IsUnspecified():
		return fault.Invalid("port %d cannot be published at %s in ingress mode: the routing mesh takes it at every address of every node, use mode=host, or leave host_ip out", p.TargetPort, a)
	}
	for _, n := range s.GetTask().GetNetworks() {
		if Predefined(n.GetTarget()) == NetworkHost && !a.IsUnspecified() {
			return fault.Invalid("port %d cannot be published at %s: tasks on network host listen at the node's addresses by themselves, leave host_ip out and tell the program", p.TargetPort, a)
		}
	}
	return nil
}
