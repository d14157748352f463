package ingress

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A port that a task publishes at one address of its host alone is looked up by that address, before those of all
// addresses, and leads to the task at once: there is nothing to draw. What is for it while no task has it is the host's own.

// hostKey is a port of one of the host's addresses.
type hostKey struct {
	portKey
	at netip.Addr
}

func (k hostKey) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.at, k.port), protocolName(k.proto))
}

// raw is the key as the kernel has it, see portKey.raw.
func (k hostKey) raw() string {
	return string([]byte{k.proto, 0, 0, 0}) + string(k.at.AsSlice()) + string([]byte{byte(k.port >> 8), byte(k.port), 0, 0})
}

func hostKeyOf(raw string) (k hostKey, ok bool) {
	if len(raw) != 12 && len(raw) != 24 {
		return k, false
	}
	end := len(raw) - 4
	k.at, ok = netip.AddrFromSlice([]byte(raw[4:end]))
	k.portKey = portKey{raw[0], binary.BigEndian.Uint16([]byte(raw[end:]))}
	return k, ok
}

// hostMap is who has such ports.
type hostMap map[hostKey]slot

// hostMaps are the ports at single addresses: the first task that asks for one has it.
func (p *plan) hostMaps(st State, ipv6 bool) hostMap {
	out := hostMap{}
	for _, h := range st.HostPorts {
		if !h.At.IsValid() {
			continue
		}
		k := hostKey{portKey{protocolNumber(h.Protocol), h.Published}, h.At.Unmap()}
		to := slot{target{h.Addr.Unmap(), h.Target}, h.Task}
		if k.at.Is6() {
			to.addr = h.Addr6
		}
		switch had, taken := out[k]; {
		case k.proto == 0 || k.port == 0 || h.Target == 0:
			p.problems = append(p.problems, fmt.Sprintf("task %s publishes %s:%d/%s on its node, which is no port: it is left out", h.Task, h.At, h.Published, h.Protocol))
		case !to.addr.IsValid() || k.at.Is6() && !ipv6:
			p.problems = append(p.problems, fmt.Sprintf("task %s publishes %s on its node and has no address of that kind: it is left out", h.Task, k))
		case taken:
			p.problems = append(p.problems, fmt.Sprintf("port %s is published by tasks %s and %s on this node: the first has it", k, had.task, h.Task))
		default:
			out[k] = to
		}
	}
	return out
}

func (m hostMap) elements() map[string]elements {
	out := map[string]elements{setHosts: {}, setHosts6: {}}
	for k, s := range m {
		set := setHosts
		if k.at.Is6() {
			set = setHosts6
		}
		out[set][k.raw()] = element{val: s.target.raw(), comment: clip(s.task)}
	}
	return out
}

// hosts reads the maps back.
func (s snapshot) hosts() hostMap {
	out := hostMap{}
	if s.host == nil {
		return out
	}
	for _, set := range []string{setHosts, setHosts6} {
		for raw, e := range s.host.sets[set] {
			k, ok := hostKeyOf(raw)
			if t, valid := targetOf(e.val); ok && valid {
				out[k] = slot{t, e.comment}
			}
		}
	}
	return out
}

// oneAddress sends what is for a port of one address to the task that has it.
func (f *family) oneAddress() rule {
	return rule{"published at one address", exprs(isFamily(f.number), f.atOneAddress(), []expr.Any{
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.number), RegAddrMin: reg, RegProtoMin: f.targetPort, Specified: true},
	})}
}

// oneAddressStrays drops what is for such a port and no part of a connection: the host would answer with a reset, which
// ends the client's connection with the task.
func (f *family) oneAddressStrays() rule {
	return rule{"strays for ports at one address", exprs(isFamily(f.number), ctInvalid(), f.atOneAddress(), counter(), drop())}
}

// atOneAddress: the packet is for a port of one address. The task's address and port go to the registers.
func (f *family) atOneAddress() []expr.Any {
	offset, size, regDport := uint32(daddr4), uint32(4), uint32(regIndex)
	if f == inet6 {
		offset, size, regDport = daddr6, 16, regPort+4
	}
	return exprs(localDestination(), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Payload{DestRegister: regPort, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Payload{DestRegister: regDport, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		from(f.hosts),
	})
}

// staleHosts are the UDP flows to ports at one address that go another way than these are to go now, nil if nothing changed.
func staleHosts(before, after hostMap) flows {
	changed := map[hostKey]bool{}
	for _, m := range []hostMap{before, after} {
		for k := range m {
			if k.proto == unix.IPPROTO_UDP && before[k].target != after[k].target {
				changed[k] = true
			}
		}
	}
	if len(changed) == 0 {
		return nil
	}
	return func(f *netlink.ConntrackFlow) bool {
		k := hostKey{portKey{unix.IPPROTO_UDP, f.Forward.DstPort}, addrOf(f.Forward.DstIP)}
		return f.Forward.Protocol == unix.IPPROTO_UDP && changed[k] && after[k].target != target{addrOf(f.Reverse.SrcIP), f.Reverse.SrcPort}
	}
}

// hostStates are these ports as the kernel has them.
func hostStates(s snapshot) (out []PortState) {
	for _, set := range []string{setHosts, setHosts6} {
		for raw, e := range s.host.sets[set] {
			k, ok := hostKeyOf(raw)
			if t, valid := targetOf(e.val); ok && valid {
				out = append(out, PortState{Protocol: protocolName(k.proto), Port: k.port, At: k.at, HostMode: true, Connections: e.packets,
					Backends: []BackendState{{t.addr, t.port, e.comment, e.packets}}})
			}
		}
	}
	return out
}
