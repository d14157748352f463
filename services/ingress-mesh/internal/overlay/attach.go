package overlay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// Attachment is a task's place on a network.
type Attachment struct {
	Task   string
	Netns  string // where the task's namespace is mounted
	Device string // the interface's name in there
	Addr   netip.Prefix
	Addr6  netip.Prefix // invalid without IPv6
}

// hostEnd is the name of the bridge's end of a task's link; the kernel allows 15 characters.
func hostEnd(task string) string {
	if id.Valid(task) {
		return vethPrefix + task[:13]
	}
	h := sha256.Sum256([]byte(task))
	return vethPrefix + hex.EncodeToString(h[:])[:13]
}

func (a Attachment) check() error {
	if err := validID(a.Task); err != nil {
		return err
	}
	switch {
	case a.Netns == "" || a.Device == "" || len(a.Device) > 15:
		return fault.Invalid("attach task %s: namespace %q and device %q are needed, the device with at most 15 characters", a.Task, a.Netns, a.Device)
	case !a.Addr.Addr().Is4():
		return fault.Invalid("attach task %s: %s is not an IPv4 address with its subnet's length", a.Task, a.Addr)
	case a.Addr6.IsValid() && !a.Addr6.Addr().Is6():
		return fault.Invalid("attach task %s: %s is not an IPv6 address with its subnet's length", a.Task, a.Addr6)
	}
	return nil
}

// Attach gives a task its interface on a network that Ensure has made. A link that is whole is left alone, what is
// wrong with its settings is put right, and one of which an end is missing is made anew.
func (p *Plane) Attach(ctx context.Context, network string, a Attachment) error {
	if err := errors.Join(validID(network), a.check()); err != nil {
		return err
	}
	s, unlock := p.lock(network)
	defer unlock()
	err := s.enter(p.path(network), false)
	if err == nil {
		err = p.attach(ctx, s, a)
	}
	if err != nil {
		return fmt.Errorf("attach task %s to network %s: %w", a.Task, network, err)
	}
	s.tasks[a.Task] = a
	return nil
}

func (p *Plane) attach(ctx context.Context, s *space, a Attachment) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	have, err := s.devices(p) // not the tables: writing an entry that is there is cheaper than reading them
	if err != nil {
		return err
	}
	if have.bridge == nil {
		return fault.Unavailable("the network's bridge is missing, until the network is set up again")
	}
	ns, inside, err := nsfs.Open(a.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer inside.Close()
	port, err := p.whole(s, a, have, ns, inside)
	if err != nil {
		return err
	}
	if err := s.admit(a, have); err != nil {
		return err
	}
	if port == nil {
		if port, err = makeLink(s, a, *have.bridge, ns); err != nil {
			return err
		}
	}
	h := &hand{ctx: ctx, p: p, s: s, bridge: have.bridge.index}
	var steps []step
	planPort(func(st step) { steps = append(steps, st) }, want{mtu: have.bridge.mtu}, *port, have.bridge.index)
	for _, st := range steps {
		if err := st.run(h); err != nil {
			return err
		}
	}
	return configure(inside, ns, a, have.bridge.mtu)
}

// whole finds a task's link and clears away what is left of a broken one.
func (p *Plane) whole(s *space, a Attachment, have kernel, ns netns.NsHandle, inside *netlink.Handle) (*taskPort, error) {
	dev, err := inside.LinkByName(a.Device)
	if err != nil && !gone(err) {
		return nil, fmt.Errorf("look up %s in the task's namespace: %w", a.Device, err)
	}
	var attrs *netlink.LinkAttrs
	if err == nil {
		attrs = dev.Attrs()
	}
	number, err := s.nl.GetNetNsIdByFd(int(ns))
	if err != nil {
		return nil, fmt.Errorf("identify the task's namespace: %w", err)
	}
	for _, port := range have.ports {
		if linkWhole(port, a, number, attrs) && port.name == hostEnd(a.Task) {
			return &port, nil
		}
	}
	for _, port := range have.ports {
		if port.task == a.Task || port.name == hostEnd(a.Task) {
			have.strays = append(have.strays, port.name)
		}
	}
	h := &hand{p: p, s: s}
	for _, name := range have.strays {
		p.log.Info("remove a broken link", zap.String("task", a.Task), zap.String("link", name))
		if err := h.drop(name); err != nil {
			return nil, err
		}
	}
	if dev, err = inside.LinkByName(a.Device); err != nil { // it may have gone with its other end
		if gone(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("look up %s in the task's namespace: %w", a.Device, err)
	}
	if dev.Type() != "veth" {
		return nil, fault.Conflict("the task's namespace has a device %s of its own, a %s", a.Device, dev.Type())
	}
	if err := inside.LinkDel(dev); err != nil && !gone(err) {
		return nil, fmt.Errorf("remove the broken %s in the task's namespace: %w", a.Device, err)
	}
	return nil, nil
}

func makeLink(s *space, a Attachment, bridge device, ns netns.NsHandle) (*taskPort, error) {
	attrs, name, m := netlink.NewLinkAttrs(), hostEnd(a.Task), macOf(a.Addr.Addr())
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Flags = name, bridge.mtu, bridge.index, net.FlagUp
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: a.Device, PeerNamespace: netlink.NsFd(int(ns)), PeerHardwareAddr: m.hw(), PeerMTU: uint32(bridge.mtu), PeerTxQLen: -1,
	}
	if err := s.nl.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make link %s: %w", name, err)
	}
	l, err := s.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", name, err)
	}
	if err := s.nl.LinkSetAlias(l, aliasOf(a)); err != nil { // the kernel takes no alias with a new device
		return nil, fmt.Errorf("mark link %s as task %s's: %w", name, a.Task, err)
	}
	d := device{index: l.Attrs().Index, mtu: l.Attrs().MTU, master: l.Attrs().MasterIndex, up: l.Attrs().Flags&net.FlagUp != 0, learning: true, flood: true}
	return &taskPort{device: d, name: name, task: a.Task, addr: a.Addr.Addr()}, nil
}

// configure sets a task's interface up in its namespace.
func configure(h *netlink.Handle, ns netns.NsHandle, a Attachment, mtu int) error {
	dev, err := h.LinkByName(a.Device)
	if err != nil {
		return fmt.Errorf("look up %s in the task's namespace: %w", a.Device, err)
	}
	attrs, m := dev.Attrs(), macOf(a.Addr.Addr())
	if attrs.HardwareAddr.String() != m.String() {
		if err := h.LinkSetHardwareAddr(dev, m.hw()); err != nil {
			return fmt.Errorf("set the MAC of %s: %w", a.Device, err)
		}
	}
	if attrs.MTU != mtu {
		if err := h.LinkSetMTU(dev, mtu); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", a.Device, mtu, err)
		}
	}
	// Before the interface is up, so that it never waits for an answer to "has anybody this address?".
	if err := nsfs.Inside(ns, func() error { return settleTask(a) }); err != nil {
		return err
	}
	if attrs.Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(dev); err != nil {
			return fmt.Errorf("set %s up: %w", a.Device, err)
		}
	}
	if err := addAddress(h, dev, a.Addr, netlink.FAMILY_V4); err != nil || !a.Addr6.IsValid() {
		return err
	}
	return addAddress(h, dev, a.Addr6, netlink.FAMILY_V6)
}

// settleTask decides about IPv6 on a task's interface: ready at once, without routers, or not there at all.
func settleTask(a Attachment) error {
	conf := "net/ipv6/conf/" + a.Device + "/"
	if !a.Addr6.IsValid() {
		if err := nsfs.Setting(conf+"disable_ipv6", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
			return err
		}
		return nil
	}
	for _, s := range [][2]string{{"accept_dad", "0"}, {"dad_transmits", "0"}, {"accept_ra", "0"}, {"disable_ipv6", "0"}} {
		if err := nsfs.Setting(conf+s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// addAddress gives an interface an address. One of an earlier attachment goes; link-local ones stay.
func addAddress(h *netlink.Handle, dev netlink.Link, want netip.Prefix, family int) error {
	have, err := retryDump(func() ([]netlink.Addr, error) { return h.AddrList(dev, family) })
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", dev.Attrs().Name, err)
	}
	target := netlink.Addr{IPNet: &net.IPNet{IP: want.Addr().AsSlice(), Mask: net.CIDRMask(want.Bits(), want.Addr().BitLen())}}
	if family == netlink.FAMILY_V6 {
		target.Flags = unix.IFA_F_NODAD
	}
	for _, a := range have {
		if a.IPNet.String() == target.IPNet.String() && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			return nil
		}
	}
	for _, a := range have {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		if err := h.AddrDel(dev, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s from %s: %w", a.IPNet, dev.Attrs().Name, err)
		}
	}
	if err := h.AddrAdd(dev, &target); err != nil {
		return fmt.Errorf("add address %s to %s: %w", want, dev.Attrs().Name, err)
	}
	return nil
}

// Detach takes a task off a network. One that is not on it is no error.
func (p *Plane) Detach(_ context.Context, network, task string) error {
	if err := errors.Join(validID(network), validID(task)); err != nil {
		return err
	}
	s, unlock := p.lock(network)
	defer unlock()
	delete(s.tasks, task)
	ok, err := s.look(p.path(network))
	if err == nil && !ok && s.isOpen() { // unmounted by hand: the link is still there
		ok = true
	}
	if err == nil && ok {
		err = s.unlink(task)
	}
	if err != nil {
		return fmt.Errorf("detach task %s from network %s: %w", task, network, err)
	}
	return nil
}

func (s *space) unlink(task string) error {
	links, err := retryDump(s.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list the network's devices: %w", err)
	}
	for _, l := range links {
		if t, _, ok := taskOf(l.Attrs().Alias); !ok || t != task || l.Type() != "veth" {
			continue
		}
		if err := s.nl.LinkDel(l); err != nil && !gone(err) {
			return fmt.Errorf("remove link %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// missing are the tasks this process attached whose link is not there, though their namespace is.
func (s *space) missing(have kernel) (out []Attachment) {
	if len(s.tasks) == 0 {
		return nil
	}
	there := have.tasks()
	for task, a := range s.tasks {
		if !there[task] && nsfs.At(a.Netns) {
			out = append(out, a)
		}
	}
	return out
}

// tasks are those that have a link.
func (k kernel) tasks() map[string]bool {
	there := make(map[string]bool, len(k.ports))
	for _, p := range k.ports {
		there[p.task] = true
	}
	return there
}

// relink brings the links back that somebody removed, or that went with an earlier namespace.
func (p *Plane) relink(ctx context.Context, s *space, lost []Attachment) (errs []error) {
	for _, a := range lost {
		if err := p.attach(ctx, s, a); err != nil {
			errs = append(errs, fmt.Errorf("attach task %s again: %w", a.Task, err))
		}
	}
	return errs
}
