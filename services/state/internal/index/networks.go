package index

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/kv"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

type network struct {
	stored
	name     string
	removing bool
	written  int64 // unix ms
	subnets  []netip.Prefix
}

// networks is the part of the picture that is about networks: the objects, and which services are on each.
type networks struct {
	byID  map[string]*network
	names map[string]string              // lower-case name → id
	order []string                       // lower-case names, sorted
	users map[string]map[string]struct{} // network id, or the word of a predefined one → service ids
}

func (n *networks) reset() {
	*n = networks{byID: map[string]*network{}, names: map[string]string{}, users: map[string]map[string]struct{}{}}
}

func (n *networks) apply(id string, e kv.Entry, bulk bool) {
	if old := n.byID[id]; old != nil {
		lower := strings.ToLower(old.name)
		if n.names[lower] == id {
			delete(n.names, lower)
			if i, ok := slices.BinarySearch(n.order, lower); ok && !bulk {
				n.order = slices.Delete(n.order, i, i+1)
			}
		}
		delete(n.byID, id)
	}
	if e.Deleted {
		return
	}
	var o skepv1.Network
	if proto.Unmarshal(e.Value, &o) != nil {
		return
	}
	x := &network{stored: keep(e), name: strings.Clone(o.GetSpec().GetName()), removing: o.Removing, written: millis(e.Time)}
	for _, c := range o.Ipam {
		if p, err := netip.ParsePrefix(c.Subnet); err == nil {
			x.subnets = append(x.subnets, p)
		}
	}
	n.byID[strings.Clone(id)] = x
	lower := strings.ToLower(x.name)
	n.names[lower] = id
	if bulk {
		n.order = append(n.order, lower)
	} else if i, ok := slices.BinarySearch(n.order, lower); !ok {
		n.order = slices.Insert(n.order, i, lower)
	}
}

// joined is what a service is on, as stored: networks by id or word, and the mesh if it publishes ports there.
func joined(s *skepv1.ServiceSpec) []string {
	var out []string
	for _, n := range s.GetTask().GetNetworks() {
		out = append(out, n.GetTarget())
	}
	for _, p := range s.GetEndpoint().GetPorts() {
		if p.GetPublishMode() == skepv1.PublishMode_PUBLISH_MODE_INGRESS {
			return append(out, spec.NetworkIngress)
		}
	}
	return out
}

// move takes a service off the networks it was on and puts it on others.
func (n *networks) move(service string, from, to []string) {
	for _, id := range from {
		delete(n.users[id], service)
		if len(n.users[id]) == 0 {
			delete(n.users, id)
		}
	}
	for _, id := range to {
		if n.users[id] == nil {
			n.users[id] = map[string]struct{}{}
		}
		n.users[id][service] = struct{}{}
	}
}

// Network is the network of that id as stored, its version filled in; nil when there is none.
func (x *Index) Network(id string) *skepv1.Network {
	x.mu.RLock()
	n := x.nets.byID[id]
	x.mu.RUnlock()
	if n == nil {
		return nil
	}
	o := &skepv1.Network{}
	if proto.Unmarshal(n.raw, o) != nil {
		return nil
	}
	if o.Meta == nil {
		o.Meta = &skepv1.Meta{Id: id}
	}
	if o.Spec == nil {
		o.Spec = &skepv1.NetworkSpec{}
	}
	o.Meta.Version = n.rev
	return o
}

// NetworkState is what decides whether a service may be on a network.
type NetworkState struct {
	Name     string
	Revision uint64 // of the object
	Removing bool
	Subnets  []netip.Prefix
}

// NetworkState looks a network up without decoding it.
func (x *Index) NetworkState(id string) (NetworkState, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := x.nets.byID[id]
	if n == nil {
		return NetworkState{}, false
	}
	return NetworkState{Name: n.name, Revision: n.rev, Removing: n.removing, Subnets: slices.Clone(n.subnets)}, true
}

// NetworkByName finds a network by its name, whatever the case.
func (x *Index) NetworkByName(name string) (id string, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	id, ok = x.nets.names[strings.ToLower(name)]
	return id, ok
}

// Networks lists the networks by name.
func (x *Index) Networks() []Named {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]Named, 0, len(x.nets.order))
	for _, lower := range x.nets.order {
		id := x.nets.names[lower]
		if n := x.nets.byID[id]; n != nil {
			out = append(out, Named{ID: id, Name: n.name})
		}
	}
	return out
}

// NetworkUsers are the services on a network (an id or a word), by name.
func (x *Index) NetworkUsers(id string) []Named {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]Named, 0, len(x.nets.users[id]))
	for svc := range x.nets.users[id] {
		if s := x.services[svc]; s != nil {
			out = append(out, Named{ID: svc, Name: s.name})
		}
	}
	slices.SortFunc(out, func(a, b Named) int { return cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)) })
	return out
}

// NetworkUserCount is how many services are on a network.
func (x *Index) NetworkUserCount(id string) uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return uint64(len(x.nets.users[id]))
}

// NetworkUsedBefore reports whether a service on the network was last written before a revision.
func (x *Index) NetworkUsedBefore(id string, rev uint64) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for svc := range x.nets.users[id] {
		if s := x.services[svc]; s != nil && s.rev < rev {
			return true
		}
	}
	return false
}

// NetworksInUse are the ids and words that services name, whether or not they exist.
func (x *Index) NetworksInUse() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]string, 0, len(x.nets.users))
	for id := range x.nets.users {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// Subnet is one subnet of a network.
type Subnet struct {
	Network Named
	Prefix  netip.Prefix
}

// Subnets are those of all networks.
func (x *Index) Subnets() []Subnet {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]Subnet, 0, len(x.nets.byID))
	for _, lower := range x.nets.order {
		id := x.nets.names[lower]
		n := x.nets.byID[id]
		if n == nil {
			continue
		}
		for _, p := range n.subnets {
			out = append(out, Subnet{Network: Named{ID: id, Name: n.name}, Prefix: p})
		}
	}
	return out
}

// StaleRemovals are networks whose removal began before a time and has not ended.
func (x *Index) StaleRemovals(beforeMs int64) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []string
	for id, n := range x.nets.byID {
		if n.removing && n.written < beforeMs {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// NodeAddrs are the addresses by which the admitted nodes reach one another.
func (x *Index) NodeAddrs() []netip.Addr {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all := map[netip.Addr]struct{}{}
	for _, n := range x.nodes {
		var d skepv1.NodeDescription
		if n.rev == 0 || n.desc.rev == 0 || proto.Unmarshal(n.desc.raw, &d) != nil {
			continue
		}
		for _, s := range []string{d.Addr, d.DataPathAddr} {
			if a, ok := address(s); ok {
				all[a] = struct{}{}
			}
		}
	}
	return slices.Collect(maps.Keys(all))
}

// Route is a network that a node reaches by a route of its own.
type Route struct {
	Node   string // for people
	Prefix netip.Prefix
}

// Routes are those of the admitted nodes, in the order of the nodes' names.
func (x *Index) Routes() (out []Route) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for id, n := range x.nodes {
		var d skepv1.NodeDescription
		if n.rev == 0 || n.desc.rev == 0 || proto.Unmarshal(n.desc.raw, &d) != nil {
			continue
		}
		for _, text := range d.Routes {
			if p, err := netip.ParsePrefix(text); err == nil {
				out = append(out, Route{Node: cmp.Or(d.Hostname, id), Prefix: p})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Route) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	return out
}

// address reads an address with or without a port.
func address(s string) (netip.Addr, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap(), true
	}
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err == nil
}
