// Package derive says what the records of bucket endpoint should be: a function of the services, networks, nodes, task
// records and task statuses there are, of the blocks leased so far, and of the tasks being drained. It also decides
// which block a node is leased, and finds what contradicts itself (Audit). It reads no clock and does no I/O.
//
// It refuses to keep anything of its own: all it knows follows from the buckets, but which tasks drain.
//
// It is incremental: what a change could touch (a node's records, a service's, a network's) is noted as dirty, and only
// that is derived anew, so a status of one node costs the same in a cluster of three and of 5,000.
//
// Failure story: a value nobody can read is an error to its caller and leaves what is known as it is. What was planned
// and not written is planned again after Undo. What was written here stays known over a feed that begins anew from an
// older state, and never hides what the feed has told already (Written): a block that is forgotten would be leased twice.
package derive

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

type node struct {
	object   *skepv1.NodeObject // nil: the cluster has no such node
	hostname string
	address  string // of the data path, "" while the node has not described itself
	down     bool
}

// lost: what runs there, if anything, runs elsewhere now. One that was fenced is, until it has taken its new task set.
func (n *node) lost() bool { return n.down || n.object.GetFence() != nil }

// Picture is everything the records depend on. It is not safe for concurrent use.
type Picture struct {
	port     uint32 // of the data path
	networks map[string]*skepv1.Network
	services map[string]*service
	revs     map[string]map[uint64][]member // service → revision → its networks
	nodes    map[string]*node
	tasks    map[string]map[string]map[string]task // node → page of its task set → task
	statuses map[string]map[string]status          // node → task
	draining map[string]map[string]bool            // node → task

	users map[string]map[string]int   // service → node → task records
	live  map[string]map[taskRev]bool // node → revisions its live tasks are of
	onRev map[string]map[uint64]int   // service → revision → nodes with live tasks of it

	stored   map[string]Stored            // by key
	scopes   map[string]map[string]bool   // scope → items
	ofNode   map[string]map[string]bool   // node → keys
	ofSvc    map[string]map[string]bool   // service → keys
	single   map[string]map[string]string // network → address leased by itself → node
	fixed    map[string]map[string]string // network → address that a service's newest spec names → service
	unseen   map[string]Stored            // written here, and the feed has not told so yet; a deletion has no Raw
	revision uint64                       // the bucket's, as far as it is known here
	fed      uint64                       // how far the feed of the bucket has come

	dirtyNodes, dirtyServices, dirtyNetworks map[string]bool
}

// New is an empty picture.
func New() *Picture {
	p := &Picture{
		networks: map[string]*skepv1.Network{}, services: map[string]*service{}, revs: map[string]map[uint64][]member{}, fixed: map[string]map[string]string{},
		nodes: map[string]*node{}, statuses: map[string]map[string]status{}, draining: map[string]map[string]bool{},
		live: map[string]map[taskRev]bool{}, onRev: map[string]map[uint64]int{}, unseen: map[string]Stored{},
		dirtyNodes: map[string]bool{}, dirtyServices: map[string]bool{}, dirtyNetworks: map[string]bool{},
	}
	p.clearTasks()
	p.clearStored()
	return p
}

// Dirty reports whether Plan has anything to look at.
func (p *Picture) Dirty() bool {
	return len(p.dirtyNodes)+len(p.dirtyServices)+len(p.dirtyNetworks) > 0
}

// MarkAll makes the next Plan look at everything.
func (p *Picture) MarkAll() {
	mark(p.dirtyNodes, p.nodes)
	mark(p.dirtyServices, p.services)
	mark(p.dirtyNetworks, p.networks)
	for key := range p.stored {
		p.markKey(key)
	}
}

func mark[V any](dirty map[string]bool, what map[string]V) {
	for id := range what {
		dirty[id] = true
	}
}

// markKey makes the next Plan look at whom a stored record belongs to.
func (p *Picture) markKey(key string) {
	scope, item, _ := keys.ParseEndpoint(key)
	switch id, isService := keys.ParseServiceItem(item); {
	case isService:
		p.dirtyServices[id] = true
	case item == keys.ItemInfo && scope != keys.ScopeNodes && scope != keys.ScopeIngress:
		p.dirtyNetworks[scope] = true
	default:
		p.dirtyNodes[item] = true
	}
}

func (p *Picture) node(id string) *node {
	n := p.nodes[id]
	if n == nil {
		n = &node{}
		p.nodes[id] = n
	}
	return n
}

// known is a node that is part of the cluster, nil otherwise.
func (p *Picture) known(id string) *node {
	if n := p.nodes[id]; n != nil && n.object != nil {
		return n
	}
	return nil
}

// ResetSpec forgets what bucket spec held; the entries that follow are all of it.
func (p *Picture) ResetSpec() {
	p.MarkAll()
	clear(p.networks)
	clear(p.services)
	clear(p.fixed)
	for _, n := range p.nodes {
		n.object = nil
	}
}

// PutSpec takes a key of bucket spec; nil: it was deleted.
func (p *Picture) PutSpec(key string, val []byte) error {
	switch f, id := keys.Of(subject.Spec, key); f {
	case keys.Cluster:
		var c skepv1.Cluster
		if err := decode(key, val, &c); err != nil {
			return err
		}
		if port := c.GetSpec().GetDataPathPort(); port != p.port {
			p.port = port
			mark(p.dirtyNetworks, p.networks)
		}
	case keys.Network:
		return p.putNetwork(id, key, val)
	case keys.Node:
		var o skepv1.NodeObject
		if err := decode(key, val, &o); err != nil {
			return err
		}
		p.dirtyNodes[id] = true
		p.node(id).object = nil
		if val != nil {
			p.node(id).object = &skepv1.NodeObject{Number: o.Number, Subnet: o.Subnet, Fence: o.Fence}
		}
	case keys.Service:
		return p.putService(id, key, val)
	}
	return nil
}

func (p *Picture) putNetwork(id, key string, val []byte) error {
	n := &skepv1.Network{}
	if err := decode(key, val, n); err != nil {
		return err
	}
	n.Removing = false // no affair of the nodes
	p.dirtyNetworks[id] = true
	existed := p.networks[id] != nil
	delete(p.networks, id)
	if val != nil {
		p.networks[id] = n
	}
	if existed == (val != nil) {
		return nil
	}
	for item := range p.scopes[id] {
		p.markKey(keys.Endpoint.Key(id, item))
	}
	for svc := range p.services {
		if p.everOn(svc, id) {
			p.dirtyServices[svc] = true
		}
	}
	// The feeds keep no order among one another: a report may have come before the network it speaks of.
	for node, tasks := range p.statuses {
		for _, st := range tasks {
			if st.on(id) {
				p.dirtyNodes[node] = true
				break
			}
		}
	}
	return nil
}

// PutNode takes a key of bucket node: desc.<id> or live.<id>; nil: it was deleted.
func (p *Picture) PutNode(key string, val []byte) error {
	f, id := keys.Of(subject.NodeB, key)
	switch f {
	case keys.Description:
		var d skepv1.NodeDescription
		if err := decode(key, val, &d); err != nil {
			return err
		}
		n := p.node(id)
		if n.hostname, n.address = d.GetHostname(), d.GetDataPathAddr(); n.address == "" {
			n.address = d.GetAddr()
		}
	case keys.Live:
		var l skepv1.NodeLive
		if err := decode(key, val, &l); err != nil {
			return err
		}
		p.node(id).down = l.GetState() == skepv1.NodeState_NODE_STATE_DOWN
	default:
		return nil
	}
	p.dirtyNodes[id] = true
	return nil
}

// decode leaves m as it is without a value.
func decode(key string, val []byte, m proto.Message) error {
	if val == nil {
		return nil
	}
	if err := proto.Unmarshal(val, m); err != nil {
		return fmt.Errorf("read key %s: %w", key, err)
	}
	return nil
}
