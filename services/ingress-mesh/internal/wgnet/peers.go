package wgnet

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"skep.dev/libs/ipam"
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

// maxProblems is how many peers that cannot be are told one by one.
const maxProblems = 20

// checkNetwork reads what n says of peers. A peer that cannot be is left out, and a part of one that is not its own is
// left out of it: own is this node's key, and of two peers with one key or block the first has it. It is one node's
// fault, and no reason to be without the others.
func checkNetwork(n Network, own wgtypes.Key) (peers map[wgtypes.Key]Peer, problems []string) {
	peers = map[wgtypes.Key]Peer{}
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	holder := map[wgtypes.Key]string{own: "this node"}
	single := map[netip.Prefix]wgtypes.Key{} // longer than any block it is in, so it goes before that
	for _, a := range n.Own {
		single[netip.PrefixFrom(a, a.BitLen())] = own
	}
	var claims []claim
	for i, peer := range n.Peers {
		key, err := wgtypes.ParseKey(peer.PublicKey)
		switch other, taken := holder[key]; {
		case err != nil:
			add("node %s has key %.64q, which is no WireGuard key: it is left out", peer.Node, peer.PublicKey)
			continue
		case key == wgtypes.Key{}:
			add("node %s has the key that is all zero: it is left out", peer.Node)
			continue
		case taken:
			add("node %s has the key of %s: it is left out", peer.Node, other)
			continue
		}
		holder[key] = "node " + peer.Node
		for _, b := range peer.Blocks {
			if !within(b, n.Subnet) && !within(b, n.Subnet6) {
				add("node %s has block %s, which is not of the network: it is left out", peer.Node, b)
				continue
			}
			claims = append(claims, claim{b.Masked(), key, i})
		}
		for _, a := range peer.Addresses {
			b := netip.PrefixFrom(a, a.BitLen())
			if _, taken := single[b]; taken || !within(b, n.Subnet) && !within(b, n.Subnet6) {
				add("node %s has address %s, which is another node's or not of the network: it is left out", peer.Node, a)
				continue
			}
			single[b] = key
		}
		end := netip.AddrPortFrom(peer.Endpoint.Addr().Unmap(), peer.Endpoint.Port())
		if a := end.Addr(); peer.Endpoint.IsValid() && (!ipam.Unicast(a) || a.Zone() != "" || end.Port() == 0) {
			add("node %s is said to be at %s, where nobody can be: it has to speak first", peer.Node, end)
			end = netip.AddrPort{}
		}
		peer.Blocks, peer.Addresses, peer.Endpoint = nil, nil, end
		peers[key] = peer
	}
	kept, lost := apart(claims)
	for b, key := range single {
		if peer, ok := peers[key]; ok {
			peer.Blocks = append(peer.Blocks, b)
			peers[key] = peer
		}
	}
	for _, c := range kept {
		if _, ok := single[c.block]; ok {
			continue
		}
		peer := peers[c.key]
		peer.Blocks = append(peer.Blocks, c.block)
		peers[c.key] = peer
	}
	for _, c := range lost {
		add("node %s has block %s, of which another node has addresses: it is left out", peers[c.key].Node, c.block)
	}
	for key, peer := range peers {
		peer.Blocks = sorted(peer.Blocks)
		peers[key] = peer
	}
	if over := len(problems) - maxProblems; over > 0 {
		problems = append(problems[:maxProblems], fmt.Sprintf("and %d more", over))
	}
	return peers, problems
}

// claim is a block that a peer is said to have.
type claim struct {
	block netip.Prefix
	key   wgtypes.Key
	order int // of the peer
}

// apart keeps those of which no two peers have an address; where two overlap, the earlier peer's.
func apart(claims []claim) (kept, lost []claim) {
	slices.SortStableFunc(claims, func(a, b claim) int {
		return cmp.Or(a.block.Addr().Compare(b.block.Addr()), cmp.Compare(a.block.Bits(), b.block.Bits()), cmp.Compare(a.order, b.order))
	})
	for _, c := range claims {
		last := len(kept) - 1
		switch {
		case last < 0 || kept[last].key == c.key || !kept[last].block.Overlaps(c.block):
			kept = append(kept, c)
		case kept[last].order < c.order:
			lost = append(lost, c)
		default:
			lost = append(lost, kept[last])
			kept[last] = c
		}
	}
	return kept, lost
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
