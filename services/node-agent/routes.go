package agent

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxRoutes is how many of the host's networks are told: the widest. State takes no more (maxRoutes there).
	maxRoutes = 128
	// maxRead bounds what is read each time: a router of the Internet has a million.
	maxRead = 20_000
	// A default route, or the halves by which VPNs say "everything else", is no network that could be avoided.
	wideRoute4, wideRoute6 = 1, 4
)

// ownLinks are the mesh's: what is behind them is the cluster's.
var ownLinks = []string{"skep0", "skin0"}

// noNetworks are what every host routes, and no network of containers.
var noNetworks = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// hostRoutes are the networks that the host of the calling thread reaches by routes of its own, in any table, none of them
// within another, in order; more is how many are not among them, or not looked at.
func hostRoutes() (routes []string, more int, err error) {
	own := map[int]bool{}
	for _, name := range ownLinks {
		if l, err := net.InterfaceByName(name); err == nil {
			own[l.Index] = true
		}
	}
	var all []netip.Prefix
	cut := false
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		err := eachRoute(family, func(dst netip.Prefix, link int) bool {
			if !own[link] && isNetwork(dst) {
				all = append(all, dst)
			}
			cut = len(all) >= maxRead
			return !cut
		})
		if err != nil {
			return nil, 0, fmt.Errorf("list the host's routes: %w", err)
		}
	}
	kept, more := condense(all)
	if cut {
		more = max(more, 1)
	}
	for _, p := range kept {
		routes = append(routes, p.String())
	}
	return routes, more, nil
}

func isNetwork(p netip.Prefix) bool {
	wide := wideRoute4
	if p.Addr().Is6() {
		wide = wideRoute6
	}
	return p.Bits() > wide && !slices.ContainsFunc(noNetworks, p.Overlaps)
}

// condense leaves out what is within another one, and the narrowest when there are too many.
func condense(all []netip.Prefix) (kept []netip.Prefix, more int) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
	})
	for _, p := range slices.Compact(all) {
		switch {
		case slices.ContainsFunc(kept, p.Overlaps): // it is no wider, so it is within
		case len(kept) == maxRoutes:
			more++
		default:
			kept = append(kept, p)
		}
	}
	slices.SortFunc(kept, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return kept, more
}

// eachRoute calls f for each route of a family to another machine, whichever table it is in, until f says no. The link is 0
// where there is more than one.
func eachRoute(family byte, f func(dst netip.Prefix, link int) bool) (err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return fmt.Errorf("set a time limit: %w", err)
	}
	ask := make([]byte, unix.SizeofNlMsghdr+unix.SizeofRtMsg)
	binary.NativeEndian.PutUint32(ask, uint32(len(ask)))
	binary.NativeEndian.PutUint16(ask[4:], unix.RTM_GETROUTE)
	binary.NativeEndian.PutUint16(ask[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	ask[unix.SizeofNlMsghdr] = family
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	for b := make([]byte, 64<<10); ; {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		messages, err := syscall.ParseNetlinkMessage(b[:n])
		if err != nil {
			return fmt.Errorf("decode: %w", err)
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				return errors.New("the kernel refuses the question")
			case unix.RTM_NEWROUTE:
				if dst, link, ok := route(&m); ok && !f(dst, link) {
					return nil
				}
			}
		}
	}
}

// route reads one message; not ok: it is no way to another machine.
func route(m *syscall.NetlinkMessage) (dst netip.Prefix, link int, ok bool) {
	if len(m.Data) < unix.SizeofRtMsg || m.Data[7] != unix.RTN_UNICAST {
		return dst, 0, false
	}
	attrs, err := syscall.ParseNetlinkRouteAttr(m)
	if err != nil {
		return dst, 0, false
	}
	addr := netip.IPv4Unspecified()
	if m.Data[0] == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			if x, is := netip.AddrFromSlice(a.Value); is {
				addr = x
			}
		case unix.RTA_OIF:
			if len(a.Value) >= 4 {
				link = int(binary.NativeEndian.Uint32(a.Value))
			}
		}
	}
	dst, err = addr.Prefix(int(m.Data[1]))
	return dst, link, err == nil
}
