package wgnet

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// kernelTunnel is the kernel's WireGuard.
type kernelTunnel struct {
	ctl   *wgctrl.Client // speaks to the kernel in the network's namespace
	index int
}

// openKernel makes wg0 through the host's namespace, where its socket then is, directly in the network's.
func openKernel(home, ns netns.NsHandle, h *netlink.Handle, key wgtypes.Key, port uint16, mtu int) (tunnel, error) {
	host, err := netlink.NewHandleAt(home, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in the host's namespace: %w", err)
	}
	defer host.Close()
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.Namespace = deviceName, mtu, netlink.NsFd(int(ns))
	if err := host.LinkAdd(&netlink.Wireguard{LinkAttrs: a}); err != nil {
		return nil, fmt.Errorf("make the WireGuard device: %w", err)
	}
	l, err := h.LinkByName(deviceName)
	if err != nil {
		return nil, fmt.Errorf("look up the WireGuard device: %w", err)
	}
	t, err := adoptKernel(ns, l.Attrs().Index)
	if err == nil {
		listen := int(port)
		if err = t.write(wgtypes.Config{PrivateKey: &key, ListenPort: &listen}); err == nil {
			err = h.LinkSetUp(l) // opens the socket
		}
	}
	if err != nil {
		if t != nil {
			t.close()
		}
		return nil, errors.Join(fmt.Errorf("start the WireGuard device: %w", err), h.LinkDel(l))
	}
	return t, nil
}

// adoptKernel takes over a device that is there.
func adoptKernel(ns netns.NsHandle, index int) (tunnel, error) {
	t := &kernelTunnel{index: index}
	err := nsfs.Inside(ns, func() (err error) {
		t.ctl, err = wgctrl.New()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("speak to the kernel's WireGuard: %w", err)
	}
	return t, nil
}

func (t *kernelTunnel) read() ([]PeerState, uint16, error) {
	d, err := t.ctl.Device(deviceName)
	if err != nil {
		return nil, 0, err
	}
	var out []PeerState
	for _, p := range d.Peers {
		s := PeerState{PublicKey: p.PublicKey.String(), Handshake: p.LastHandshakeTime, Keepalive: p.PersistentKeepaliveInterval > 0, Sent: uint64(p.TransmitBytes), Received: uint64(p.ReceiveBytes)}
		if p.Endpoint != nil {
			e := p.Endpoint.AddrPort()
			s.Endpoint = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
		}
		for _, b := range p.AllowedIPs {
			s.Blocks = append(s.Blocks, prefixOf(b))
		}
		out = append(out, s)
	}
	return ordered(out), uint16(d.ListenPort), nil
}

func (t *kernelTunnel) write(c wgtypes.Config) error { return t.ctl.ConfigureDevice(deviceName, c) }

func (t *kernelTunnel) alive(index int) bool { return index == t.index }

func (t *kernelTunnel) port() uint16 {
	_, port, _ := t.read() // an error is a device that is gone, which has none
	return port
}

func (t *kernelTunnel) setMTU(int) {} // route sets it on the device

func (t *kernelTunnel) close() { _ = t.ctl.Close() }

func prefixOf(n net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

func ordered(peers []PeerState) []PeerState {
	for i := range peers {
		peers[i].Blocks = sorted(peers[i].Blocks)
	}
	slices.SortFunc(peers, func(a, b PeerState) int { return cmp.Compare(a.PublicKey, b.PublicKey) })
	return peers
}
