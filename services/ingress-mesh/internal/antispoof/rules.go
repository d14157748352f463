package antispoof

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"skep.dev/libs/ipam"
	"skep.dev/services/ingress-mesh/internal/ruleset"
)

const (
	tableName = "skep_ports"
	chainName = "ports"
	// Sets of port . MAC . address: what a packet that comes in by the port may have as its source.
	setOwn, setOwn6 = "own", "own6"
	// linkPrefix is what the names of all links of tasks begin with, on every bridge of ours. Bridges of others have no
	// such ports, and a kernel need not have the key for the bridge's own name.
	linkPrefix = "sk"
)

var (
	table = &nftables.Table{Family: nftables.TableFamilyBridge, Name: tableName}
	// The IDs are given here since the library would count them in a variable that all its users share without a lock.
	sets = []*nftables.Set{
		{Table: table, ID: 1, Name: setOwn, Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)},
		{Table: table, ID: 2, Name: setOwn6, Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIP6Addr)},
	}
	// Before others look at bridged packets, and before a host that has these pass iptables translates them.
	chainPriority, chainPolicy = nftables.ChainPriority(-300), nftables.ChainPolicyAccept
	others                     = &nftables.Chain{Name: "others", Table: table}
	chain                      = &nftables.Chain{Name: chainName, Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: &chainPriority, Policy: &chainPolicy}
)

// Registers, by their numbers as 4-byte ones where a concatenated key has no other: name, MAC, address.
const regName, regMAC, regAddr = 1, 2, 14

// Where a key's MAC and address are in a packet.
type place struct {
	base   expr.PayloadBase
	offset uint32
}

var (
	etherSource   = place{expr.PayloadBaseLLHeader, 6}
	ipSource      = place{expr.PayloadBaseNetworkHeader, 12}
	ip6Source     = place{expr.PayloadBaseNetworkHeader, 8}
	arpSenderMAC  = place{expr.PayloadBaseNetworkHeader, 8}
	arpSenderAddr = place{expr.PayloadBaseNetworkHeader, 14}
	ndTarget      = place{expr.PayloadBaseTransportHeader, 8}
)

func (p place) load(reg, size uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: p.base, Offset: p.offset, Len: size}
}

// own: the port, the MAC at mac and the address at addr are in the set; with not, they are not.
func own(set string, mac, addr place, not bool) []expr.Any {
	size := uint32(4)
	if set == setOwn6 {
		size = 16
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: regName},
		mac.load(regMAC, 6),
		addr.load(regAddr, size),
		&expr.Lookup{SourceRegister: regName, SetName: set, Invert: not},
	}
}

func is(b ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }

// kind: the frame is of that type. Of a frame with a VLAN tag it is the tag's, wherever the kernel keeps that.
func kind(etherType uint16) []expr.Any {
	return []expr.Any{place{expr.PayloadBaseLLHeader, 12}.load(1, 2), is(byte(etherType>>8), byte(etherType))}
}

// icmp6: an ICMPv6 message of a type between two. Behind a fragment header neighbour discovery is none, to any kernel.
func icmp6(from, to byte) []expr.Any {
	return append(kind(unix.ETH_P_IPV6), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, is(unix.IPPROTO_ICMPV6),
		place{expr.PayloadBaseTransportHeader, 0}.load(1, 1), &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{from}, ToData: []byte{to}})
}

// ICMPv6 types of neighbour discovery.
const (
	routerSolicitation = 133
	routerAdvert       = 134
	neighbourAdvert    = 136
	redirect           = 137
)

type rule struct {
	text  string // its comment
	exprs []expr.Any
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

func join(parts ...[]expr.Any) (out []expr.Any) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// rules are those of each chain. fabric is the port to other nodes, "" if there is none. A task's own packet is through
// after two of them, and so is one that comes from another node.
func rules(fabric string) map[*nftables.Chain][]rule {
	iif := func(op expr.CmpOp, name []byte) []expr.Any {
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: name}}
	}
	out := map[*nftables.Chain][]rule{chain: {
		{"other ports", join(iif(expr.CmpOpNeq, []byte(linkPrefix)), []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: others.Name}})},
		{"a task's own address", join(kind(unix.ETH_P_IP), own(setOwn, etherSource, ipSource, false), accept())},
		// Ethernet and IPv4, and both senders it names are the task.
		{"a task's own address, ARP", join(kind(unix.ETH_P_ARP), []expr.Any{place{expr.PayloadBaseNetworkHeader, 0}.load(1, 6), is(0, 1, 8, 0, 6, 4)},
			own(setOwn, etherSource, arpSenderAddr, false), own(setOwn, arpSenderMAC, arpSenderAddr, false), accept())},
		{"a task is no router", join(icmp6(routerAdvert, routerAdvert), drop())},
		{"a task is no router", join(icmp6(redirect, redirect), drop())},
		{"a task says where it is itself", join(icmp6(neighbourAdvert, neighbourAdvert), own(setOwn6, etherSource, ndTarget, true), drop())},
		{"a task's own address, IPv6", join(kind(unix.ETH_P_IPV6), own(setOwn6, etherSource, ip6Source, false), accept())},
		{"nothing else", drop()},
	}}
	if fabric != "" {
		// The device itself answers for the tasks of other nodes, so none of their questions and answers is ever on the
		// wire. Its own answers come in by it too, marked as for this host, which what comes by the wire for a task is not.
		wire := join([]expr.Any{&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.PACKET_HOST}}},
			iif(expr.CmpOpEq, ruleset.IfName(fabric)))
		out[others] = []rule{
			{"packets", join(kind(unix.ETH_P_IP), accept())},
			{"nobody elsewhere says who has an address", join(kind(unix.ETH_P_ARP), wire, drop())},
			{"nobody elsewhere says who has an address, IPv6", join(icmp6(routerSolicitation, redirect), wire, drop())},
		}
	}
	return out
}

func (r rule) userData() []byte { return ruleset.Comment(table.Family, r.text, r.exprs) }

// elements are the keys of both sets for some ports.
func elements(ports map[string]Port) map[string]map[string]bool {
	out := map[string]map[string]bool{setOwn: {}, setOwn6: {}}
	for _, p := range ports {
		mac := ipam.MAC(p.Addr)
		key := string(ruleset.IfName(p.Link)) + string(mac[:]) + "\x00\x00"
		out[setOwn][key+string(p.Addr.AsSlice())] = true
		if p.Addr6.IsValid() {
			link := linkLocal(mac)
			out[setOwn6][key+string(p.Addr6.AsSlice())] = true
			out[setOwn6][key+string(link.AsSlice())] = true
		}
	}
	return out
}

// linkLocal is the address an interface with that MAC gives itself.
func linkLocal(m [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}
