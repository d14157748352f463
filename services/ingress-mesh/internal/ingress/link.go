package ingress

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// step is something that is not as it should be, outside nftables, and what mends it.
type step struct {
	what string
	do   func() error
}

const (
	// replyTable routes what is marked; see dummyNextHop.
	replyTable = 4000
	// rulePriority is the ip rule's, before the main table's and after the local table's.
	rulePriority = 100
)

// The dummies stand for the entry node in the one route of replies. Nothing is ever sent to them.
var (
	dummyNextHop  = netip.AddrFrom4([4]byte{169, 254, 83, 75})
	dummyNextHop6 = nextHop6(0xffff)
)

// nextHop is the address a node has on the fabric: the first of its subnet, which no task gets.
func nextHop(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr() }

// nextHop6 is what stands for a node in IPv6 routes: the link-local address that goes with its MAC. No node has it, nor
// any other IPv6 address on the fabric; routes need none.
func nextHop6(number uint16) netip.Addr {
	m := fabricMAC(number)
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func findLink(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", name, err)
	}
	return l, nil
}

// linkSteps make skin0 what it should be. They are done before the rest of the kernel is looked at.
func (p *Plane) linkSteps() ([]step, error) {
	bridge, err := findLink(p.nl, p.cfg.Bridge)
	if err == nil && bridge == nil {
		err = fmt.Errorf("bridge %s is not there: it must be made before ports are published", p.cfg.Bridge)
	}
	if err != nil {
		return nil, err
	}
	l, err := findLink(p.nl, Link)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return []step{{"link " + Link + " is missing", p.makeLink}}, nil
	}
	v, ok := l.(*netlink.Vxlan)
	if !ok {
		return nil, fmt.Errorf("the host has a link named %s that is a %s, not a VXLAN: rename or remove it", Link, l.Type())
	}
	if why := p.wrongLink(v); why != "" {
		return []step{{fmt.Sprintf("link %s has another %s", Link, why), func() error {
			if err := p.nl.LinkDel(v); err != nil {
				return fmt.Errorf("remove link %s: %w", Link, err)
			}
			return p.makeLink()
		}}}, nil
	}
	var out []step
	if v.MTU != p.cfg.mtu() {
		out = append(out, step{fmt.Sprintf("link %s has MTU %d, not %d", Link, v.MTU, p.cfg.mtu()), func() error { return p.nl.LinkSetMTU(v, p.cfg.mtu()) }})
	}
	if v.Flags&net.FlagUp == 0 {
		out = append(out, step{"link " + Link + " is down", func() error { return p.nl.LinkSetUp(v) }})
	}
	return out, nil
}

// wrongLink names what cannot be changed in place.
func (p *Plane) wrongLink(v *netlink.Vxlan) string {
	switch {
	case v.VxlanId != vni:
		return "VNI"
	case v.Port != int(p.cfg.Port):
		return "port"
	case v.Learning:
		return "learning mode"
	case !bytes.Equal(v.HardwareAddr, fabricMAC(p.cfg.Number)):
		return "MAC"
	}
	if a, ok := netip.AddrFromSlice(v.SrcAddr); !ok || a.Unmap() != p.cfg.Underlay {
		return "local address"
	}
	return ""
}

func (p *Plane) makeLink() error {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.HardwareAddr = Link, p.cfg.mtu(), fabricMAC(p.cfg.Number)
	v := &netlink.Vxlan{LinkAttrs: a, VxlanId: vni, SrcAddr: p.cfg.Underlay.AsSlice(), Port: int(p.cfg.Port), Learning: false, UDPCSum: true}
	err := p.nl.LinkAdd(v)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make link %s: another VXLAN of this host has VNI %d on port %d: remove it, or make the cluster with another --data-path-port: %w", Link, vni, p.cfg.Port, err)
	}
	if err != nil {
		return fmt.Errorf("make link %s: %w", Link, err)
	}
	l, err := p.nl.LinkByName(Link)
	if err != nil {
		return fmt.Errorf("look up link %s: %w", Link, err)
	}
	// Without router solicitations and listener reports: nobody would get them. A node with IPv6 switches it on, quietly.
	if err := writeSysctl(sysctl{"net/ipv6/conf/" + Link + "/disable_ipv6", "1", true}); err != nil {
		return err
	}
	if err := p.nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", Link, err)
	}
	return nil
}

// ruleSteps keep the rules that lead replies into skin0.
func (p *Plane) ruleSteps() (out []step, err error) {
	for _, f := range p.netFamilies() {
		rules, err := p.nl.RuleList(f)
		if err != nil {
			return nil, fmt.Errorf("list ip rules: %w", err)
		}
		if slices.ContainsFunc(rules, isReplyRule) {
			continue
		}
		out = append(out, step{"ip rule for replies is missing", func() error {
			if err := p.nl.RuleAdd(replyRule(f)); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add the ip rule for replies: %w", err)
			}
			return nil
		}})
	}
	return out, nil
}

func replyRule(family int) *netlink.Rule {
	r, mask := netlink.NewRule(), uint32(markBit)
	r.Family, r.Priority, r.Mark, r.Mask, r.Table = family, rulePriority, markBit, &mask, replyTable
	return r
}

func isReplyRule(r netlink.Rule) bool {
	return r.Priority == rulePriority && r.Table == replyTable && r.Mark == markBit && r.Mask != nil && *r.Mask == markBit &&
		r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == "" && !r.Invert
}

// removeRule takes the rules away; with anything else on it, one is not ours.
func (p *Plane) removeRule() error {
	for _, f := range p.netFamilies() {
		rules, err := p.nl.RuleList(f)
		if errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6
			continue
		}
		if err != nil {
			return fmt.Errorf("list ip rules: %w", err)
		}
		for _, r := range rules {
			if isReplyRule(r) {
				if err := p.nl.RuleDel(replyRule(f)); err != nil && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("remove the ip rule for replies: %w", err)
				}
			}
		}
	}
	return nil
}

func (p *Plane) removeLink() error {
	l, err := findLink(p.nl, Link)
	if err != nil || l == nil || l.Type() != "vxlan" {
		return err
	}
	if err := p.nl.LinkDel(l); err != nil {
		return fmt.Errorf("remove link %s: %w", Link, err)
	}
	return nil // routes and neighbours, table 4000's among them, went with it
}
