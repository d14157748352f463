package ingress

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"skep.dev/services/ingress-mesh/internal/ruleset"
)

// Registers: 1 is the first of 16 bytes, 9… its 4-byte parts from the second on. Concatenated keys are laid out in them.
const reg, regPort, regIndex = 1, 9, 10

// regPort6 is where the port is behind an IPv6 address in the first register.
const regPort6 = 12

// exprs joins parts of a rule.
func exprs(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func is(data []byte) expr.Any    { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }
func isNot(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data} }

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }
func port(v uint16) []byte   { return binary.BigEndian.AppendUint16(nil, v) }

func iif(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, is(ruleset.IfName(name))}
}
func oif(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}, is(ruleset.IfName(name))}
}
func notIif(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, isNot(ruleset.IfName(name))}
}
func notOif(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}, isNot(ruleset.IfName(name))}
}

func isFamily(f byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, is([]byte{f})}
}
func ipv4() []expr.Any { return isFamily(unix.NFPROTO_IPV4) }
func ipv6() []expr.Any { return isFamily(unix.NFPROTO_IPV6) }

func protocol(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, is([]byte{p})}
}

func dport(p uint16) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, is(port(p))}
}

// tcpReset: the segment is one.
func tcpReset() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{0x04}, Xor: []byte{0}},
		isNot([]byte{0}),
	}
}

// dportIn: the port is one of those from … to.
func dportIn(from, to uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Range{Op: expr.CmpOpEq, Register: reg, FromData: port(from), ToData: port(to)},
	}
}

// loadAddr loads the IPv4 source (offset 12) or destination (16) address.
func loadAddr(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

// loadAddr6 loads the IPv6 source (offset 8) or destination (24) address.
func loadAddr6(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 16}
}

const (
	saddr4, daddr4 = 12, 16
	saddr6, daddr6 = 8, 24
)

// addrIn: the address at offset is in p. The packet's family must be p's.
func addrIn(offset uint32, p netip.Prefix) []expr.Any {
	load := loadAddr
	if p.Addr().Is6() {
		load = loadAddr6
	}
	size := uint32(p.Addr().BitLen() / 8)
	return []expr.Any{
		load(offset),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: size, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size)},
		is(p.Masked().Addr().AsSlice()),
	}
}

// localDestination: the packet is for an address of this host, whichever.
func localDestination() []expr.Any {
	return []expr.Any{&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true}, is(native(unix.RTN_LOCAL))}
}

// bits: of the value in the register, these are set.
func bits(v uint32) []expr.Any {
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native(v), Xor: native(0)},
		isNot(native(0)),
	}
}

func ctBits(key expr.CtKey, v uint32) []expr.Any {
	return append([]expr.Any{&expr.Ct{Key: key, Register: reg}}, bits(v)...)
}
func ctInvalid() []expr.Any {
	return ctBits(expr.CtKeySTATE, expr.CtStateBitINVALID)
}
func ctNew() []expr.Any  { return ctBits(expr.CtKeySTATE, expr.CtStateBitNEW) }
func ctDnat() []expr.Any { return ctBits(expr.CtKeySTATUS, 1<<5) } // IPS_DST_NAT
func ctNotDnat() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native(1 << 5), Xor: native(0)},
		is(native(0)),
	}
}
func ctMarked() []expr.Any {
	return ctBits(expr.CtKeyMARK, markBit)
}
func ctReply() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, is([]byte{1})}
}

// markFromConnection: meta mark set ct mark
func markFromConnection() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg},
	}
}

func in(set string) expr.Any    { return &expr.Lookup{SourceRegister: reg, SetName: set} }
func notIn(set string) expr.Any { return &expr.Lookup{SourceRegister: reg, SetName: set, Invert: true} }

// from looks the register up in a map; the value goes to the register.
func from(set string) expr.Any {
	return &expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: set}
}

// portKeyLoaded puts protocol and destination port where concatenated keys have them.
func portKeyLoaded() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Payload{DestRegister: regPort, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func leave() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }
func drop() []expr.Any    { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func notrack() []expr.Any { return []expr.Any{&expr.Notrack{}} }
func counter() []expr.Any { return []expr.Any{&expr.Counter{}} }

func snat(to netip.Addr) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if to.Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: family, RegAddrMin: reg},
	}
}

// clampMSS: tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu
func clampMSS() []expr.Any {
	return exprs(protocol(unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{0x06}, Xor: []byte{0}},
		is([]byte{0x02}),
		&expr.Rt{Register: reg, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: reg, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	})
}
