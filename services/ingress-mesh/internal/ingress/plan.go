package ingress

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"skep.dev/libs/ipam"
)

// portKey is a published port.
type portKey struct {
	proto uint8
	port  uint16
}

func (k portKey) String() string { return fmt.Sprintf("%d/%s", k.port, protocolName(k.proto)) }

// target is where a connection may be sent.
type target struct {
	addr netip.Addr
	port uint16
}

// slot is a target with the task behind it. The slot's index is what the kernel draws at random.
type slot struct {
	target
	task string
}

// published is a port with at least one backend.
type published struct {
	owner string // see ownerOf
	slots []slot
}

// portMap is what is published in one address family.
type portMap struct {
	ports   map[portKey]published
	refused map[portKey]string // no backend: who owns it
}

// slots are its backends alone.
func (m portMap) slots() slotMap {
	out := slotMap{}
	for k, e := range m.ports {
		out[k] = e.slots
	}
	return out
}

// slotMap is what the kernel has of it.
type slotMap map[portKey][]slot

// backends are the kernel's maps of them.
type backends struct{ v4, v6 slotMap }

// plan is State as the kernel's maps hold it.
type plan struct {
	v4, v6   portMap
	hosts    hostMap
	filtered bool     // bridged packets pass iptables
	peers    []Peer   // by number
	problems []string // parts of State that cannot be
}

const hostOwner = "host"

// ownerOf is the comment of a port's map element: it tells Ports, which reads the kernel, whose the port is.
func ownerOf(service string) string { return "service " + service }

// claim is a port with its targets in both families.
type claim struct {
	owner  string
	v4, v6 []slot
}

func (c *claim) add(a, a6 netip.Addr, port uint16, task string) {
	c.v4 = append(c.v4, slot{target{a.Unmap(), port}, task})
	if a6.IsValid() {
		c.v6 = append(c.v6, slot{target{a6, port}, task})
	}
}

// planState derives the maps; without IPv6 on the node, those of IPv6 are empty. Targets that the kernel has already
// keep their slots, so that their elements, and with them their counters, stay as they are.
func planState(cfg *Config, st State, have backends, ipv6 bool) plan {
	p := plan{}
	p.planPeers(cfg, st.Peers)
	want := p.claims(st)
	p.v4 = p.portMap(want, have.v4, func(c *claim) []slot { return c.v4 }, netip.Addr.Is4)
	if ipv6 {
		p.v6 = p.portMap(want, have.v6, func(c *claim) []slot { return c.v6 }, func(a netip.Addr) bool { return a.Is6() && !a.Is4In6() })
	}
	p.hosts = p.hostMaps(st, ipv6)
	slices.Sort(p.problems)
	return p
}

// portMap gives the targets of one family their slots. A port without any belongs to its owner all the same.
func (p *plan) portMap(want map[portKey]*claim, have slotMap, of func(*claim) []slot, fits func(netip.Addr) bool) portMap {
	out := portMap{map[portKey]published{}, map[portKey]string{}}
	for k, c := range want {
		slots := p.usable(k, of(c), fits)
		if len(slots) == 0 {
			out.refused[k] = c.owner
			continue
		}
		out.ports[k] = published{c.owner, assign(have[k], slots)}
	}
	return out
}

// claims are the ports with who has them: the first that asks for one.
func (p *plan) claims(st State) map[portKey]*claim {
	want := map[portKey]*claim{}
	get := func(k portKey, owner string) *claim {
		w := want[k]
		if w == nil {
			w = &claim{owner: owner}
			want[k] = w
		}
		return w
	}
	for _, s := range st.Services {
		k := portKey{protocolNumber(s.Protocol), s.Port}
		if k.proto == 0 || k.port == 0 {
			p.problems = append(p.problems, fmt.Sprintf("service %s publishes %d/%s, which is no port: it is left out", s.ID, s.Port, s.Protocol))
			continue
		}
		w := get(k, ownerOf(s.ID))
		if w.owner != ownerOf(s.ID) {
			p.problems = append(p.problems, fmt.Sprintf("port %s is published by %s and by service %s: the first has it", k, w.owner, s.ID))
			continue
		}
		for _, b := range s.Backends {
			w.add(b.Addr, b.Addr6, b.Port, b.Task)
		}
	}
	for _, h := range st.HostPorts {
		if h.At.IsValid() {
			continue // hostMaps
		}
		k := portKey{protocolNumber(h.Protocol), h.Published}
		if k.proto == 0 || k.port == 0 {
			p.problems = append(p.problems, fmt.Sprintf("task %s publishes %d/%s on its node, which is no port: it is left out", h.Task, h.Published, h.Protocol))
			continue
		}
		w := get(k, hostOwner)
		if w.owner != hostOwner {
			p.problems = append(p.problems, fmt.Sprintf("port %s is published by %s and by task %s on this node: the first has it", k, w.owner, h.Task))
			continue
		}
		w.add(h.Addr, h.Addr6, h.Target, h.Task)
	}
	return want
}

func (p *plan) planPeers(cfg *Config, peers []Peer) {
	seen := map[uint16]string{}
	for _, e := range slices.SortedStableFunc(slices.Values(peers), func(a, b Peer) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.ID, b.ID))
	}) {
		e.Subnet, e.Underlay = e.Subnet.Masked(), e.Underlay.Unmap()
		switch {
		case e.Number == cfg.Number:
			p.problems = append(p.problems, fmt.Sprintf("node %s has number %d, which is this node's: it is left out", e.ID, e.Number))
		case e.Number == 0 || e.Number > maxNumber || !e.Subnet.IsValid() || !e.Subnet.Addr().Is4() || e.Subnet.Overlaps(cfg.Subnet):
			p.problems = append(p.problems, fmt.Sprintf("node %s has number %d and subnet %s, which cannot be: it is left out", e.ID, e.Number, e.Subnet))
		case !e.Underlay.IsValid() || e.Underlay.Is4() != cfg.Underlay.Is4():
			p.problems = append(p.problems, fmt.Sprintf("node %s has data path address %s, which this node (%s) cannot send to: it is left out", e.ID, e.Underlay, cfg.Underlay))
		case !ipam.Elsewhere(e.Underlay, cfg.Underlay):
			p.problems = append(p.problems, fmt.Sprintf("node %s has data path address %s, which is no other host's: it is left out", e.ID, e.Underlay))
		case seen[e.Number] != "":
			p.problems = append(p.problems, fmt.Sprintf("nodes %s and %s both have number %d: the first has it", seen[e.Number], e.ID, e.Number))
		default:
			seen[e.Number] = e.ID
			p.peers = append(p.peers, e)
		}
	}
}

// usable drops targets that are none or come twice, and orders the rest.
func (p *plan) usable(k portKey, in []slot, fits func(netip.Addr) bool) []slot {
	out := in[:0]
	for _, s := range in {
		if !fits(s.addr) || s.port == 0 {
			p.problems = append(p.problems, fmt.Sprintf("task %s behind port %s has target %s:%d, which is none: it is left out", s.task, k, s.addr, s.port))
			continue
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b slot) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.port, b.port), cmp.Compare(a.task, b.task))
	})
	return slices.CompactFunc(out, func(a, b slot) bool { return a.target == b.target })
}

// assign gives every wanted target a slot: its old one if that is among the first len(want), else one that is free.
func assign(have, want []slot) []slot {
	out := make([]slot, len(want))
	taken := make([]bool, len(want))
	pending := map[target]slot{}
	for _, w := range want {
		pending[w.target] = w
	}
	for i, h := range have {
		if w, ok := pending[h.target]; ok && i < len(want) {
			out[i], taken[i] = w, true
			delete(pending, h.target)
		}
	}
	next := 0
	for _, w := range want {
		if _, ok := pending[w.target]; !ok {
			continue
		}
		for taken[next] {
			next++
		}
		out[next], taken[next] = w, true
	}
	return out
}

// sizes are the distinct numbers of backends: each has a chain that draws among so many.
func (m portMap) sizes() []int {
	n := map[int]bool{}
	for _, e := range m.ports {
		n[len(e.slots)] = true
	}
	return slices.Sorted(maps.Keys(n))
}
