package reconcile

import (
	"slices"
	"strings"

	"skep.dev/libs/constraint"
	"skep.dev/libs/place"
	skepv1 "skep.dev/proto/skep/v1"
)

// Node is what planning needs of a node.
type Node struct {
	ID           string
	Exists       bool // its object is there: it was admitted and not removed
	Name         string
	Availability skepv1.Availability
	State        skepv1.NodeState
	Since        int64 // of State

	attrs    constraint.Node
	plugins  []place.Plugin
	cpu, mem int64
	generic  []place.Generic
	maxTasks int

	sick   string            // what keeps it from beginning tasks, by its own word; "" = nothing
	fenced bool              // it was cut off, and has not taken its new task set since
	global []string          // its volume plug-ins whose volumes are the same everywhere
	holds  map[volumeID]bool // volumes of plug-ins that it says it has mounted
	moved  uint64            // revision of its page when a task that may mount such a volume last came or went
	claims int               // on volumes with a single writer

	page      *Page
	applied   uint64 // generation of the task set its agent acts on
	hasStatus bool
	early     map[string]*skepv1.TaskStatus // reported tasks whose record was not seen yet

	use   usage
	stale bool               // use must be computed anew
	preps map[string][]*Task // booked ones that are prepared to replace another, by that one's id
	index int32
}

// Hostname is the node's name for people.
func (n *Node) Hostname() string {
	switch {
	case n.Name != "":
		return n.Name
	case n.attrs.Hostname != "":
		return n.attrs.Hostname
	}
	return n.ID
}

// accepts: new tasks may be placed there.
func (n *Node) accepts() bool {
	return n.Exists && !n.fenced && n.sick == "" && n.State == skepv1.NodeState_NODE_STATE_READY && n.Availability == skepv1.Availability_AVAILABILITY_ACTIVE
}

// lost: its tasks must run elsewhere, now.
func (n *Node) lost() bool {
	return !n.Exists || n.fenced || n.State == skepv1.NodeState_NODE_STATE_DOWN
}

func (n *Node) drained() bool { return n.Availability == skepv1.Availability_AVAILABILITY_DRAIN }

func (s *State) node(id string) *Node {
	n := s.nodes[id]
	if n == nil {
		n = &Node{ID: id, stale: true, index: -1}
		n.attrs.ID = id
		n.attrs.Role = "worker"
		s.nodes[id] = n
	}
	return n
}

func (s *State) putNode(id string, o *skepv1.NodeObject) {
	n := s.node(id)
	was := n.Exists
	n.Exists, n.fenced = o != nil, o.GetFence() != nil
	if o != nil {
		n.Name, n.Availability = o.GetSpec().GetName(), o.GetSpec().GetAvailability()
		if o.GetWitness() { // whatever its record says
			n.Availability = skepv1.Availability_AVAILABILITY_DRAIN
		}
		n.attrs.Labels = o.GetSpec().GetLabels()
		n.attrs.Role = "worker"
		if o.GetRole() == skepv1.NodeRole_NODE_ROLE_MANAGER {
			n.attrs.Role = "manager"
		}
	}
	if was != n.Exists {
		at, _ := slices.BinarySearchFunc(s.byID, id, func(n *Node, id string) int { return strings.Compare(n.ID, id) })
		if n.Exists {
			s.byID = slices.Insert(s.byID, at, n)
		} else {
			s.byID = slices.Delete(s.byID, at, at+1)
			n.index = -1
		}
		for i := at; i < len(s.byID); i++ {
			s.byID[i].index = int32(i)
		}
		if n.page != nil {
			s.noteLeft(n.page)
		}
	}
	s.nodeChanged(n)
}

// describe takes over what the node reports of itself and tells whether planning could care.
func (n *Node) describe(d *skepv1.NodeDescription) bool {
	r := d.GetResources()
	var plugins []place.Plugin
	for _, p := range d.GetPlugins() {
		plugins = append(plugins, place.Plugin{Type: p.GetType(), Name: p.GetName()})
	}
	var generic []place.Generic
	for _, g := range r.GetGeneric() {
		generic = append(generic, place.Generic{Kind: g.GetKind(), Value: g.GetValue(), Named: g.GetNamed()})
	}
	a := n.attrs
	a.Hostname, a.Addr, a.EngineLabels = d.GetHostname(), d.GetAddr(), d.GetEngineLabels()
	a.OS, a.Arch = d.GetPlatform().GetOs(), d.GetPlatform().GetArch()
	same := a.Hostname == n.attrs.Hostname && a.Addr == n.attrs.Addr && a.OS == n.attrs.OS && a.Arch == n.attrs.Arch &&
		mapsEqual(a.EngineLabels, n.attrs.EngineLabels) && slices.Equal(plugins, n.plugins) &&
		slices.EqualFunc(generic, n.generic, func(a, b place.Generic) bool {
			return a.Kind == b.Kind && a.Value == b.Value && slices.Equal(a.Named, b.Named)
		}) &&
		n.cpu == r.GetNanoCpus() && n.mem == r.GetMemoryBytes() && n.maxTasks == int(d.GetMaxTasks()) && (n.sick == "") == (d.GetTrouble() == "")
	n.sick = d.GetTrouble()
	n.attrs, n.plugins, n.generic = a, plugins, generic
	n.cpu, n.mem, n.maxTasks = r.GetNanoCpus(), r.GetMemoryBytes(), int(d.GetMaxTasks())
	return !same
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// nodeChanged marks every service that may have to act: those with tasks there, those that wait for room, and those
// that want a task on every node.
func (s *State) nodeChanged(n *Node) {
	n.stale = true
	if n.page != nil {
		for _, t := range n.page.Tasks {
			s.mark(t.Service)
		}
	}
	s.markUnplaced()
	for _, v := range s.services {
		if v.perNode() || v.Exists && len(v.tasks) == 0 {
			s.mark(v)
		}
	}
}

// engine is a placement engine over the nodes as they stand.
func (s *State) engine() *place.Engine {
	nodes := make([]place.Node, len(s.byID))
	for i, n := range s.byID {
		u := s.usage(n)
		nodes[i] = place.Node{
			Node: n.attrs, Ready: n.accepts(), Plugins: n.plugins, CPU: n.cpu, Memory: n.mem, MaxTasks: n.maxTasks,
			FreeCPU: n.cpu - u.cpu, FreeMemory: n.mem - u.mem, FreeGeneric: u.generic, Tasks: u.tasks, Held: u.held, Ports: u.ports,
		}
	}
	return place.New(nodes)
}
