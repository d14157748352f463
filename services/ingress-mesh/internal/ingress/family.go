package ingress

import (
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// family is what differs between the two kinds of addresses a port is published at.
type family struct {
	name                     string
	number                   byte
	ports, backends, refused string // sets
	published                string // and that of all ports
	hosts                    string // and that of ports of one address
	prefix                   string // of the names of chains that draw
	targetPort               uint32 // the register of the port behind a backend's address
}

var (
	inet4 = &family{"IPv4", unix.NFPROTO_IPV4, setPorts, setBackends, setRefused, setPublished, setHosts, "pick", regPort}
	inet6 = &family{"IPv6", unix.NFPROTO_IPV6, setPorts6, setBackends6, setRefused6, setPublished6, setHosts6, "pick6", regPort6}
)

func (f *family) pickName(n int) string { return fmt.Sprintf("%s-%d", f.prefix, n) }

// pick draws one of n backends of the port the packet is for, and sends the connection there. Number 0 is there for as
// long as the port has any: a packet that drew just before a change may look up after it what is no more.
func (f *family) pick(n int) chain {
	send := func(index expr.Any) []expr.Any {
		return exprs(portKeyLoaded(), []expr.Any{
			index,
			from(f.backends),
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.number), RegAddrMin: reg, RegProtoMin: f.targetPort, Specified: true},
		})
	}
	first := send(&expr.Immediate{Register: regIndex, Data: native(0)})
	c := chain{name: f.pickName(n)}
	if n > 1 {
		c.rules = append(c.rules, rule{fmt.Sprintf("one of %d", n), send(&expr.Numgen{Register: regIndex, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM})})
	}
	return chain{c.name, nil, append(c.rules, rule{"the first", first})}
}

// missed drops what is for a published port and was not translated: TCP sends it again, while the host would refuse it,
// or have another program hear it. Invalid packets are not translated either; the host's reset would end a connection.
func (f *family) missed() rule {
	return rule{"published, but not translated", exprs(isFamily(f.number), ctBits(expr.CtKeySTATE, expr.CtStateBitNEW|expr.CtStateBitINVALID),
		localDestination(), portKeyLoaded(), []expr.Any{in(f.published)}, counter(), drop())}
}

// refuse are the rules for published ports without a backend.
func (f *family) refuse() []rule {
	return []rule{
		{"published without a backend", exprs(isFamily(f.number), ctNew(), localDestination(), protocol(unix.IPPROTO_TCP), portKeyLoaded(), []expr.Any{in(f.refused)},
			counter(), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})},
		{"published without a backend", exprs(isFamily(f.number), ctNew(), localDestination(), portKeyLoaded(), []expr.Any{in(f.refused)},
			counter(), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}})},
	}
}

// goTo jumps to the chain a map of verdicts has for what is in the registers.
func goTo(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, DestRegister: 0, IsDestRegSet: true, SetName: set}}
}
