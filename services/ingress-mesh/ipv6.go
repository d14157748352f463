package mesh

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/ipam"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// Tasks have IPv6 on skep0 where their host has it, for clients of published ports and for the way out. An address
// follows from the IPv4 one (ipam.NodeAddr6): none is allocated, and a record only notes that the task was given it.

// minMTU6 is the underlay's MTU with which IPv6 works: 1280 inside the largest VXLAN headers.
const minMTU6 = 1280 + 70

// hostHasIPv6: the kernel knows it, and it is not switched off.
func hostHasIPv6() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && bytes.HasPrefix(b, []byte("0"))
}

// noteIPv6 keeps whether tasks get IPv6. A host on which it cannot be set up is one without it: said once.
func (s *Service) noteIPv6(bridge netlink.Link, mtu int) {
	if !hostHasIPv6() || mtu < minMTU6 {
		s.ipv6.Store(false)
		return
	}
	err := s.ensureGateway6(bridge)
	s.ipv6.Store(err == nil)
	switch before := s.ipv6Trouble; {
	case err == nil:
		s.ipv6Trouble = ""
	case err.Error() != before:
		s.ipv6Trouble = err.Error()
		s.log.Warn("the host has IPv6 and tasks get none: ports are published over IPv4 alone", zap.Error(err))
	}
}

// settings6 make a link ready at once, by addresses it is given and not by those it hears of.
func settings6(link string) error {
	for _, s := range [][2]string{{"accept_ra", "0"}, {"accept_dad", "0"}, {"dad_transmits", "0"}, {"disable_ipv6", "0"}} {
		if err := nsfs.Setting("net/ipv6/conf/"+link+"/"+s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// ensureGateway6 gives the bridge the gateway's IPv6 address and takes those of an earlier subnet away.
func (s *Service) ensureGateway6(bridge netlink.Link) error {
	if err := settings6(Bridge); err != nil {
		return err
	}
	want := s.address6(s.gateway)
	have, err := s.nl.AddrList(bridge, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list the IPv6 addresses of %s: %w", Bridge, err)
	}
	found := false
	for _, a := range have {
		if a.IPNet.String() == want.String() {
			found = true
		} else if ip, ok := netip.AddrFromSlice(a.IP); ok && ipam.Nodes6.Contains(ip) {
			if err := s.nl.AddrDel(bridge, &a); err != nil {
				return fmt.Errorf("remove address %s of an earlier subnet from %s: %w", a.IPNet, Bridge, err)
			}
		}
	}
	if found {
		return nil
	}
	if err := s.nl.AddrAdd(bridge, &netlink.Addr{IPNet: want, Flags: unix.IFA_F_NODAD}); err != nil {
		return fmt.Errorf("add address %s to %s: %w", want, Bridge, err)
	}
	return nil
}

// address6 is the IPv6 address that goes with an IPv4 one of the node's subnet, with the subnet's length.
func (s *Service) address6(a netip.Addr) *net.IPNet { return ipNet(s.prefix6(a)) }

func (s *Service) prefix6(a netip.Addr) netip.Prefix {
	return netip.PrefixFrom(ipam.NodeAddr6(a), ipam.NodeSubnet6(s.subnet).Bits())
}

// configure6 gives a task's eth0 its IPv6 address and a way out, which replies to clients take too.
func (s *Service) configure6(h *netlink.Handle, dev netlink.Link, rec record) error {
	addr := &netlink.Addr{IPNet: s.address6(rec.Address), Flags: unix.IFA_F_NODAD}
	if err := h.AddrReplace(dev, addr); err != nil {
		return fmt.Errorf("add address %s: %w", addr.IPNet, err)
	}
	route := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0)), Gw: ipam.NodeAddr6(s.gateway).AsSlice()}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("add the default route of IPv6: %w", err)
	}
	return nil
}

// address6Of is a task's IPv6 address on skep0, invalid where it has none.
func (r record) address6Of() netip.Addr {
	if !r.IPv6 {
		return netip.Addr{}
	}
	return ipam.NodeAddr6(r.Address)
}
