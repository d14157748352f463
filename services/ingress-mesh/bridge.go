package mesh

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"skep.dev/libs/ipam"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// macOf is the address every interface of ours has: 02:42 and the IPv4 address.
func macOf(a netip.Addr) net.HardwareAddr {
	m := ipam.MAC(a)
	return m[:]
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func notFound(err error) bool {
	var e netlink.LinkNotFoundError
	return errors.As(err, &e)
}

// ensureBridge makes skep0 with the gateway's address and returns its index.
func (s *Service) ensureBridge(mtu int) (int, error) {
	l, err := s.nl.LinkByName(Bridge)
	if notFound(err) {
		a := netlink.NewLinkAttrs()
		// A fixed MAC: otherwise the bridge takes a port's and changes it as tasks come and go.
		a.Name, a.MTU, a.HardwareAddr = Bridge, mtu, macOf(s.gateway)
		if err := s.nl.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
			return 0, fmt.Errorf("make bridge %s: %w", Bridge, err)
		}
		l, err = s.nl.LinkByName(Bridge)
	}
	if err != nil {
		return 0, fmt.Errorf("look up bridge %s: %w", Bridge, err)
	}
	if l.Type() != "bridge" {
		return 0, fmt.Errorf("the host has a link named %s that is a %s, not a bridge: rename or remove it", Bridge, l.Type())
	}
	if !bytes.Equal(l.Attrs().HardwareAddr, macOf(s.gateway)) {
		if err := s.nl.LinkSetHardwareAddr(l, macOf(s.gateway)); err != nil {
			return 0, fmt.Errorf("set the MAC of %s: %w", Bridge, err)
		}
	}
	if l.Attrs().MTU != mtu {
		if err := s.nl.LinkSetMTU(l, mtu); err != nil {
			return 0, fmt.Errorf("set the MTU of %s to %d: %w", Bridge, mtu, err)
		}
	}
	if err := s.ensureGateway(l); err != nil {
		return 0, err
	}
	s.noteIPv6(l, mtu)
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := s.nl.LinkSetUp(l); err != nil {
			return 0, fmt.Errorf("set %s up: %w", Bridge, err)
		}
	}
	return l.Attrs().Index, nil
}

// ensureGateway gives the bridge the gateway's address and takes those of an earlier subnet away.
func (s *Service) ensureGateway(l netlink.Link) error {
	want := ipNet(netip.PrefixFrom(s.gateway, s.subnet.Bits()))
	have, err := s.nl.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", Bridge, err)
	}
	found := false
	for _, a := range have {
		if a.IPNet.String() == want.String() {
			found = true
			continue
		}
		if err := s.nl.AddrDel(l, &a); err != nil {
			return fmt.Errorf("remove address %s of an earlier subnet from %s: %w", a.IPNet, Bridge, err)
		}
	}
	if found {
		return nil
	}
	if err := s.nl.AddrAdd(l, &netlink.Addr{IPNet: want}); err != nil {
		return fmt.Errorf("add address %s to %s: %w", want, Bridge, err)
	}
	return nil
}

// checkOverlap refuses a subnet the host already routes somewhere else.
func (s *Service) checkOverlap() error {
	routes, err := s.nl.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the host's routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		p := netip.PrefixFrom(a.Unmap(), bits)
		// 0/0, and 0/1 with 128/1, are ways to say "everything else".
		if !ok || bits <= 1 || !p.Overlaps(s.subnet) {
			continue
		}
		dev := ""
		if l, err := s.nl.LinkByIndex(r.LinkIndex); err == nil {
			dev = l.Attrs().Name
		}
		if dev == Bridge {
			continue
		}
		return fmt.Errorf("node subnet %s overlaps the route %s dev %s of this host: make the cluster with another pool (skep init --node-subnet-pool CIDR), or remove the route",
			s.subnet, p, dev)
	}
	return nil
}

// underlayMTU is the MTU of the interface that carries the node's traffic.
func (s *Service) underlayMTU() (int, error) {
	index, err := s.underlayIndex()
	if err != nil {
		return 0, err
	}
	if index == 0 {
		return 1500, nil
	}
	l, err := s.nl.LinkByIndex(index)
	if err != nil {
		return 0, fmt.Errorf("look up the underlay interface: %w", err)
	}
	return max(min(l.Attrs().MTU, 9216), 576), nil
}

func (s *Service) underlayIndex() (int, error) {
	if s.under.IsValid() {
		all, err := s.nl.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return 0, fmt.Errorf("list the host's addresses: %w", err)
		}
		for _, a := range all {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == s.under {
				return a.LinkIndex, nil
			}
		}
	}
	routes, err := s.nl.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return 0, fmt.Errorf("list the host's routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			return r.LinkIndex, nil
		}
	}
	return 0, nil
}

// addressFinding adds that the address other nodes reach this one's containers by is none of this machine's.
func (s *Service) addressFinding(out *skepv1.MeshStateReply) {
	if !s.under.IsValid() {
		return
	}
	all, err := s.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return // a list that cannot be read says nothing of the address
	}
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == s.under {
			return
		}
	}
	out.Findings = append(out.Findings, &skepv1.MeshFinding{Severity: severityError, Subject: "address", Text: fmt.Sprintf(
		"%s, the data path address of this node, is no address of this machine any more, so its containers reach no other node: stop skep there and start it once with `skep node run --advertise-addr ADDRESS` (or --data-path-addr)", s.under)})
}

// enableForwarding lets the host route between its bridge and its interfaces.
func enableForwarding() error {
	if err := nsfs.Setting("net/ipv4/ip_forward", "1"); err != nil {
		return fmt.Errorf("switch IP forwarding on: %w", err)
	}
	return nil
}
