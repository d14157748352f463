package derive

import (
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/ipam"
	"skep.dev/libs/keys"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// A node may hold spare addresses of a network beyond twice what its tasks have, a sixteenth of the network's within these
// bounds: it asks ahead of need, and lets an address rest before it gives it out again.
const leastSpare, mostSpare = 2, 8

// Lease is a node's part of a network with one more block, if it wants one, and with the key it tells. No change: it is
// like that already. The block is "" when none was wanted.
//
// A node gets what its tasks on the network need, by the scheduler's word: one that has none there is denied
// (fault.CodeDenied), one that has enough is told so (fault.CodeExhausted). Both may be for want of the newest tasks.
func (p *Picture) Lease(node string, r *skepv1.LeaseBlockRequest) (c *Change, block string, err error) {
	n := p.networks[r.GetNetworkId()]
	if n == nil {
		return nil, "", fault.NotFound("network %s not found", r.GetNetworkId())
	}
	if p.known(node) == nil {
		return nil, "", fault.Unavailable("node %s is not known yet: try again", node)
	}
	key := keys.Endpoint.Key(r.GetNetworkId(), node)
	was := p.stored[key].Record().GetEndpoints()
	tasks := p.tasksOn(r.GetNetworkId(), node)
	if tasks == 0 && len(was.GetBlocks()) == 0 && len(r.GetAddresses()) == 0 {
		return nil, "", fault.Denied("node %s has no task on network %s: its addresses and keys are for nodes that have", node, n.GetSpec().GetName())
	}
	now := &skepv1.MeshEndpoints{}
	if was != nil {
		now = proto.CloneOf(was)
	}
	if r.GetWgPublicKey() != "" {
		if err := p.checkKey(n, node, r); err != nil {
			return nil, "", err
		}
		now.WgPublicKey, now.WgPort = r.GetWgPublicKey(), r.GetWgPort()
	}
	if r.GetWantBlock() {
		free, err := p.freeBlock(n, was.GetBlocks(), tasks)
		if err != nil {
			return nil, "", err
		}
		block = free.String()
		now.Blocks = append(now.Blocks, block)
	}
	if len(r.GetAddresses()) > 0 {
		if err := p.mayLease(n, node, r.GetAddresses()); err != nil {
			return nil, "", err
		}
		now.Addresses = append(now.Addresses, r.GetAddresses()...)
		slices.Sort(now.Addresses)
		now.Addresses = slices.Compact(now.Addresses)
	}
	if block == "" && (proto.Equal(was, now) || was == nil && now.WgPublicKey == "" && len(now.Addresses) == 0) {
		return nil, "", nil
	}
	c, err = p.endpointsChange(key, now)
	return c, block, err
}

// checkKey refuses what every other node would choke on, or what would take another node's place.
func (p *Picture) checkKey(n *skepv1.Network, node string, r *skepv1.LeaseBlockRequest) error {
	name, port := n.GetSpec().GetName(), uint32(spec.EncryptedPort(n.GetVni()))
	switch {
	case !spec.Encrypted(n.GetSpec()):
		return fault.Invalid("network %s is not encrypted: node %s has no key to tell", name, node)
	case !isKey(r.GetWgPublicKey()):
		return fault.Invalid("node %s tells a key of network %s that is no WireGuard key: 32 bytes in base64 are wanted", node, name)
	case r.GetWgPort() != port:
		return fault.Invalid("node %s tells UDP port %d for network %s, whose port is %d on every node", node, r.GetWgPort(), name, port)
	}
	if other := p.keyOwner(r.GetNetworkId(), node, r.GetWgPublicKey()); other != "" {
		return fault.Conflict("node %s tells the key of node %s on network %s: a key is one node's", node, other, name)
	}
	return nil
}

// Return is a node's part of a network without blocks it gives back, those excepted that its tasks have addresses of.
// No change: it has none of them.
func (p *Picture) Return(node string, r *skepv1.ReturnBlocksRequest) (*Change, error) {
	key := keys.Endpoint.Key(r.GetNetworkId(), node)
	now := p.stored[key].Record().GetEndpoints()
	if now == nil {
		return nil, nil
	}
	used, back := p.inUse(r.GetNetworkId(), node), map[string]bool{}
	for _, b := range r.GetBlocks() {
		back[b] = true
	}
	before := len(now.Blocks)
	now.Blocks = slices.DeleteFunc(now.Blocks, func(b string) bool {
		block, err := netip.ParsePrefix(b)
		return back[b] && !(err == nil && slices.ContainsFunc(used, block.Contains))
	})
	switch {
	case len(now.Blocks) == before:
		return nil, nil
	case len(now.Blocks)+len(now.Addresses)+len(now.Endpoints) == 0: // the node has left the network
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

// Idle are the keys of the nodes' parts of networks that nothing says are in use: no task of the node is on the network, and
// none reports an address of it. Such a part is left over: what gives it back was lost, or its node keeps it on purpose.
func (p *Picture) Idle() (keys []string) {
	for key := range p.stored {
		if p.idle(key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func (p *Picture) idle(key string) bool {
	network, node, _ := keys.ParseEndpoint(key)
	s, ok := p.stored[key]
	return ok && s.tasks == 0 && len(s.Blocks)+len(s.wgKey) > 0 && p.networks[network] != nil && p.tasksOn(network, node) == 0 && len(p.inUse(network, node)) == 0
}

// Reclaim takes an idle part of a network from its node, nil if it is not idle.
func (p *Picture) Reclaim(key string) *Change {
	if !p.idle(key) {
		return nil
	}
	return &Change{Key: key, Revision: p.stored[key].Revision}
}

// freeBlock is the first block of a network that no node holds, for a node that has some already and so many tasks.
func (p *Picture) freeBlock(n *skepv1.Network, mine []string, tasks int) (netip.Prefix, error) {
	l, err := spec.NetworkLayout(n)
	if err != nil {
		return netip.Prefix{}, err
	}
	reserved := map[string]bool{}
	for _, a := range p.reserved(n.GetMeta().GetId()) {
		reserved[a] = true
	}
	have := 0
	for _, b := range mine {
		if block, err := netip.ParsePrefix(b); err == nil {
			have += usableIn(l, block, reserved)
		}
	}
	all := l.BlockCount() << (32 - l.BlockBits)
	if have >= 2*tasks+min(max(all/16, leastSpare), mostSpare) {
		return netip.Prefix{}, fault.Exhausted("the node has %d addresses of network %s for %d tasks: it gets more when it has more tasks", have, n.GetSpec().GetName(), tasks)
	}
	held, nodes := p.held(n.GetMeta().GetId())
	blocks, hosts := 0, 0
	for b := range l.Blocks() {
		usable := usableIn(l, b, reserved)
		if usable == 0 {
			continue // a block of one address may be just the network's, the gateway's or a service's
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

func usableIn(l ipam.Layout, b netip.Prefix, reserved map[string]bool) (n int) {
	for a := range l.Hosts(b) {
		if len(reserved) == 0 || !reserved[a.String()] {
			n++
		}
	}
	return n
}

// held says which blocks of a network are leased, and to how many nodes.
func (p *Picture) held(network string) (blocks map[netip.Prefix]bool, nodes int) {
	blocks = map[netip.Prefix]bool{}
	for item := range p.scopes[network] {
		s := p.stored[keys.Endpoint.Key(network, item)]
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
