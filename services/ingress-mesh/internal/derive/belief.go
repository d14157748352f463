package derive

import (
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"skep.dev/libs/ipam"
	"skep.dev/libs/keys"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// A node may lie, or be somebody else by now. Its word on where its tasks are is taken only as far as it follows from
// what others gave it: tasks from the scheduler, networks from the tasks' revisions, address blocks and subnets from the
// managers. What it says of its own tasks' health is its own affair.

// part is what a node was given on one network.
type part struct {
	layout  ipam.Layout
	subnet6 netip.Prefix
	blocks  []netip.Prefix
	mine    []string          // single addresses
	single  map[string]string // and whose those of the network are, by node
}

// part is what a node was given on a network, the single addresses it has now among it: nothing while it has none of
// these and no blocks.
func (p *Picture) part(network, node string, mine []string) (out part) {
	n, s := p.networks[network], p.stored[keys.Endpoint.Key(network, node)]
	if n == nil || len(s.Blocks)+len(mine) == 0 {
		return out
	}
	out.mine, out.single = mine, p.single[network]
	var err error
	if out.layout, err = spec.NetworkLayout(n); err != nil {
		return out
	}
	if _, six := spec.NetworkIPAM(n.GetIpam()); six != nil {
		out.subnet6, _ = netip.ParsePrefix(six.GetSubnet()) // it was read to be told from the other
	}
	for _, b := range s.Blocks {
		if block, err := netip.ParsePrefix(b); err == nil {
			out.blocks = append(out.blocks, block)
		}
	}
	return out
}

// has reports whether a task of the node may have an address there, one of the blocks that nobody has by itself.
func (x part) has(addr string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(addr)
	return a, err == nil && x.layout.IsTask(a) && x.single[a.String()] == "" && slices.ContainsFunc(x.blocks, func(b netip.Prefix) bool { return b.Contains(a) })
}

// holds reports whether the node has an address by itself.
func (x part) holds(addr string) bool { return slices.Contains(x.mine, addr) }

// member reports whether a task is on a network by its revision. It is not known of a revision that is gone, as of a
// service that was removed while its tasks end, or that the feed has not told of yet.
func (p *Picture) member(t task, network string) (is, known bool) {
	nets, known := p.revs[t.service][t.revision]
	_, is = memberOf(nets, network)
	return is, known
}

// reported is where a task of a node is on a network, ok if it is so by what the node was given: an address of its
// blocks, or the one that the task's revision names and that was leased to the node by itself, on a network of that
// revision. Without knowing the revision what was leased says enough: it was for a task on that network. The IPv6 address
// is the one that goes with the other, unless the revision names it.
func (p *Picture) reported(x part, t task, a address) (v4, v6 string, ok bool) {
	nets, known := p.revs[t.service][t.revision]
	m, is := memberOf(nets, a.network)
	if known && !is {
		return "", "", false
	}
	addr, ok := x.has(a.v4)
	if m.v4 != "" || !known && !ok {
		if addr, ok = address4(a.v4), x.holds(a.v4); m.v4 != "" && a.v4 != m.v4 {
			return "", "", false
		}
	}
	if !ok {
		return "", "", false
	}
	six := ipam.Embed(x.subnet6, addr)
	switch {
	case a.v6 == "":
	case (m.v6 != "" && a.v6 == m.v6 || !known) && x.holds(a.v6):
		v6 = a.v6
	case m.v6 == "" && six.IsValid():
		v6 = six.String()
	}
	return addr.String(), v6, true
}

func address4(text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || !a.Is4() {
		return netip.Addr{}
	}
	return a
}

// bridged is where a task is on its node's bridge, ok if that is an address its node's subnet has for tasks.
func bridged(o *skepv1.NodeObject, st status) (v4, v6 string, ok bool) {
	subnet, err := netip.ParsePrefix(o.GetSubnet())
	if err != nil || !subnet.Addr().Is4() {
		return "", "", false
	}
	subnet = subnet.Masked()
	a, err := netip.ParseAddr(st.addr)
	gateway := subnet.Addr().Next()
	// The last address is the broadcast one: the one after it is outside.
	if err != nil || !subnet.Contains(a) || !subnet.Contains(a.Next()) || a.Compare(gateway) <= 0 {
		return "", "", false
	}
	if st.addr6 != "" {
		v6 = ipam.NodeAddr6(a).String()
	}
	return a.String(), v6, true
}

// underlay is where a node's data path is reached, "" if nothing can be sent there: such an entry would be refused by
// every other node's kernel, or send what is meant for one node to many.
func underlay(addr string) string {
	a, err := netip.ParseAddr(addr)
	if a = a.Unmap(); err != nil || a.Zone() != "" || !ipam.Unicast(a) {
		return ""
	}
	return a.String()
}

// tasksOn counts the tasks of a node that have an address of a network, or will.
func (p *Picture) tasksOn(network, node string) (n int) {
	for name, t := range p.tasksOf(node) {
		st := p.statuses[node][name]
		if st.ended() {
			continue
		}
		is, known := p.member(t, network)
		if is || !known && st.on(network) && p.holds(network, node) {
			n++
		}
	}
	return n
}

// holds reports whether a node was given anything of a network.
func (p *Picture) holds(network, node string) bool {
	s := p.stored[keys.Endpoint.Key(network, node)]
	return len(s.Blocks)+len(s.single) > 0
}

// keyOf is a node's key of a network as stored, "" for one that is none.
func keyOf(n *skepv1.Network, s Stored) (key string, port uint32) {
	if !spec.Encrypted(n.GetSpec()) || !isKey(s.wgKey) {
		return "", 0
	}
	return s.wgKey, uint32(spec.EncryptedPort(n.GetVni()))
}

// isKey reports whether a text is a WireGuard key in its one spelling.
func isKey(text string) bool {
	k, err := wgtypes.ParseKey(text)
	return err == nil && k != wgtypes.Key{} && k.String() == text
}

// keyOwner is the other node that has a key on a network, "" if none has.
func (p *Picture) keyOwner(network, node, key string) string {
	for item := range p.scopes[network] {
		if _, isService := keys.ParseServiceItem(item); !isService && item != node && p.stored[keys.Endpoint.Key(network, item)].wgKey == key {
			return item
		}
	}
	return ""
}
