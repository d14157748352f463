package ipam

import "net/netip"

// Nodes6 holds the IPv6 addresses that tasks have on the bridges of their nodes. They are local (RFC 4193) and leave
// no node but over the fabric; its 40 random bits are the same in every cluster, for no two share a host.
var Nodes6 = netip.MustParsePrefix("fd94:4a0:dd4d::/96")

// NodeAddr6 is the IPv6 address that goes with an IPv4 address on a node's bridge: it ends in it. Nobody allocates or
// stores it, since the IPv4 one is unique in the cluster. It is invalid for anything but an IPv4 address.
func NodeAddr6(a netip.Addr) netip.Addr {
	if a = a.Unmap(); !a.Is4() {
		return netip.Addr{}
	}
	b, v4 := Nodes6.Addr().As16(), a.As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b)
}

// NodeSubnet6 are the IPv6 addresses that go with an IPv4 subnet of a node: 100.64.2.0/23 has a /119.
func NodeSubnet6(p netip.Prefix) netip.Prefix {
	if !p.IsValid() || !p.Addr().Is4() {
		return netip.Prefix{}
	}
	p = p.Masked()
	return netip.PrefixFrom(NodeAddr6(p.Addr()), Nodes6.Bits()+p.Bits())
}

// Embed is the IPv6 address that goes with an IPv4 one on a network with both: subnet6's, ending in it. It is invalid
// where the network has no IPv6.
func Embed(subnet6 netip.Prefix, a netip.Addr) netip.Addr {
	if !subnet6.IsValid() {
		return netip.Addr{}
	}
	b, v4 := subnet6.Masked().Addr().As16(), a.As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b)
}
