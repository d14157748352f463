package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"skep.dev/libs/fault"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// bridgeMAC is fixed: otherwise a bridge takes a port's and changes it as tasks come and go.
var bridgeMAC = net.HardwareAddr{0x02, 0x53, 0x4b, 0x62, 0x72, 0x00}

// vniWait is how long to wait for the kernel to finish with an earlier device of the same VNI.
const vniWait = 2 * time.Second

// hand does the steps of a plan in one namespace.
type hand struct {
	ctx    context.Context
	p      *Plane
	s      *space
	w      want
	bridge int // indexes; devices that are made set them
	vxlan  int
}

// apply does the steps; one that fails keeps back only those that need it.
func (p *Plane) apply(ctx context.Context, s *space, w want, have kernel, steps []step) (errs []error) {
	h := &hand{ctx: ctx, p: p, s: s, w: w}
	if have.bridge != nil {
		h.bridge = have.bridge.index
	}
	if have.vxlan != nil {
		h.vxlan = have.vxlan.index
	}
	for _, st := range steps {
		if err := ctx.Err(); err != nil {
			return append(errs, err)
		}
		if err := st.run(h); err != nil {
			errs = append(errs, err)
			if st.vital {
				break
			}
		}
	}
	return errs
}

func (h *hand) makeBridge() error {
	if err := settle(h.s); err != nil {
		return err
	}
	a, off := netlink.NewLinkAttrs(), false
	a.Name, a.MTU, a.HardwareAddr, a.Flags = bridgeName, h.w.mtu, bridgeMAC, net.FlagUp
	// Without a querier, snooping would lose multicast between the tasks of a node.
	if err := h.s.nl.LinkAdd(&netlink.Bridge{LinkAttrs: a, MulticastSnooping: &off}); err != nil {
		return fmt.Errorf("make bridge %s: %w", bridgeName, err)
	}
	l, err := h.s.nl.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("look up bridge %s: %w", bridgeName, err)
	}
	h.bridge = l.Attrs().Index
	return nil
}

// settle makes a fresh namespace one that only switches: a new one may inherit the host's forwarding, and with IPv6
// each device would send of its own accord.
func settle(s *space) error {
	return nsfs.Inside(s.ns, func() error {
		if err := nsfs.Setting("net/ipv4/ip_forward", "0"); err != nil {
			return err
		}
		for _, conf := range []string{"all", "default"} {
			if err := nsfs.Setting("net/ipv6/conf/"+conf+"/disable_ipv6", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// makeVXLAN makes the device through the host's namespace, where its socket then is, directly in the network's: there
// is no moment at which a crash would leave it in between.
func (h *hand) makeVXLAN() error {
	host, err := h.p.hostHandle()
	if err != nil {
		return err
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.Namespace = vxlanName, h.w.mtu, netlink.NsFd(int(h.s.ns))
	dev := &netlink.Vxlan{LinkAttrs: a, VxlanId: int(h.w.vni), Port: int(h.w.port), Proxy: true}
	if h.w.local.IsValid() {
		dev.SrcAddr = h.w.local.AsSlice()
	}
	deadline := time.Now().Add(vniWait)
	for {
		// LinkAdd notes the index of what has the name in the host's namespace, which is not ours.
		dev.Index = 0
		err = host.LinkAdd(dev)
		// A namespace that has just gone frees its VXLAN device a moment later.
		if !errors.Is(err, unix.EEXIST) || h.ctx.Err() != nil || time.Now().After(deadline) {
			break
		}
		select {
		case <-h.ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return fault.Conflict("make the VXLAN device: VNI %d at UDP port %d is in use on this host by %s", h.w.vni, h.w.port, h.p.holder(h.w.vni, h.s))
	case err != nil:
		return fmt.Errorf("make the VXLAN device: %w", err)
	}
	l, err := h.s.nl.LinkByName(vxlanName)
	if err != nil {
		return fmt.Errorf("look up the VXLAN device: %w", err)
	}
	h.vxlan = l.Attrs().Index
	if err := h.join(h.vxlan, true); err != nil {
		return err
	}
	err = h.setUp(h.vxlan) // opens the socket
	if errors.Is(err, unix.EADDRINUSE) {
		return fault.Conflict("open the data path: UDP port %d is in use on this host by another program: stop it, or make the cluster with another data path port", h.w.port)
	}
	return err
}

// holder names who has a VNI, as far as it is one of ours.
func (p *Plane) holder(vni uint32, not *space) string {
	ids, err := p.List()
	if err != nil {
		return "another program"
	}
	for _, id := range ids {
		if id, ok := nsfs.IDAt(p.path(id)); ok && id == not.id {
			continue
		}
		// The other network's lock may be held by one that waits for ours: read past it.
		ns, h, err := nsfs.Open(p.path(id))
		if err != nil {
			continue
		}
		l, err := h.LinkByName(vxlanName)
		h.Close()
		_ = ns.Close()
		if v, ok := l.(*netlink.Vxlan); err == nil && ok && uint32(v.VxlanId) == vni {
			return "network " + id
		}
	}
	return "another program, as a VXLAN device"
}

func (h *hand) drop(name string) error {
	l, err := h.s.nl.LinkByName(name)
	if err == nil {
		err = h.s.nl.LinkDel(l)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

// at is a device by index, for calls that want no more of it.
func at(index int) netlink.Link { return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}} }

func (h *hand) setMTU(index, mtu int) error {
	if err := h.s.nl.LinkSetMTU(at(index), mtu); err != nil {
		return fmt.Errorf("set the MTU of device %d to %d: %w", index, mtu, err)
	}
	return nil
}

func (h *hand) setUp(index int) error {
	if err := h.s.nl.LinkSetUp(at(index)); err != nil {
		return fmt.Errorf("set device %d up: %w", index, err)
	}
	return nil
}

// join puts a device on the bridge.
func (h *hand) join(index int, flood bool) error {
	if err := h.s.nl.LinkSetMasterByIndex(at(index), h.bridge); err != nil {
		return fmt.Errorf("put device %d on the bridge: %w", index, err)
	}
	return h.setFlags(index, flood)
}

func (h *hand) setFlags(index int, flood bool) error {
	if err := h.s.nl.LinkSetLearning(at(index), false); err != nil {
		return fmt.Errorf("keep the bridge from learning at device %d: %w", index, err)
	}
	if err := h.s.nl.LinkSetFlood(at(index), flood); err != nil {
		return fmt.Errorf("set whether the bridge floods to device %d: %w", index, err)
	}
	return nil
}

// setTaskMTU changes the task's end first: a crash between the two leaves the difference to be seen. Where this
// process has not attached the task, Attach will.
func (h *hand) setTaskMTU(p taskPort, mtu int) error {
	if a, ok := h.s.tasks[p.task]; ok && nsfs.At(a.Netns) {
		ns, inside, err := nsfs.Open(a.Netns)
		if err != nil {
			return err
		}
		defer ns.Close()
		defer inside.Close()
		l, err := inside.LinkByName(a.Device)
		if err == nil {
			err = inside.LinkSetMTU(l, mtu)
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("set the MTU of %s of task %s to %d: %w", a.Device, a.Task, mtu, err)
		}
	}
	return h.setMTU(p.index, mtu)
}

// addLocal tells the bridge where a task of this node is.
func (h *hand) addLocal(m mac, index int) error {
	e := &netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: unix.NTF_MASTER, State: unix.NUD_NOARP, HardwareAddr: m.hw(), IP: net.IPv4zero}
	if err := neighbourRequest(h.s, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, e, netip.Addr{}); err != nil {
		return fmt.Errorf("tell the bridge where %s is: %w", m, err)
	}
	return nil
}

func (h *hand) setForward(m mac, dst netip.Addr) error {
	e := &netlink.Neigh{LinkIndex: h.vxlan, Family: unix.AF_BRIDGE, Flags: unix.NTF_SELF, State: unix.NUD_PERMANENT, HardwareAddr: m.hw()}
	if err := neighbourRequest(h.s, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, e, dst); err != nil {
		return fmt.Errorf("write the forwarding entry for %s to node %s: %w", m, dst, err)
	}
	return nil
}

func (h *hand) delForward(m mac) error {
	// Without a destination the entry goes with all it has.
	e := &netlink.Neigh{LinkIndex: h.vxlan, Family: unix.AF_BRIDGE, Flags: unix.NTF_SELF, HardwareAddr: m.hw()}
	if err := neighbourRequest(h.s, unix.RTM_DELNEIGH, 0, e, netip.Addr{}); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the forwarding entry for %s: %w", m, err)
	}
	return nil
}

func (h *hand) setNeighbour(a netip.Addr, m mac) error {
	e := &netlink.Neigh{LinkIndex: h.vxlan, Family: familyOf(a), State: unix.NUD_PERMANENT, HardwareAddr: m.hw()}
	if err := neighbourRequest(h.s, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, e, a); err != nil {
		return fmt.Errorf("write the neighbour %s: %w", a, err)
	}
	return nil
}

func (h *hand) delNeighbour(a netip.Addr) error {
	e := &netlink.Neigh{LinkIndex: h.vxlan, Family: familyOf(a)}
	if err := neighbourRequest(h.s, unix.RTM_DELNEIGH, 0, e, a); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the neighbour %s: %w", a, err)
	}
	return nil
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// neighbourRequest is netlink's NeighSet and NeighDel, but for entries without an address.
func neighbourRequest(s *space, kind, flags int, e *netlink.Neigh, addr netip.Addr) error {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: s.raw}
	req.AddData(&netlink.Ndmsg{Family: uint8(e.Family), Index: uint32(e.LinkIndex), State: uint16(e.State), Flags: uint8(e.Flags)})
	if addr.IsValid() {
		req.AddData(nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()))
	}
	if e.HardwareAddr != nil {
		req.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, e.HardwareAddr))
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// allowIPv6 gives the VXLAN device IPv6, so that it can keep neighbours of that family, but no address of its own.
func (h *hand) allowIPv6() error {
	if err := h.s.nl.LinkSetIP6AddrGenMode(at(h.vxlan), nl.IN6_ADDR_GEN_MODE_NONE); err != nil {
		return fmt.Errorf("keep the VXLAN device from making an IPv6 address: %w", err)
	}
	return nsfs.Inside(h.s.ns, func() error { return nsfs.Setting("net/ipv6/conf/"+vxlanName+"/disable_ipv6", "0") })
}
