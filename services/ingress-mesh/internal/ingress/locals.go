package ingress

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"skep.dev/libs/ipam"
	"skep.dev/services/ingress-mesh/internal/antispoof"
)

// The bridge and the node take nobody's word for which task has an address: a task sends as itself alone (package
// antispoof), the bridge does not learn, and what it would learn, and what the node would ask for, is written.

// Expect makes a task of this node known, before Apply or Admit: its link is there, or about to be made.
func (p *Plane) Expect(l antispoof.Port) {
	p.localMu.Lock()
	defer p.localMu.Unlock()
	p.locals[l.Link] = l
}

// Admit makes a new port of the bridge what Apply makes of every port, so that its task is apart from others, and sends
// as itself, from its first packet on. nl is the caller's.
func (p *Plane) Admit(nl *netlink.Handle, port netlink.Link, l antispoof.Port) error {
	p.localMu.Lock()
	defer p.localMu.Unlock()
	p.locals[l.Link] = l
	// Before the first Apply not all tasks are known: the table would silence the others.
	if p.guarding.Load() {
		if _, err := p.guard.Apply(p.senders()); err != nil {
			return err
		}
	}
	set := nl.LinkSetIsolated
	if p.filtered.Load() {
		set = nl.LinkSetHairpin
	}
	if err := set(port, true); err != nil {
		return err
	}
	if err := nl.NeighSet(forwarding(l, port.Attrs().Index)); err != nil {
		return fmt.Errorf("tell the bridge where task %s is: %w", l.Addr, err)
	}
	if err := nl.LinkSetLearning(port, false); err != nil {
		return err
	}
	if err := nl.LinkSetFlood(port, false); err != nil {
		return err
	}
	for _, n := range neighbours(l, port.Attrs().MasterIndex) {
		if err := nl.NeighSet(n); err != nil {
			return fmt.Errorf("write neighbour %s: %w", n.IP, err)
		}
	}
	return nil
}

// expel forgets the task that had an address.
func (p *Plane) expel(addr netip.Addr) error {
	p.localMu.Lock()
	defer p.localMu.Unlock()
	for link, l := range p.locals {
		if l.Addr != addr {
			continue
		}
		delete(p.locals, link)
		bridge, err := findLink(p.nl, p.cfg.Bridge)
		if err != nil || bridge == nil {
			return err
		}
		for _, n := range neighbours(l, bridge.Attrs().Index) {
			if err := ignoring(p.nl.NeighDel(n), unix.ENOENT); err != nil {
				return fmt.Errorf("remove neighbour %s: %w", n.IP, err)
			}
		}
	}
	if !p.guarding.Load() {
		return nil
	}
	_, err := p.guard.Apply(p.senders())
	return err
}

// senders is for who holds localMu.
func (p *Plane) senders() []antispoof.Port { return slices.Collect(maps.Values(p.locals)) }

func (p *Plane) guardPorts(level zapcore.Level) error {
	p.localMu.Lock()
	defer p.localMu.Unlock()
	found, err := p.guard.Apply(p.senders())
	if found != "" {
		p.log(level, found)
	}
	p.guarding.Store(err == nil)
	return err
}

// unguard takes back what was written for the tasks that are known.
func (p *Plane) unguard() error {
	var errs []error
	p.localMu.Lock()
	locals := p.senders()
	p.localMu.Unlock()
	p.guarding.Store(false)
	for _, l := range locals {
		errs = append(errs, p.expel(l.Addr))
	}
	return errors.Join(append(errs, p.guard.Remove())...)
}

func (p *Plane) guardFindings() ([]string, error) {
	p.localMu.Lock()
	defer p.localMu.Unlock()
	return p.guard.Verify(p.senders())
}

// ruleset is the version of the nftables ruleset without what guard wrote, which nobody else here looks at.
func (p *Plane) ruleset() (uint32, error) {
	for {
		writes := p.guard.Writes()
		gen, err := generation()
		if err != nil || writes == p.guard.Writes() {
			return gen - writes, err
		}
	}
}

// forwarding is the bridge's entry for a task.
func forwarding(l antispoof.Port, index int) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: unix.NTF_MASTER, State: unix.NUD_NOARP, HardwareAddr: hardware(l)}
}

func hardware(l antispoof.Port) net.HardwareAddr { m := ipam.MAC(l.Addr); return m[:] }

// neighbours are the node's entries for a task on the bridge with that index.
func neighbours(l antispoof.Port, bridge int) (out []*netlink.Neigh) {
	for _, a := range []netip.Addr{l.Addr, l.Addr6} {
		if a.IsValid() {
			family := netlink.FAMILY_V4
			if a.Is6() {
				family = netlink.FAMILY_V6
			}
			out = append(out, &netlink.Neigh{LinkIndex: bridge, Family: family, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: hardware(l)})
		}
	}
	return out
}

// localSteps are about where tasks of this node are, as the bridge and the node have it.
func (p *Plane) localSteps() (out []step, err error) {
	bridge, err := findLink(p.nl, p.cfg.Bridge)
	if err != nil || bridge == nil {
		return nil, err
	}
	p.localMu.Lock()
	locals := maps.Clone(p.locals)
	p.localMu.Unlock()
	ports, err := p.bridgePorts(bridge.Attrs().Index)
	if err != nil {
		return nil, err
	}
	entries, err := p.nl.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("list what bridge %s forwards: %w", p.cfg.Bridge, err)
	}
	static := map[string]bool{}
	at := func(mac net.HardwareAddr, index int) string { return fmt.Sprint(mac, index) }
	for _, e := range entries {
		if e.MasterIndex == bridge.Attrs().Index && e.State&unix.NUD_NOARP != 0 {
			static[at(e.HardwareAddr, e.LinkIndex)] = true
		}
	}
	for _, port := range ports {
		l, ok := locals[port.name]
		if !ok {
			continue
		}
		dev := port.link()
		// The task may be gone by the time a step is made.
		if !static[at(hardware(l), port.index)] {
			out = append(out, step{fmt.Sprintf("bridge %s does not know that %s is at port %s", p.cfg.Bridge, l.Addr, port.name), func() error {
				return ignoring(p.nl.NeighSet(forwarding(l, port.index)), unix.ENODEV)
			}})
		}
		if port.learning {
			out = append(out, step{fmt.Sprintf("port %s of bridge %s learns addresses", port.name, p.cfg.Bridge), func() error {
				return ignoring(p.nl.LinkSetLearning(dev, false), unix.ENODEV)
			}})
		}
		if port.flood {
			out = append(out, step{fmt.Sprintf("port %s of bridge %s gets what is for nobody", port.name, p.cfg.Bridge), func() error {
				return ignoring(p.nl.LinkSetFlood(dev, false), unix.ENODEV)
			}})
		}
	}
	more, err := p.neighbourSteps(locals, bridge.Attrs().Index)
	return append(out, more...), err
}

// neighbourSteps: the node has an entry that does not change for each task, and for nobody else in the subnet.
func (p *Plane) neighbourSteps(locals map[string]antispoof.Port, bridge int) (out []step, err error) {
	right := map[netip.Addr]bool{}
	var extra []netlink.Neigh
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if family == netlink.FAMILY_V6 && !p.ipv6 {
			continue
		}
		have, err := p.nl.NeighList(bridge, family)
		if err != nil {
			return nil, fmt.Errorf("list the neighbours on %s: %w", p.cfg.Bridge, err)
		}
		for _, n := range have {
			if a := addrOf(n.IP); n.State == netlink.NUD_PERMANENT {
				right[a] = n.HardwareAddr.String() == macOf(a).String()
				if p.cfg.Subnet.Contains(a) || p.cfg.subnet6().Contains(a) {
					extra = append(extra, n)
				}
			}
		}
	}
	wanted := map[netip.Addr]bool{}
	for _, l := range locals {
		for _, n := range neighbours(l, bridge) {
			a := addrOf(n.IP)
			wanted[a] = true
			if !right[a] && (a.Is4() || p.ipv6) {
				out = append(out, step{fmt.Sprintf("the node does not know for certain where task %s is", a), func() error { return p.whileLocal(l, true, func() error { return p.nl.NeighSet(n) }) }})
			}
		}
	}
	for _, n := range extra {
		if a := addrOf(n.IP); !wanted[a] {
			out = append(out, step{fmt.Sprintf("the node has neighbour %s, which is no task", a), func() error {
				return p.whileLocal(antispoof.Port{Addr: ipv4Of(a)}, false, func() error { return ignoring(p.nl.NeighDel(&n), unix.ENOENT) })
			}})
		}
	}
	return out, nil
}

// whileLocal does something unless the task came, or went, meanwhile.
func (p *Plane) whileLocal(l antispoof.Port, there bool, do func() error) error {
	p.localMu.Lock()
	defer p.localMu.Unlock()
	if slices.ContainsFunc(p.senders(), func(o antispoof.Port) bool { return o.Addr == l.Addr }) != there {
		return nil
	}
	return do()
}

// macOf is the MAC of the task with an address of either family.
func macOf(a netip.Addr) net.HardwareAddr { m := ipam.MAC(ipv4Of(a)); return m[:] }

// ipv4Of is the IPv4 address that one on the bridge goes with, see ipam.NodeAddr6.
func ipv4Of(a netip.Addr) netip.Addr {
	if b := a.AsSlice(); len(b) == 16 {
		a, _ = netip.AddrFromSlice(b[12:])
	}
	return a
}
