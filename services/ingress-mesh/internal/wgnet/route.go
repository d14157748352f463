package wgnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"skep.dev/libs/fault"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// route makes the namespace lead packets between the bridge and the device.
func route(h *netlink.Handle, ns netns.NsHandle, n Network, mtu int, peers map[wgtypes.Key]Peer) error {
	br, err := h.LinkByName(bridgeName)
	if gone(err) {
		return fault.Unavailable("the network's bridge is missing, until the network is set up again")
	}
	if err != nil {
		return fmt.Errorf("look up the network's bridge: %w", err)
	}
	wg, err := h.LinkByName(deviceName)
	if err != nil {
		return fmt.Errorf("look up the WireGuard device: %w", err)
	}
	six := n.Subnet6.IsValid()
	if err := nsfs.Inside(ns, func() error { return settle(six) }); err != nil {
		return err
	}
	if six { // its own address, if it has one, is nobody's business
		if err := h.LinkSetIP6AddrGenMode(wg, nl.IN6_ADDR_GEN_MODE_NONE); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("keep the WireGuard device from making an IPv6 address: %w", err)
		}
	}
	lo, err := h.LinkByName("lo")
	if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		// A namespace without any address of its own takes every address for a broadcast one.
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set the namespace's loopback up: %w", err)
	}
	if wg.Attrs().MTU != mtu {
		if err := h.LinkSetMTU(wg, mtu); err != nil {
			return fmt.Errorf("set the MTU of the WireGuard device to %d: %w", mtu, err)
		}
	}
	if wg.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(wg); err != nil {
			return fmt.Errorf("set the WireGuard device up: %w", err)
		}
	}
	want := map[netip.Prefix]int{n.Subnet.Masked(): br.Attrs().Index}
	if six {
		want[n.Subnet6.Masked()] = br.Attrs().Index
	}
	for _, a := range n.Own {
		want[netip.PrefixFrom(a, a.BitLen())] = br.Attrs().Index
	}
	for _, p := range peers {
		for _, b := range p.Blocks {
			want[b] = wg.Attrs().Index
		}
	}
	if err := setRoutes(h, want, wg.Attrs().Index, br.Attrs().Index); err != nil || !six {
		return err
	}
	return setProxies(h, br.Attrs().Index, n.Remotes6)
}

// settle makes the namespace forward, and the bridge answer at once for addresses behind the device.
func settle(six bool) error {
	want := [][2]string{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv4/conf/all/rp_filter", "0"}, // the greater of this and the device's counts
		{"net/ipv4/conf/" + deviceName + "/rp_filter", "0"},
		{"net/ipv4/conf/" + bridgeName + "/rp_filter", "1"}, // a task speaks as itself
		{"net/ipv4/conf/" + bridgeName + "/send_redirects", "0"},
		{"net/ipv4/conf/all/send_redirects", "0"},
		{"net/ipv4/neigh/" + bridgeName + "/proxy_delay", "0"},
		{"net/ipv4/conf/" + bridgeName + "/proxy_arp", "1"},
	}
	if six {
		want = append(want, [][2]string{
			{"net/ipv6/conf/" + bridgeName + "/accept_dad", "0"},
			{"net/ipv6/conf/" + bridgeName + "/accept_ra", "0"},
			{"net/ipv6/conf/all/forwarding", "1"},
			{"net/ipv6/neigh/" + bridgeName + "/proxy_delay", "0"},
			{"net/ipv6/conf/" + bridgeName + "/proxy_ndp", "1"},
			{"net/ipv6/conf/" + bridgeName + "/disable_ipv6", "0"},
			{"net/ipv6/conf/" + deviceName + "/disable_ipv6", "0"},
		}...)
	}
	for _, s := range want {
		if err := nsfs.Setting(s[0], s[1]); err != nil {
			if !six && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return err
		}
	}
	return nil
}

// setRoutes writes the differences; routes to the device that nobody wants go, and those to single addresses on the bridge.
func setRoutes(h *netlink.Handle, want map[netip.Prefix]int, wg, bridge int) error {
	have := map[netip.Prefix]int{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list the network's routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			p := prefixOf(*r.Dst)
			if _, wanted := want[p]; !wanted && (r.LinkIndex == wg || r.LinkIndex == bridge && p.IsSingleIP()) {
				if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("remove the route to %s: %w", p, err)
				}
				continue
			}
			have[p] = r.LinkIndex
		}
	}
	for p, index := range want {
		if have[p] == index {
			continue
		}
		dst := ipNet(p)
		r := &netlink.Route{LinkIndex: index, Dst: &dst}
		if p.Addr().Is4() {
			r.Scope = netlink.SCOPE_LINK
		}
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("write the route to %s: %w", p, err)
		}
	}
	return nil
}

// setProxies writes for which IPv6 addresses the bridge answers; of IPv4 it does by the routes.
func setProxies(h *netlink.Handle, bridge int, addrs []netip.Addr) error {
	list, err := h.NeighProxyList(bridge, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list the addresses the bridge answers for: %w", err)
	}
	want, have := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, a := range addrs {
		want[a] = true
	}
	for _, e := range list {
		a, _ := netip.AddrFromSlice(e.IP)
		if have[a] = true; !want[a] {
			if err := h.NeighDel(&netlink.Neigh{LinkIndex: bridge, Family: netlink.FAMILY_V6, Flags: netlink.NTF_PROXY, IP: e.IP}); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("stop to answer for %s: %w", a, err)
			}
		}
	}
	for a := range want {
		if !have[a] {
			if err := h.NeighSet(&netlink.Neigh{LinkIndex: bridge, Family: netlink.FAMILY_V6, Flags: netlink.NTF_PROXY, IP: a.AsSlice()}); err != nil {
				return fmt.Errorf("answer for %s: %w", a, err)
			}
		}
	}
	return nil
}
