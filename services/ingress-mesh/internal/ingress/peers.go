package ingress

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep.dev/libs/ipam"
)

// fabric is what is kept on skin0: an address, a neighbour for each peer and the dummy, where each MAC is, and routes.
type fabric struct {
	addr   netip.Prefix
	neighs map[netip.Addr]string       // next hop → MAC
	fdb    map[string]netip.Addr       // MAC → underlay
	routes map[netip.Prefix]netip.Addr // of both families, as the neighbours
}

// wantedFabric has entries of IPv6 too; where the node has none, nobody looks for them.
func wantedFabric(c *Config, peers []Peer) fabric {
	f := fabric{
		addr:   netip.PrefixFrom(nextHop(c.Subnet), 32),
		neighs: map[netip.Addr]string{dummyNextHop: string(dummyMAC), dummyNextHop6: string(dummyMAC)},
		fdb:    map[string]netip.Addr{},
		routes: map[netip.Prefix]netip.Addr{},
	}
	for _, e := range peers {
		mac := string(fabricMAC(e.Number))
		f.neighs[nextHop(e.Subnet)], f.neighs[nextHop6(e.Number)] = mac, mac
		f.fdb[mac] = e.Underlay
		f.routes[e.Subnet], f.routes[ipam.NodeSubnet6(e.Subnet)] = nextHop(e.Subnet), nextHop6(e.Number)
	}
	return f
}

// fabricSteps returns what to add before backends are published, and what to remove after they are not any more.
func (p *Plane) fabricSteps(peers []Peer) (add, remove []step, err error) {
	l, err := findLink(p.nl, Link)
	if err != nil {
		return nil, nil, err
	}
	if l == nil { // it is in linkSteps' findings
		return nil, nil, nil
	}
	want, index := wantedFabric(&p.cfg, peers), l.Attrs().Index
	for _, part := range []func(fabric, int) ([]step, []step, error){p.addrSteps, p.perFamily(p.neighSteps), p.fdbSteps, p.perFamily(p.routeSteps), p.perFamily(p.replyRouteSteps)} {
		a, r, err := part(want, index)
		if err != nil {
			return nil, nil, err
		}
		add, remove = append(add, a...), append(remove, r...)
	}
	return add, remove, nil
}

func (p *Plane) addrSteps(want fabric, index int) (add, remove []step, err error) {
	l := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Index: index, Name: Link}}
	have, err := p.nl.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return nil, nil, fmt.Errorf("list the addresses of %s: %w", Link, err)
	}
	found := false
	for _, a := range have {
		if a.IPNet.String() == want.addr.String() {
			found = true
			continue
		}
		remove = append(remove, step{fmt.Sprintf("%s has address %s", Link, a.IPNet), func() error { return ignoring(p.nl.AddrDel(l, &a), unix.EADDRNOTAVAIL) }})
	}
	if !found {
		add = append(add, step{fmt.Sprintf("%s lacks address %s", Link, want.addr), func() error {
			return ignoring(p.nl.AddrAdd(l, &netlink.Addr{IPNet: ipNet(want.addr)}), unix.EEXIST)
		}})
	}
	return add, remove, nil
}

// perFamily is a part that looks at one address family after the other.
func (p *Plane) perFamily(part func(want fabric, index, family int) ([]step, []step, error)) func(fabric, int) ([]step, []step, error) {
	return func(want fabric, index int) (add, remove []step, err error) {
		for _, f := range p.netFamilies() {
			a, r, err := part(want, index, f)
			if err != nil {
				return nil, nil, err
			}
			add, remove = append(add, a...), append(remove, r...)
		}
		return add, remove, nil
	}
}

// netFamilies are those the node has.
func (p *Plane) netFamilies() []int {
	if p.ipv6 {
		return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	}
	return []int{netlink.FAMILY_V4}
}

func isOf(a netip.Addr, family int) bool { return a.Is4() == (family == netlink.FAMILY_V4) }

func (p *Plane) neighSteps(want fabric, index, family int) (add, remove []step, err error) {
	have, err := p.nl.NeighList(index, family)
	if err != nil {
		return nil, nil, fmt.Errorf("list the neighbours on %s: %w", Link, err)
	}
	ok := map[netip.Addr]bool{}
	for _, n := range have {
		a, _ := netip.AddrFromSlice(n.IP)
		a = a.Unmap()
		mac, wanted := want.neighs[a]
		if wanted {
			ok[a] = n.State == netlink.NUD_PERMANENT && string(n.HardwareAddr) == mac
		} else if n.State == netlink.NUD_PERMANENT {
			remove = append(remove, step{fmt.Sprintf("%s has neighbour %s", Link, a), func() error { return ignoring(p.nl.NeighDel(&n), unix.ENOENT) }})
		}
	}
	for a, mac := range want.neighs {
		if !ok[a] && isOf(a, family) {
			add = append(add, step{fmt.Sprintf("%s lacks neighbour %s", Link, a), func() error {
				return p.nl.NeighSet(&netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: net.HardwareAddr(mac)})
			}})
		}
	}
	return add, remove, nil
}

func (p *Plane) fdbSteps(want fabric, index int) (add, remove []step, err error) {
	have, err := p.nl.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return nil, nil, fmt.Errorf("list where MACs on %s are: %w", Link, err)
	}
	ok := map[string]bool{}
	for _, n := range have {
		a, _ := netip.AddrFromSlice(n.IP)
		mac := string(n.HardwareAddr)
		if dst, wanted := want.fdb[mac]; wanted && dst == a.Unmap() && n.State&netlink.NUD_PERMANENT != 0 {
			ok[mac] = true
			continue
		} else if wanted {
			continue // it is replaced
		}
		if bytes.Equal(n.HardwareAddr, make([]byte, 6)) {
			continue
		}
		remove = append(remove, step{fmt.Sprintf("%s sends %s to %s", Link, n.HardwareAddr, a), func() error {
			n.Flags, n.Family = netlink.NTF_SELF, unix.AF_BRIDGE
			return ignoring(p.nl.NeighDel(&n), unix.ENOENT)
		}})
	}
	for mac, dst := range want.fdb {
		if !ok[mac] {
			add = append(add, step{fmt.Sprintf("%s does not send %s to %s", Link, net.HardwareAddr(mac), dst), func() error {
				return p.nl.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: dst.AsSlice(), HardwareAddr: net.HardwareAddr(mac)})
			}})
		}
	}
	return add, remove, nil
}

// metric6 is what the kernel gives IPv6 routes that have none.
const metric6 = 1024

func (p *Plane) routeSteps(want fabric, index, family int) (add, remove []step, err error) {
	src, metric := p.cfg.Gateway, 0
	if family == netlink.FAMILY_V6 {
		src, metric = p.cfg.gateway6(), metric6
	}
	have, err := p.nl.RouteListFiltered(family, &netlink.Route{LinkIndex: index, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, nil, fmt.Errorf("list the routes on %s: %w", Link, err)
	}
	ok := map[netip.Prefix]bool{}
	for _, r := range have {
		dst := prefixOf(r.Dst)
		via, _ := netip.AddrFromSlice(r.Gw)
		if family == netlink.FAMILY_V6 && r.Protocol == unix.RTPROT_KERNEL {
			continue // of the link's own addresses
		}
		if hop, wanted := want.routes[dst]; wanted {
			ok[dst] = ok[dst] || via.Unmap() == hop && r.Src.Equal(src.AsSlice()) && r.Priority == metric
			continue
		}
		remove = append(remove, step{fmt.Sprintf("route %s via %s should not be there", dst, Link), func() error { return ignoring(p.nl.RouteDel(&r), unix.ESRCH) }})
	}
	for dst, hop := range want.routes {
		if ok[dst] || !isOf(hop, family) {
			continue
		}
		add = append(add, step{fmt.Sprintf("route %s via %s is missing", dst, Link), func() error {
			// The source is one that peers have a route for: the node itself may talk to tasks elsewhere.
			r := &netlink.Route{LinkIndex: index, Dst: ipNet(dst), Gw: hop.AsSlice(), Src: src.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Table: unix.RT_TABLE_MAIN, Priority: metric}
			if err := p.nl.RouteReplace(r); err != nil {
				return fmt.Errorf("add route %s via %s dev %s src %s (does the bridge have that address?): %w", dst, hop, Link, src, err)
			}
			return nil
		}})
	}
	return add, remove, nil
}

func (p *Plane) replyRouteSteps(_ fabric, index, family int) (add, remove []step, err error) {
	all, hop := netip.PrefixFrom(netip.IPv4Unspecified(), 0), dummyNextHop
	if family == netlink.FAMILY_V6 {
		all, hop = netip.PrefixFrom(netip.IPv6Unspecified(), 0), dummyNextHop6
	}
	have, err := p.nl.RouteListFiltered(family, &netlink.Route{Table: replyTable}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, nil, fmt.Errorf("list routing table %d: %w", replyTable, err)
	}
	for _, r := range have {
		if prefixOf(r.Dst).Bits() == 0 && r.LinkIndex == index && r.Gw.Equal(hop.AsSlice()) {
			return nil, nil, nil
		}
	}
	return []step{{fmt.Sprintf("the route for replies in table %d is missing", replyTable), func() error {
		r := &netlink.Route{LinkIndex: index, Dst: ipNet(all), Gw: hop.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Table: replyTable}
		if err := p.nl.RouteReplace(r); err != nil {
			return fmt.Errorf("add the route for replies to table %d: %w", replyTable, err)
		}
		return nil
	}}}, nil, nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

// ignoring is err unless it only says that somebody was faster.
func ignoring(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}
