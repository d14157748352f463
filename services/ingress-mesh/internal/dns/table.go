package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Network is one network with the services on it.
type Network struct {
	ID, Name        string
	Subnet, Subnet6 netip.Prefix // an invalid one stands for none
	Services        []Service
}

// Service is one service on one network.
type Service struct {
	ID, Name  string
	Aliases   []string
	VIP, VIP6 netip.Addr // an invalid one stands for none
	DNSRR     bool       // the name stands for the tasks rather than for the virtual address
	Tasks     []Task
}

// Task is one task of a service with its addresses on the network.
type Task struct {
	ID          string
	Slot        uint64 // 0: a task of a global service, whose place is its node
	Node        string
	Addr, Addr6 netip.Addr
	Serving     bool
	Starting    bool // it does not serve, and is listed behind "tasks." all the same
}

// Table is what the names on some networks stand for. It is not changed after it was made.
type Table struct{ nets []*network }

// network holds names in lower case.
type network struct {
	name    string // as given
	suffix  string
	subnets []netip.Prefix
	names   map[string][]netip.Addr // services and their aliases
	tasks   map[string][]netip.Addr // what is behind "tasks."
	byID    map[string]taskName
	owners  map[netip.Addr]owner
}

type taskName struct {
	name  string
	addrs []netip.Addr
}

// owner is who has an address; without a task, it is a virtual one.
type owner struct{ service, place, task string }

// NewTable makes the table of the names on networks. On each of them, `<service>` and its aliases stand for the virtual
// address, or for the tasks that serve if it has none by choice; `tasks.<service>` and `tasks.<alias>` for the tasks that
// serve or start; `<service>.<slot>.<task>` for that task, serving or not. Each of these may be followed by `.<network>`. Without
// that, a name that is on several networks stands for what it is on all of them.
func NewTable(networks []Network) *Table {
	t := &Table{}
	for _, n := range networks {
		t.nets = append(t.nets, newNetwork(n))
	}
	return t
}

func newNetwork(n Network) *network {
	out := &network{
		name: n.Name, suffix: "." + strings.ToLower(n.Name),
		names: map[string][]netip.Addr{}, tasks: map[string][]netip.Addr{}, byID: map[string]taskName{}, owners: map[netip.Addr]owner{},
	}
	for _, p := range []netip.Prefix{n.Subnet, n.Subnet6} {
		if p.IsValid() {
			out.subnets = append(out.subnets, p)
		}
	}
	for _, s := range n.Services {
		out.add(s)
	}
	return out
}

func (n *network) add(s Service) {
	var serving, listed []netip.Addr
	for _, t := range s.Tasks {
		addrs := valid(t.Addr, t.Addr6)
		place := t.Node
		if t.Slot != 0 {
			place = strconv.FormatUint(t.Slot, 10)
		}
		n.byID[strings.ToLower(t.ID)] = taskName{strings.ToLower(s.Name + "." + place + "." + t.ID), addrs}
		for _, a := range addrs {
			n.owners[a] = owner{s.Name, place, t.ID}
		}
		if t.Serving {
			serving = append(serving, addrs...)
		}
		if t.Serving || t.Starting {
			listed = append(listed, addrs...)
		}
	}
	virtual := valid(s.VIP, s.VIP6)
	for _, a := range virtual {
		n.owners[a] = owner{service: s.Name}
	}
	stands := virtual
	if s.DNSRR {
		stands = serving
	}
	seen := map[string]bool{}
	for _, name := range append([]string{s.Name}, s.Aliases...) {
		name = strings.ToLower(name)
		if name == "" || seen[name] {
			continue
		}
		seen[name] = true
		n.names[name] = union(n.names[name], stands)
		n.tasks[name] = union(n.tasks[name], listed)
	}
}

func valid(list ...netip.Addr) (out []netip.Addr) {
	for _, a := range list {
		if a.IsValid() {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// union joins two lists without repeating an address. With nothing in the first one it is the second one itself.
func union(a, b []netip.Addr) []netip.Addr {
	if len(a) == 0 {
		return b
	}
	seen := make(map[netip.Addr]bool, len(a))
	for _, x := range a {
		seen[x] = true
	}
	a = slices.Clip(a) // lists are shared
	for _, x := range b {
		if !seen[x] {
			a = append(a, x)
		}
	}
	return a
}

// A implements Zone. The list is shared: read it, do not change it.
func (t *Table) A(name string) (addrs []netip.Addr, ok bool) {
	for _, n := range t.nets {
		if list, found := n.find(name); found {
			addrs, ok = union(addrs, list), true
		}
		if rest, cut := strings.CutSuffix(name, n.suffix); cut {
			if list, found := n.find(rest); found {
				addrs, ok = union(addrs, list), true
			}
		}
	}
	return addrs, ok
}

func (n *network) find(name string) ([]netip.Addr, bool) {
	if list, ok := n.names[name]; ok {
		return list, true
	}
	if rest, ok := strings.CutPrefix(name, tasksPrefix); ok {
		if list, ok := n.tasks[rest]; ok {
			return list, true
		}
	}
	if t, ok := n.byID[name[strings.LastIndexByte(name, '.')+1:]]; ok && t.name == name {
		return t.addrs, true
	}
	return nil, false
}

// PTR implements Zone: `<service>.<network>` for a virtual address, `<service>.<slot>.<task>.<network>` for a task's.
func (t *Table) PTR(addr netip.Addr) (string, bool) {
	for _, n := range t.nets {
		if o, ok := n.owners[addr.Unmap()]; ok {
			if o.task == "" {
				return o.service + "." + n.name, true
			}
			return o.service + "." + o.place + "." + o.task + "." + n.name, true
		}
	}
	return "", false
}

// Owns implements Zone.
func (t *Table) Owns(addr netip.Addr) bool {
	addr = addr.Unmap()
	for _, n := range t.nets {
		for _, p := range n.subnets {
			if p.Contains(addr) {
				return true
			}
		}
	}
	return false
}

// Holds implements Holder: what ends in the name of one of the networks is the cluster's, unless that could be a
// top-level domain of the Internet, which a network called "dev" shall not hide. Of those, only what is written like the
// name of a task or of tasks is.
func (t *Table) Holds(name string) bool {
	for _, n := range t.nets {
		rest, ok := strings.CutSuffix(name, n.suffix)
		if ok && (!publicTLD(n.suffix[strings.LastIndexByte(n.suffix, '.')+1:]) || strings.Count(rest, ".") == 1 && strings.HasPrefix(rest, tasksPrefix) || ofTask(rest)) {
			return true
		}
	}
	return false
}
