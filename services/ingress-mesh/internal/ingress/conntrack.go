package ingress

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep.dev/libs/ipam"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// flows deletes the tracked connections for which it returns true.
type flows func(f *netlink.ConntrackFlow) bool

// MatchConntrackFlow implements the library's interface.
func (f flows) MatchConntrackFlow(c *netlink.ConntrackFlow) bool { return f(c) }

func addrOf(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func (p *Plane) deleteFlows(f flows, why string) error {
	n, err := p.nl.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
	if err != nil {
		return fmt.Errorf("delete tracked connections %s: %w", why, err)
	}
	if p.ipv6 {
		n6, err := p.nl.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET6, f)
		if err != nil {
			return fmt.Errorf("delete tracked IPv6 connections %s: %w", why, err)
		}
		n += n6
	}
	if n > 0 {
		p.cfg.Log.Debug("deleted tracked connections " + why)
	}
	return nil
}

// staleUDP are the UDP flows that go another way than the maps say. A flow keeps its first packet's way for as long as
// packets come, so a client that does not stop would never see a change.
type staleUDP struct {
	left   map[portKey]map[target]bool // backends that are none any more
	opened map[uint16]bool             // ports that had no backend before: packets went to the host itself
	six    bool                        // it is about IPv6 flows
}

// staleFlows compares the map of backends before and after.
func staleFlows(before, after slotMap) staleUDP {
	out := staleUDP{left: map[portKey]map[target]bool{}, opened: map[uint16]bool{}}
	for k, slots := range before {
		if k.proto != unix.IPPROTO_UDP {
			continue
		}
		still := map[target]bool{}
		for _, s := range after[k] {
			still[s.target] = true
		}
		for _, s := range slots {
			if s.addr.IsValid() && !still[s.target] {
				if out.left[k] == nil {
					out.left[k] = map[target]bool{}
				}
				out.left[k][s.target] = true
			}
		}
	}
	for k, slots := range after {
		if k.proto == unix.IPPROTO_UDP && len(slots) > 0 && len(before[k]) == 0 {
			out.opened[k.port] = true
		}
	}
	return out
}

func (s staleUDP) empty() bool { return len(s.left) == 0 && len(s.opened) == 0 }

// match: only what was DNATed by the mesh to a backend that left, or was not though its port is published now.
func (s staleUDP) match(local map[netip.Addr]bool) flows {
	return func(f *netlink.ConntrackFlow) bool {
		if f.Forward.Protocol != unix.IPPROTO_UDP {
			return false
		}
		dst, src := addrOf(f.Forward.DstIP), addrOf(f.Reverse.SrcIP)
		if dst.Is4() == s.six || !local[dst] && !dst.IsLoopback() {
			return false
		}
		if dst == src && f.Forward.DstPort == f.Reverse.SrcPort {
			return s.opened[f.Forward.DstPort]
		}
		return s.left[portKey{unix.IPPROTO_UDP, f.Forward.DstPort}][target{src, f.Reverse.SrcPort}]
	}
}

func (p *Plane) localAddrs() (map[netip.Addr]bool, error) {
	list, err := p.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	out := map[netip.Addr]bool{}
	for _, a := range list {
		out[addrOf(a.IP)] = true
	}
	return out, nil
}

// endLost ends the connections to tasks that are lost, once for each. The next segment of one is given a backend anew,
// which knows no such connection and resets it; without a backend the port's own refusal does. So it comes after the maps
// lead elsewhere. A task that stops is none of these: it finishes what it has.
func (p *Plane) endLost() error {
	lost, fresh := map[netip.Addr]bool{}, false
	for _, a := range p.state.Lost {
		lost[a.Unmap()] = true
		fresh = fresh || !p.ended[a.Unmap()]
	}
	if fresh {
		err := p.deleteFlows(func(f *netlink.ConntrackFlow) bool {
			dst, src := addrOf(f.Forward.DstIP), addrOf(f.Reverse.SrcIP)
			return lost[src] && !p.ended[src] && dst != src
		}, "to tasks of nodes that are down")
		if err != nil {
			return err
		}
	}
	p.ended = lost
	return nil
}

// Forget ends the tracked connections of a task's address: the task is gone, and the address may be given to another
// one. It is for the time after the drain; until then TCP connections to a backend that left the map go on.
func (p *Plane) Forget(addr netip.Addr) error {
	addr = addr.Unmap()
	addr6 := ipam.NodeAddr6(addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	return nsfs.Inside(p.home, func() error {
		return errors.Join(p.expel(addr), p.deleteFlows(func(f *netlink.ConntrackFlow) bool {
			to, by := addrOf(f.Reverse.SrcIP), addrOf(f.Forward.SrcIP)
			return to == addr || by == addr || to == addr6 || by == addr6
		}, "of "+addr.String()))
	})
}
