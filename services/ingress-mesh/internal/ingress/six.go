package ingress

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// minMTU6 is the smallest link IPv6 works on.
const minMTU6 = 1280

// look finds out what kind of host this is at the moment, and has all rules compared when that changed.
func (p *Plane) look() error {
	ipv6, err := p.hasIPv6()
	if err != nil {
		return err
	}
	if filtered := bridgeFilter(); ipv6 != p.ipv6 || filtered != p.filtered.Load() {
		p.ipv6, p.pending, p.known = ipv6, true, snapshot{}
		p.filtered.Store(filtered)
	}
	return nil
}

// hasIPv6: the bridge has the gateway's IPv6 address, for who made it gave it one, and nobody switched IPv6 off since.
// Where it has none, nothing of IPv6 is looked at.
func (p *Plane) hasIPv6() (bool, error) {
	bridge, err := findLink(p.nl, p.cfg.Bridge)
	if err != nil || bridge == nil || p.cfg.mtu() < minMTU6 {
		return false, err
	}
	list, err := p.nl.AddrList(bridge, netlink.FAMILY_V6)
	if err != nil {
		return false, fmt.Errorf("list the IPv6 addresses of %s: %w", p.cfg.Bridge, err)
	}
	for _, a := range list {
		if addrOf(a.IP) == p.cfg.gateway6() {
			return true, nil
		}
	}
	return false, nil
}

// loopbackSteps let [::1]:port be answered from elsewhere, as route_localnet does for 127.0.0.1: the kernel takes a packet
// for ::1 from a link only if it has a route by that very link. One that has ::1 when it comes in is dropped before, which
// is why this does not help where packets are translated in the bridge.
func (p *Plane) loopbackSteps() (add []step, err error) {
	if !p.ipv6 || p.filtered.Load() {
		return nil, nil
	}
	have, err := p.nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the local IPv6 routes: %w", err)
	}
	for i, name := range []string{p.cfg.Bridge, Link} {
		l, err := findLink(p.nl, name)
		if err != nil || l == nil { // it is in linkSteps' findings
			return nil, err
		}
		index := l.Attrs().Index
		if slices.ContainsFunc(have, func(r netlink.Route) bool { return r.LinkIndex == index && prefixOf(r.Dst) == loopback6 }) {
			continue
		}
		add = append(add, step{fmt.Sprintf("replies for ::1 are not taken from %s", name), func() error {
			// After lo's own route, and each with a metric of its own, for they have no gateway to tell them apart.
			r := &netlink.Route{LinkIndex: index, Dst: ipNet(loopback6), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Priority: metric6 + i}
			if err := p.nl.RouteAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add route local %s dev %s: %w", loopback6, name, err)
			}
			return nil
		}})
	}
	return add, nil
}

// removeLoopback takes the bridge's back; the fabric's goes with the link.
func (p *Plane) removeLoopback(bridge int) error {
	r := &netlink.Route{LinkIndex: bridge, Dst: ipNet(loopback6), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Priority: metric6}
	switch err := p.nl.RouteDel(r); {
	case err == nil, errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return nil
	default:
		return fmt.Errorf("remove route local %s: %w", loopback6, err)
	}
}

const forwarding6 = "net/ipv6/conf/all/forwarding"

// wantedSysctls6, in the order in which they are set. The fabric has no IPv6 address of its own.
func (p *Plane) wantedSysctls6() []sysctl {
	conf := func(link, key string) string { return "net/ipv6/conf/" + link + "/" + key }
	return []sysctl{
		{conf(Link, "addr_gen_mode"), "1", false},
		{conf(Link, "accept_ra"), "0", false},
		{conf(Link, "disable_ipv6"), "0", false},
		// A task must not tell the host what its default route is.
		{conf(p.cfg.Bridge, "accept_ra"), "0", false},
		{forwarding6, "1", false},
		{conf(Link, "forwarding"), "1", false},
		{conf(p.cfg.Bridge, "forwarding"), "1", false},
	}
}

// setSysctl sets one. A host that begins to forward IPv6 stops listening to routers, which may be where it has its own
// address and its default route from: links of which that is so are told to go on.
func (p *Plane) setSysctl(s sysctl) error {
	if s.path == forwarding6 {
		if err := p.keepRouters(); err != nil {
			return err
		}
	}
	return writeSysctl(s)
}

func (p *Plane) keepRouters() error {
	routes, err := p.nl.RouteList(nil, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list the IPv6 routes: %w", err)
	}
	learned := map[int]bool{}
	for _, r := range routes {
		if r.Protocol == unix.RTPROT_RA {
			learned[r.LinkIndex] = true
		}
	}
	addrs, err := p.nl.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list the IPv6 addresses: %w", err)
	}
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unix.IFA_F_PERMANENT == 0 {
			learned[a.LinkIndex] = true
		}
	}
	for index := range learned {
		l, err := p.nl.LinkByIndex(index)
		if err != nil || l.Attrs().Flags&net.FlagLoopback != 0 {
			continue // it went away meanwhile
		}
		path := filepath.Join("net/ipv6/conf", l.Attrs().Name, "accept_ra")
		if v, err := readSysctl(path); err != nil || v != "1" {
			continue // somebody else listens to routers, or nobody does
		}
		if err := writeSysctl(sysctl{path, "2", false}); err != nil {
			return err
		}
	}
	return nil
}
