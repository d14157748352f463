package spec

import (
	"net/netip"

	"skep.dev/libs/fault"
	"skep.dev/libs/ipam"
	skepv1 "skep.dev/proto/skep/v1"
)

// Fixed are the addresses a spec gives its task by name, by network, IPv4 and IPv6, those that are none left out.
func Fixed(s *skepv1.ServiceSpec) map[string][]netip.Addr {
	var out map[string][]netip.Addr
	for _, n := range s.GetTask().GetNetworks() {
		for _, text := range []string{n.GetIpv4Address(), n.GetIpv6Address()} {
			if a, err := netip.ParseAddr(text); err == nil {
				if out == nil {
					out = map[string][]netip.Addr{}
				}
				out[n.GetTarget()] = append(out[n.GetTarget()], a)
			}
		}
	}
	return out
}

// validateFixed checks the addresses a spec names. Whether a network has them is for FixedOn to say.
func validateFixed(s *skepv1.ServiceSpec) error {
	for _, n := range s.GetTask().GetNetworks() {
		if n.Ipv4Address == "" && n.Ipv6Address == "" {
			continue
		}
		if word := Predefined(n.Target); word != "" {
			return fault.Invalid("network %s has no addresses to choose from: leave out ip %s%s, or use a network of the cluster", word, n.Ipv4Address, n.Ipv6Address)
		}
		if a, err := netip.ParseAddr(n.Ipv4Address); n.Ipv4Address != "" && (err != nil || !a.Is4()) {
			return fault.Invalid("invalid ip %q on network %s: use an IPv4 address, such as 10.0.5.7", n.Ipv4Address, n.Target)
		}
		if a, err := netip.ParseAddr(n.Ipv6Address); n.Ipv6Address != "" && (err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "") {
			return fault.Invalid("invalid ip6 %q on network %s: use an IPv6 address, such as fd00:5::7", n.Ipv6Address, n.Target)
		}
	}
	if len(Fixed(s)) == 0 {
		return nil
	}
	if err := OneTask(s); err != nil {
		return err
	}
	if err := stopFirst("update", s.Update); err != nil {
		return err
	}
	return stopFirst("rollback", s.Rollback)
}

func stopFirst(which string, u *skepv1.UpdateConfig) error {
	if u.GetOrder() != skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST {
		return nil
	}
	return fault.Invalid("%s-order start-first is not possible with an address of its own (ip, ip6): the new task gets it when the old one has ended, use stop-first", which)
}

// OneTask refuses a service with an address of its own that would have several tasks.
func OneTask(s *skepv1.ServiceSpec) error {
	if len(Fixed(s)) == 0 {
		return nil
	}
	if mode := Mode(s); mode != "replicated" {
		return fault.Invalid("a service in mode %s has no address of its own (ip, ip6): only one task can have it, use mode replicated with one replica", mode)
	}
	if n, _ := Replicas(s); n > 1 {
		return fault.Invalid("%d replicas cannot have one address (ip, ip6): use one replica, or leave the address out", n)
	}
	return nil
}

// FixedOn refuses an address that a task on the network cannot have. Whether somebody else has it is not looked at.
func FixedOn(n *skepv1.Network, at *skepv1.NetworkAttachment) error {
	name := n.GetSpec().GetName()
	var four netip.Addr
	if at.GetIpv4Address() != "" {
		l, err := NetworkLayout(n)
		if err != nil {
			return err
		}
		four, err = netip.ParseAddr(at.Ipv4Address)
		switch {
		case err != nil || !l.Subnet.Contains(four):
			return fault.Invalid("ip %s is not in subnet %s of network %s", at.Ipv4Address, l.Subnet, name)
		case four == l.Gateway:
			return fault.Invalid("ip %s is the gateway of network %s: use another address of %s", four, name, l.Subnet)
		case !l.IsHost(four):
			return fault.Invalid("ip %s is the first or last address of subnet %s, which no task can have", four, l.Subnet)
		}
	}
	if at.GetIpv6Address() == "" {
		return nil
	}
	_, c := NetworkIPAM(n.GetIpam())
	if c == nil {
		return fault.Invalid("ip6 %s: network %s has no IPv6, create it with --ipv6", at.Ipv6Address, name)
	}
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		return fault.Invalid("network %s: %v", name, err)
	}
	subnet = subnet.Masked()
	six, err := netip.ParseAddr(at.Ipv6Address)
	switch {
	case err != nil || !subnet.Contains(six):
		return fault.Invalid("ip6 %s is not in subnet %s of network %s", at.Ipv6Address, subnet, name)
	case six == subnet.Addr() || six == subnet.Addr().Next() && c.Gateway == "" || six.String() == c.Gateway:
		return fault.Invalid("ip6 %s is the router's address on network %s: use another one of %s", six, name, subnet)
	case embedsIPv4(subnet, six) && (!four.IsValid() || six != ipam.Embed(subnet, four)):
		// Tasks without a name for theirs have such ones.
		return fault.Invalid("ip6 %s goes with the IPv4 address at its end: use it together with that ip, or one such as %s", six, subnet.Addr().Next().Next())
	}
	return nil
}
