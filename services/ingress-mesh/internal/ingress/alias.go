package ingress

import (
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A node, or a task of it, may ask for a port at another node's IPv6 address, and that node may pick a task of the node
// that asked. The packet comes home with an address of this host as its source, and the reply would be delivered here
// rather than go back to the node that has to translate it. For IPv4 the entry node sees that coming (the set
// "returns"); the IPv6 addresses of its peers it does not know, and they change (RFC 8981).
//
// So the node to which its own address comes home puts an alias in its place before the connection is tracked, and
// takes it back as the reply leaves. The alias is the address with one bit flipped, in ranges nobody has: nothing is
// stored. The task sees its node's gateway, as it does when it is asked from its own node.

// aliasBit is in the first two bytes of an address: 2000::/3 becomes 6000::/3, fc00::/7 becomes bc00::/7.
const aliasBit = 0x4000

var aliases = []netip.Prefix{netip.MustParsePrefix("6000::/3"), netip.MustParsePrefix("bc00::/7")}

// flip turns an address into its alias and back. Transport checksums are kept right.
func flip(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 2},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 2, Mask: []byte{0xff, 0xff}, Xor: port(aliasBit)},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 2,
			CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR}, // without a CsumType the library leaves it out: see rawExpr
	}
}

func aliasIn() rule {
	return rule{"an address of this host comes home", exprs(iif(Link), ipv6(), []expr.Any{
		&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagSADDR: true}, is(native(unix.RTN_LOCAL)),
	}, flip(saddr6))}
}

func aliasOut() (out []rule) {
	for _, p := range aliases {
		out = append(out, rule{"the reply goes back as it came", exprs(oif(Link), ipv6(), addrIn(daddr6, p), flip(daddr6))})
	}
	return out
}

func aliasSources(c *Config) (out []rule) {
	for _, p := range aliases {
		out = append(out, rule{"a node asks another for its own task", exprs(ipv6(), oif(c.Bridge), addrIn(saddr6, p), ctMarked(), snat(c.gateway6()))})
	}
	return out
}

// noForeignAliases: a client that has such an address made it up, and the reply to it would go to somebody else.
func noForeignAliases(bridge string) (out []rule) {
	for _, p := range aliases {
		out = append(out, rule{"nobody has such an address", exprs(ipv6(), notIif(bridge), oif(Link), addrIn(saddr6, p), counter(), drop())})
	}
	return out
}
