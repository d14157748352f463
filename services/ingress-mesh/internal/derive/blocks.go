package derive

import (
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/ipam"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Lease is a node's part of a network with one more block, if it wants one, and with the key it tells. No change: it is
// like that already. The block is "" when none was wanted.
func (p *Picture) Lease(node string, r *skepv1.LeaseBlockRequest) (c *Change, block string, err error) {
	n := p.networks[r.GetNetworkId()]
	if n == nil {
		return nil, "", fault.NotFound("network %s not found", r.GetNetworkId())
	}
	if p.known(node) == nil {
		return nil, "", fault.Unavailable("node %s is not known yet: try again", node)
	}
	key := Key(r.GetNetworkId(), node)
	was := p.stored[key].Record().GetEndpoints()
	now := &skepv1.MeshEndpoints{}
	if was != nil {
		now = proto.CloneOf(was)
	}
	if r.GetWgPublicKey() != "" {
		now.WgPublicKey, now.WgPort = r.GetWgPublicKey(), r.GetWgPort()
	}
	if r.GetWantBlock() {
		free, err := p.freeBlock(n)
		if err != nil {
			return nil, "", err
		}
		block = free.String()
		now.Blocks = append(now.Blocks, block)
	}
	if block == "" && (proto.Equal(was, now) || was == nil && now.WgPublicKey == "") {
		return nil, "", nil
	}
	c, err = p.endpointsChange(key, now)
	return c, block, err
}

// Return is a node's part of a network without blocks it gives back, those excepted that its tasks have addresses of.
// No change: it has none of them.
func (p *Picture) Return(node string, r *skepv1.ReturnBlocksRequest) (*Change, error) {
	key := Key(r.GetNetworkId(), node)
	now := p.stored[key].Record().GetEndpoints()
	if now == nil {
		return nil, nil
	}
	used := p.inUse(r.GetNetworkId(), node)
	before := len(now.Blocks)
	now.Blocks = slices.DeleteFunc(now.Blocks, func(b string) bool {
		block, err := netip.ParsePrefix(b)
		return slices.Contains(r.GetBlocks(), b) && !(err == nil && slices.ContainsFunc(used, block.Contains))
	})
	switch {
	case len(now.Blocks) == before:
		return nil, nil
	case len(now.Blocks)+len(now.Endpoints) == 0: // the node has left the network
		return &Change{Key: key, Revision: p.stored[key].Revision}, nil
	}
	return p.endpointsChange(key, now)
}

func (p *Picture) endpointsChange(key string, e *skepv1.MeshEndpoints) (*Change, error) {
	raw, err := encode(&skepv1.MeshRecord{Record: &skepv1.MeshRecord_Endpoints{Endpoints: e}})
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", key, err)
	}
	if len(raw) > maxRecord {
		return nil, fault.Exhausted("record %s would have %d bytes, and the broker takes %d: spread the tasks over more nodes", key, len(raw), maxRecord)
	}
	return &Change{Key: key, Revision: p.stored[key].Revision, Value: raw}, nil
}

// freeBlock is the first block of a network that no node holds.
func (p *Picture) freeBlock(n *skepv1.Network) (netip.Prefix, error) {
	l, err := spec.NetworkLayout(n)
	if err != nil {
		return netip.Prefix{}, err
	}
	held, nodes := p.held(n.GetMeta().GetId())
	blocks, hosts := 0, 0
	for b := range l.Blocks() {
		usable := usableIn(l, b)
		if usable == 0 {
			continue // a block of one address may be just the network's or the gateway's
		}
		if !held[b] {
			return b, nil
		}
		blocks++
		hosts += usable
	}
	return netip.Prefix{}, fault.Exhausted("network %s has no free addresses: all %d blocks for tasks, %d addresses together, are leased to %d nodes: "+
		"use a network with a larger subnet, or let fewer nodes run its services", n.GetSpec().GetName(), blocks, hosts, nodes)
}

func usableIn(l ipam.Layout, b netip.Prefix) (n int) {
	for range l.Hosts(b) {
		n++
	}
	return n
}

// held says which blocks of a network are leased, and to how many nodes.
func (p *Picture) held(network string) (blocks map[netip.Prefix]bool, nodes int) {
	blocks = map[netip.Prefix]bool{}
	for item := range p.scopes[network] {
		s := p.stored[Key(network, item)]
		for _, b := range s.Blocks {
			if block, err := netip.ParsePrefix(b); err == nil {
				blocks[block] = true
			}
		}
		if len(s.Blocks) > 0 {
			nodes++
		}
	}
	return blocks, nodes
}

// inUse are the addresses of a network which a node's tasks have, by its last report.
func (p *Picture) inUse(network, node string) []netip.Addr {
	var out []netip.Addr
	for _, st := range p.statuses[node] {
		for _, n := range st.networks {
			if a, err := netip.ParseAddr(n.v4); err == nil && n.network == network {
				out = append(out, a)
			}
		}
	}
	return out
}
