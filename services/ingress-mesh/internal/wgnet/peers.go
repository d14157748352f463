package wgnet

import (
	"bytes"
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"skep.dev/libs/fault"
)

// PeerState is what a device has of a peer.
type PeerState struct {
	PublicKey string
	Endpoint  netip.AddrPort
	Blocks    []netip.Prefix // ordered
	Handshake time.Time      // the last one, zero = never
	Keepalive bool           // this node speaks without being asked
	Sent      uint64         // bytes
	Received  uint64
}

// tunnel is a WireGuard device.
type tunnel interface {
	read() ([]PeerState, uint16, error) // and its UDP port
	write(wgtypes.Config) error
	alive(index int) bool // it is the device with that index
	port() uint16
	setMTU(int)
	close()
}

// checkNetwork reads what n says of peers.
func checkNetwork(n Network) (map[wgtypes.Key]Peer, error) {
	if err := validID(n.ID); err != nil {
		return nil, err
	}
	if !n.Subnet.Addr().Is4() {
		return nil, fault.Invalid("encrypted network %s has no IPv4 subnet", n.label())
	}
	out := map[wgtypes.Key]Peer{}
	for _, peer := range n.Peers {
		key, err := wgtypes.ParseKey(peer.PublicKey)
		if err != nil {
			return nil, fault.Invalid("encrypted network %s: %q is not a WireGuard key: %v", n.label(), peer.PublicKey, err)
		}
		blocks := make([]netip.Prefix, 0, len(peer.Blocks))
		for _, b := range peer.Blocks {
			if !within(b, n.Subnet) && !within(b, n.Subnet6) {
				return nil, fault.Invalid("encrypted network %s: block %s of node %s is not of the network", n.label(), b, peer.Endpoint)
			}
			blocks = append(blocks, b.Masked())
		}
		peer.Blocks, peer.Endpoint = sorted(blocks), netip.AddrPortFrom(peer.Endpoint.Addr().Unmap(), peer.Endpoint.Port())
		out[key] = peer
	}
	return out, nil
}

func within(b, subnet netip.Prefix) bool {
	return b.IsValid() && subnet.IsValid() && b.Bits() >= subnet.Bits() && subnet.Contains(b.Addr())
}

func sorted(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(list)
}

// planPeers is what to change of a device's peers. An endpoint is written when it is another than was asked for last
// time, not when it is another than the device has: WireGuard follows a peer that moves. A peer that
// is to make the first contact is not spoken to before, see contact.
func planPeers(own wgtypes.Key, want map[wgtypes.Key]Peer, have []PeerState, asked map[string]netip.AddrPort) []wgtypes.PeerConfig {
	var out []wgtypes.PeerConfig
	there := map[string]PeerState{}
	for _, p := range have {
		there[p.PublicKey] = p
		key, err := wgtypes.ParseKey(p.PublicKey)
		if _, wanted := want[key]; err == nil && !wanted {
			out = append(out, wgtypes.PeerConfig{PublicKey: key, Remove: true})
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(want), func(a, b wgtypes.Key) int { return bytes.Compare(a[:], b[:]) }) {
		w := want[key]
		is, known := there[key.String()]
		c := wgtypes.PeerConfig{PublicKey: key, UpdateOnly: known}
		last, before := asked[key.String()]
		if w.Endpoint.IsValid() && w.Endpoint != is.Endpoint && (!known || !before || last != w.Endpoint) {
			c.Endpoint = net.UDPAddrFromAddrPort(w.Endpoint)
		}
		if !slices.Equal(w.Blocks, is.Blocks) {
			c.ReplaceAllowedIPs = true
			for _, b := range w.Blocks {
				c.AllowedIPs = append(c.AllowedIPs, ipNet(b))
			}
		}
		if !is.Keepalive && (!is.Handshake.IsZero() || begins(own, key)) {
			every := keepalive
			c.PersistentKeepaliveInterval = &every
		}
		if !known || c.PersistentKeepaliveInterval != nil || c.Endpoint != nil || c.ReplaceAllowedIPs {
			out = append(out, c)
		}
	}
	return out
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
