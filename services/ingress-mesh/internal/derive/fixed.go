package derive

import (
	"maps"
	"net/netip"
	"slices"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

// A service with one task may name that task's address. Such an address is nobody's else, in whoever's block it is, and
// goes with the task from node to node: it is leased by itself, to one node at a time. A node has it for as long as it has
// such a task that has not ended, and is not down; the next one gets it after that, and when no task of any node that is
// up reports it any more.

// member is a network of a revision, with the addresses its task has there, "" = any.
type member struct{ network, v4, v6 string }

func newMember(n *skepv1.NetworkAttachment) member {
	return member{n.GetTarget(), n.GetIpv4Address(), n.GetIpv6Address()}
}

func (m member) fixed() (out []string) {
	for _, a := range []string{m.v4, m.v6} {
		if a != "" {
			out = append(out, a)
		}
	}
	return out
}

func memberOf(nets []member, network string) (member, bool) {
	i := slices.IndexFunc(nets, func(m member) bool { return m.network == network })
	if i < 0 {
		return member{}, false
	}
	return nets[i], true
}

// refix notes which addresses a service names. Every node of a network is told of them, so that none gives one away.
func (p *Picture) refix(id string, was, is *service) {
	each := func(s *service, do func(network, addr string)) {
		if s == nil {
			return
		}
		for network, addrs := range s.fixed {
			for _, a := range addrs {
				do(network, a.String())
				p.dirtyNetworks[network] = true
			}
		}
	}
	each(was, func(network, addr string) {
		if p.fixed[network][addr] == id {
			delete(p.fixed[network], addr)
		}
	})
	each(is, func(network, addr string) {
		if p.fixed[network] == nil {
			p.fixed[network] = map[string]string{}
		}
		p.fixed[network][addr] = id
	})
}

// leased notes that the single addresses of a node's part of a network changed. Nodes with tasks that have been waiting for
// one ask again by themselves; one that has it already, and was down for a moment, is looked at.
func (p *Picture) leased(network, node string, was, is []string) {
	if slices.Equal(was, is) {
		return
	}
	for _, a := range slices.Concat(was, is) {
		if p.fixed[network][a] == "" {
			p.dirtyNetworks[network] = true // it is reserved for as long as a node has it
		}
	}
	for _, a := range was {
		if p.single[network][a] == node {
			delete(p.single[network], a)
			if !slices.Contains(is, a) {
				p.markUsers(p.fixed[network][a])
			}
		}
	}
	if len(p.single[network]) == 0 {
		delete(p.single, network)
	}
	for _, a := range is {
		if p.single[network] == nil {
			p.single[network] = map[string]string{}
		}
		if p.single[network][a] == "" { // two that hold one cannot be: the first has it
			p.single[network][a] = node
		}
	}
}

// reserved are the addresses of a network that are no block's, sorted.
func (p *Picture) reserved(network string) []string {
	all := maps.Clone(p.fixed[network])
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, p.single[network])
	if len(all) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(all))
}

// wanted are the addresses that the tasks of a node which have not ended have by their revisions' word, by network, and
// whether a task reports that it has it. Of a revision that is gone, those count that its task reports.
func (p *Picture) wanted(node string) map[string]map[string]bool {
	out := map[string]map[string]bool{}
	note := func(network, addr string, has bool) {
		if out[network] == nil {
			out[network] = map[string]bool{}
		}
		out[network][addr] = out[network][addr] || has
	}
	for name, t := range p.tasksOf(node) {
		st := p.statuses[node][name]
		if st.ended() {
			continue
		}
		nets, known := p.revs[t.service][t.revision]
		for _, m := range nets {
			for _, a := range m.fixed() {
				note(m.network, a, slices.Contains(st.addrs(m.network), a))
			}
		}
		if known {
			continue
		}
		for _, n := range st.networks {
			for _, a := range []string{n.v4, n.v6} {
				if a != "" && p.single[n.network][a] == node {
					note(n.network, a, true)
				}
			}
		}
	}
	return out
}

// kept are the single addresses that a node has, by network: those leased to it which a task of it still wants, and those
// that such a task has already while nobody else does.
func (p *Picture) kept(node string) map[string][]string {
	out := map[string][]string{}
	if p.nodes[node].down {
		return out
	}
	for network, addrs := range p.wanted(node) {
		if p.networks[network] == nil {
			continue
		}
		for _, a := range slices.Sorted(maps.Keys(addrs)) {
			if holder := p.single[network][a]; holder == node || addrs[a] && holder == "" && p.blockOwner(network, node, a) == "" {
				out[network] = append(out[network], a)
			}
		}
	}
	return out
}

// blockOwner is the node that is up and has an address in a block of it, "" if none has or it is the node asked about.
func (p *Picture) blockOwner(network, but, addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return ""
	}
	for item := range p.scopes[network] {
		if item == but || !p.IsUp(item) {
			continue
		}
		for _, b := range p.stored[keys.Endpoint.Key(network, item)].Blocks {
			if block, err := netip.ParsePrefix(b); err == nil && block.Contains(a) {
				return item
			}
		}
	}
	return ""
}

// mayLease refuses a node single addresses of a network: fault.CodeDenied, no task of it has such a one by the scheduler's
// word; fault.CodeConflict, another task has it still. What a node reports counts as far as the address is in its block.
func (p *Picture) mayLease(n *skepv1.Network, node string, addrs []string) error {
	id, name := n.GetMeta().GetId(), n.GetSpec().GetName()
	wanted := p.wanted(node)[id]
	for _, a := range addrs {
		holder := p.single[id][a]
		switch _, ok := wanted[a]; {
		case !ok:
			return fault.Denied("node %s has no task whose service gives it address %.64q on network %s", node, a, name)
		case p.nodes[node].down:
			return fault.Unavailable("node %s counts as down: it gets address %s of network %s when it does not any more", node, a, name)
		case holder == node:
			continue
		case holder != "":
			hostname, _ := p.Host(holder)
			return fault.Conflict("address %s of network %s is still a task's on node %s: waiting until that one has ended", a, name, hostname)
		}
		owner := p.blockOwner(id, node, a)
		for task, st := range p.statuses[owner] {
			if _, there := p.taskOf(owner, task); there && !st.ended() && slices.Contains(st.addrs(id), a) {
				hostname, _ := p.Host(owner)
				return fault.Conflict("address %s of network %s is used by task %s on node %s: waiting until that one has ended (`skep service update --force` of its service gives it another)", a, name, task, hostname)
			}
		}
	}
	return nil
}

// Blocker is the node in whose block a single address is that another asks for, "" if there is none: it must have taken the
// record told (key → revision), which says that the address is none of its block, and have no task with it.
func (p *Picture) Blocker(node string, r *skepv1.LeaseBlockRequest) (blocker string, told map[string]uint64, err error) {
	n := p.networks[r.GetNetworkId()]
	if n == nil || p.known(node) == nil {
		return "", nil, nil // Lease says so
	}
	if err := p.mayLease(n, node, r.GetAddresses()); err != nil {
		return "", nil, err
	}
	info := p.stored[keys.Endpoint.Key(r.GetNetworkId(), keys.ItemInfo)]
	for _, a := range r.GetAddresses() {
		if p.single[r.GetNetworkId()][a] == node {
			continue
		}
		// One that only a revision before the newest names is nobody's but of tasks of that.
		if p.fixed[r.GetNetworkId()][a] != "" && !slices.Contains(info.Record().GetNetwork().GetReserved(), a) {
			return "", nil, fault.Unavailable("the nodes do not know yet that address %s is a service's: try again", a)
		}
		if blocker = p.blockOwner(r.GetNetworkId(), node, a); blocker != "" {
			return blocker, map[string]uint64{keys.Endpoint.Key(r.GetNetworkId(), keys.ItemInfo): info.Revision}, nil
		}
	}
	return "", nil, nil
}
