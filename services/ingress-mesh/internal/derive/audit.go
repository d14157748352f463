package derive

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

// Evidence is what Audit compares, as it was at one moment.
type Evidence struct {
	records   map[string]Stored
	networks  map[string]*skepv1.Network
	services  map[string]*service
	subnets   map[string]string // of nodes, on skep0
	tasks     map[string]map[string]map[string]task
	statuses  map[string]map[string]status
	unsettled map[string]bool // nodes whose records are about to change
	down      map[string]bool // nodes that have no single addresses for now
}

// Evidence is taken without copying what it consists of: nothing of that is ever changed, only replaced. Records of nodes
// that the next Plan looks at are not compared with reports.
func (p *Picture) Evidence() Evidence {
	e := Evidence{
		records: maps.Clone(p.stored), networks: maps.Clone(p.networks), services: maps.Clone(p.services), statuses: maps.Clone(p.statuses),
		subnets: map[string]string{}, down: map[string]bool{}, tasks: make(map[string]map[string]map[string]task, len(p.tasks)), unsettled: maps.Clone(p.dirtyNodes),
	}
	for id, n := range p.nodes {
		if n.object != nil {
			e.subnets[id], e.down[id] = n.object.GetSubnet(), n.down
		}
	}
	for id, pages := range p.tasks {
		e.tasks[id] = maps.Clone(pages)
	}
	return e
}

// leased is a block and the node that holds it.
type leased struct {
	block netip.Prefix
	node  string
}

// auditor gathers findings about one scope after the other.
type auditor struct {
	Evidence
	found []string
}

// Audit says what contradicts itself: blocks that overlap, addresses outside their node's blocks (or subnet, on skep0),
// one address of two tasks or of a task and a service, and records that differ from what the node reports.
func Audit(e Evidence) []string {
	a := &auditor{Evidence: e}
	scopes := map[string]map[string]*skepv1.MeshEndpoints{}
	for key, s := range e.records {
		scope, item, _ := keys.ParseEndpoint(key)
		if eps := s.Record().GetEndpoints(); eps != nil {
			if scopes[scope] == nil {
				scopes[scope] = map[string]*skepv1.MeshEndpoints{}
			}
			scopes[scope][item] = eps
		}
	}
	for scope, nodes := range scopes {
		a.addresses(scope, nodes)
		if scope != keys.ScopeIngress {
			a.blocks(scope, nodes)
		}
	}
	a.reports(scopes)
	slices.Sort(a.found)
	return a.found
}

func (a *auditor) add(format string, args ...any) {
	a.found = append(a.found, fmt.Sprintf(format, args...))
}

// name is a scope as people know it.
func (a *auditor) name(scope string) string {
	if scope == keys.ScopeIngress {
		return "published ports"
	}
	if n := a.networks[scope].GetSpec().GetName(); n != "" {
		return "network " + n
	}
	return "network " + scope
}

func (a *auditor) addresses(scope string, nodes map[string]*skepv1.MeshEndpoints) {
	owner, single := map[string]string{}, map[string]string{}
	for _, id := range slices.Sorted(maps.Keys(a.services)) {
		s := a.services[id]
		vip := s.vips[scope]
		if vip == "" {
			continue
		}
		name := fmt.Sprintf("service %s (%s)", s.name, id)
		if other := owner[vip]; other != "" {
			a.add("%s: %s is the address of %s and of %s", a.name(scope), vip, other, name)
		}
		owner[vip] = name
	}
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		mine, where := nodes[node].GetBlocks(), "in no block"
		if scope == keys.ScopeIngress {
			mine, where = []string{a.subnets[node]}, "not in the subnet"
		}
		inside := make([]netip.Prefix, 0, len(mine))
		for _, b := range mine {
			if p, err := netip.ParsePrefix(b); err == nil {
				inside = append(inside, p)
			}
		}
		for _, text := range nodes[node].GetAddresses() {
			if other := single[text]; other != "" {
				a.add("%s: address %s is leased to node %s and to node %s", a.name(scope), text, other, node)
			}
			single[text] = node
			if addr, err := netip.ParseAddr(text); err == nil {
				inside = append(inside, netip.PrefixFrom(addr, addr.BitLen()))
			}
		}
		for _, t := range nodes[node].GetEndpoints() {
			if other := owner[t.GetAddr()]; other != "" {
				a.add("%s: %s is the address of %s and of task %s", a.name(scope), t.GetAddr(), other, t.GetTaskId())
			}
			owner[t.GetAddr()] = "task " + t.GetTaskId()
			addr, err := netip.ParseAddr(t.GetAddr())
			if err != nil || !slices.ContainsFunc(inside, func(p netip.Prefix) bool { return p.Contains(addr) }) {
				a.add("%s: address %q of task %s is %s of node %s", a.name(scope), t.GetAddr(), t.GetTaskId(), where, node)
			}
		}
	}
}

func (a *auditor) blocks(scope string, nodes map[string]*skepv1.MeshEndpoints) {
	var all []leased
	for node, eps := range nodes {
		for _, b := range eps.GetBlocks() {
			p, err := netip.ParsePrefix(b)
			if err != nil {
				a.add("%s: block %q of node %s is no range of addresses", a.name(scope), b, node)
				continue
			}
			all = append(all, leased{p, node})
		}
	}
	slices.SortFunc(all, func(x, y leased) int {
		if c := x.block.Addr().Compare(y.block.Addr()); c != 0 {
			return c
		}
		if c := x.block.Bits() - y.block.Bits(); c != 0 { // the larger first
			return c
		}
		return strings.Compare(x.node, y.node)
	})
	var widest leased // that reaches the furthest so far: a later block overlaps it or none
	for _, b := range all {
		if widest.node != "" && widest.block.Overlaps(b.block) {
			a.add("%s: block %s of node %s overlaps %s of node %s", a.name(scope), widest.block, widest.node, b.block, b.node)
			continue
		}
		widest = b
	}
}

// reports compares the records of networks with what the nodes report.
func (a *auditor) reports(scopes map[string]map[string]*skepv1.MeshEndpoints) {
	type place struct{ network, task string }
	for node := range a.subnets {
		if a.unsettled[node] {
			continue
		}
		recorded := map[place]string{}
		for scope, nodes := range scopes {
			if scope == keys.ScopeIngress {
				continue
			}
			for _, t := range nodes[node].GetEndpoints() {
				recorded[place{scope, t.GetTaskId()}] = t.GetAddr()
			}
		}
		for _, page := range a.tasks[node] {
			for task := range page {
				for _, n := range a.statuses[node][task].networks {
					at := place{n.network, task}
					left := a.down[node] && recorded[at] == "" // its address is for the task that comes after it
					if a.networks[n.network] != nil && n.v4 != "" && recorded[at] != n.v4 && !left {
						a.add("%s: task %s on node %s has address %s by its node's report, and its record says %q: the node was not leased that address, or the task is not on the network", a.name(n.network), task, node, n.v4, recorded[at])
					}
					delete(recorded, at)
				}
			}
		}
		for at, addr := range recorded {
			a.add("%s: task %s is recorded with address %s on node %s, which reports no such task", a.name(at.network), at.task, addr, node)
		}
	}
}
