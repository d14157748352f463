package mesh

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/ipam"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/picture"
	"skep.dev/services/ingress-mesh/internal/wgnet"
)

// rotateEvery is how long a key of an encrypted network is used.
const rotateEvery = 24 * time.Hour

// tunnel is an encrypted network as this node should have it: the other nodes that told their keys, with the addresses
// behind them. Those of IPv6 end in the IPv4 ones, so a node's blocks say which it may speak for in both.
func tunnel(scope picture.Scope, nodes map[string]*skepv1.MeshNode, self string, mtu int) wgnet.Network {
	n := scope.Info.GetNetwork()
	out := wgnet.Network{
		ID: n.GetMeta().GetId(), Name: n.GetSpec().GetName(), MTU: mtu,
		ListenPort: spec.EncryptedPort(n.GetVni()),
	}
	out.Subnet, out.Subnet6 = subnets(n)
	out.Own = single(scope.Endpoints[self], out.Subnet6)
	for _, id := range slices.Sorted(maps.Keys(scope.Endpoints)) {
		eps := scope.Endpoints[id]
		if id == self || eps.GetWgPublicKey() == "" {
			continue
		}
		p := wgnet.Peer{Node: id, PublicKey: eps.GetWgPublicKey(), Blocks: prefixes(eps.GetBlocks()), Addresses: single(eps, out.Subnet6)}
		if out.Subnet6.IsValid() {
			for _, b := range slices.Clone(p.Blocks) {
				if b.Addr().Is4() {
					p.Blocks = append(p.Blocks, netip.PrefixFrom(ipam.Embed(out.Subnet6, b.Addr()), 96+b.Bits()))
				}
			}
			for _, e := range eps.GetEndpoints() {
				if a := address(e.GetAddr6()); out.Subnet6.Contains(a) {
					out.Remotes6 = append(out.Remotes6, a)
				}
			}
		}
		if a := address(nodes[id].GetAddr()); a.IsValid() && port(eps.GetWgPort()) != 0 {
			p.Endpoint = netip.AddrPortFrom(a, port(eps.GetWgPort()))
		}
		out.Peers = append(out.Peers, p)
	}
	return out
}

// single are the addresses that a node has by themselves on a network, with those of IPv6 that go with them.
func single(eps *skepv1.MeshEndpoints, six netip.Prefix) (out []netip.Addr) {
	for _, text := range eps.GetAddresses() {
		a := address(text)
		if !a.IsValid() {
			continue
		}
		out = append(out, a)
		if a.Is4() && six.IsValid() {
			out = append(out, ipam.Embed(six, a))
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// ensureEncrypted makes the kernel objects of an encrypted network: those of a plain one without the way to other
// nodes, and an encrypted way. Nothing of it ever leaves the node in the clear.
func (s *Service) ensureEncrypted(ctx context.Context, scope picture.Scope, nodes map[string]*skepv1.MeshNode) error {
	n := plain(scope, nodes, s.node)
	n.VNI, n.Remotes = 0, nil
	if n.MTU == 0 || n.MTU > s.tunnels.MTU() {
		n.MTU = s.tunnels.MTU()
	}
	if err := s.overlays.Ensure(ctx, n); err != nil {
		return err
	}
	key, port, err := s.tunnels.Ensure(ctx, tunnel(scope, nodes, s.node, n.MTU))
	if err != nil {
		return err
	}
	mine := scope.Endpoints[s.node]
	if mine.GetWgPublicKey() == key && mine.GetWgPort() == uint32(port) {
		return nil
	}
	return s.tellKey(ctx, n.ID, key, port)
}

// unlearn makes the tasks beside one that goes forget where its address was, which comes up on another node at once. On
// encrypted networks that is another link-layer address: theirs would be asked for eight seconds before they look again.
func (s *Service) unlearn(task string, m membership) {
	if !m.Fixed || s.follow == nil || !encrypted(s.follow.Network(m.Network).GetNetwork()) {
		return
	}
	for _, rec := range s.tasksOn(m.Network) {
		i := slices.IndexFunc(rec.Networks, func(o membership) bool { return o.Network == m.Network })
		if rec.Task == task || i < 0 {
			continue
		}
		ns, inside, err := nsfs.Open(s.nsPath(rec.Task))
		if err != nil {
			continue // it goes, too
		}
		if dev, err := inside.LinkByName(rec.Networks[i].Device); err == nil {
			for _, a := range []netip.Prefix{m.Addr, m.Addr6} {
				if a.IsValid() {
					_ = inside.NeighDel(&netlink.Neigh{LinkIndex: dev.Attrs().Index, IP: a.Addr().AsSlice()}) // most have none
				}
			}
		}
		inside.Close()
		_ = ns.Close()
	}
}

// tellKey tells the other nodes this one's public key on a network.
func (s *Service) tellKey(ctx context.Context, network, key string, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, askController)
	defer cancel()
	req := &skepv1.LeaseBlockRequest{NodeId: s.node, NetworkId: network, WgPublicKey: key, WgPort: uint32(port)}
	if _, err := api.Call(ctx, s.nc, api.MeshLease.At(s.node), req); err != nil {
		return fmt.Errorf("tell the key of encrypted network %s: %w", network, err)
	}
	return nil
}

// rotate gives the node new keys on its encrypted networks. The others have them a few milliseconds later; what is
// sent in between is sent again.
func (s *Service) rotate(ctx context.Context) {
	for _, id := range s.networksHere() {
		if !encrypted(s.follow.Network(id).GetNetwork()) {
			continue
		}
		key, err := s.tunnels.Rotate(ctx, id)
		if err == nil {
			st, serr := s.tunnels.State(id)
			if err = serr; err == nil {
				err = s.tellKey(ctx, id, key, st.Port)
			}
		}
		if err != nil {
			s.log.Warn("rotate the key of an encrypted network", zap.String("network", id), zap.Error(err))
		}
	}
}
