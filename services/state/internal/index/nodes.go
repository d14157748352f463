package index

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

func (x *Index) nodeLocked(id string) *node {
	n := x.nodes[id]
	if n == nil {
		n = &node{}
		x.nodes[strings.Clone(id)] = n
	}
	return n
}

// dropNodeLocked forgets a node of which nothing is stored.
func (x *Index) dropNodeLocked(id string) {
	if n := x.nodes[id]; n != nil && n.rev == 0 && n.desc.rev == 0 && n.live.rev == 0 {
		delete(x.nodes, id)
	}
}

// ApplyNode takes a step of the node bucket's feed.
func (x *Index) ApplyNode(d kv.Delta) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d.Reset {
		x.resetNodes()
	}
	for _, e := range d.Entries {
		f, id := keys.Of(subject.NodeB, e.Key)
		if f == keys.Managers {
			x.applyManagersLocked(e)
			continue
		}
		if f == nil {
			continue
		}
		n := x.nodeLocked(id)
		var s stored
		if !e.Deleted {
			s = keep(e)
		}
		switch f {
		case keys.Description:
			n.desc, n.hostname, n.global = s, "", nil
			var desc skepv1.NodeDescription
			if s.rev != 0 && proto.Unmarshal(s.raw, &desc) == nil {
				n.hostname, n.global = strings.Clone(desc.Hostname), globalPlugins(&desc)
			}
		case keys.Live:
			n.live = s
			var live skepv1.NodeLive
			if s.rev != 0 && proto.Unmarshal(s.raw, &live) != nil {
				live.State = skepv1.NodeState_NODE_STATE_UNKNOWN
			}
			if n.state != live.GetState() {
				n.state = live.GetState()
				x.dirty[strings.Clone(id)] = struct{}{} // its tasks count, or no longer
			}
		}
		x.dropNodeLocked(id)
	}
	if d.Reset {
		for id := range x.nodes {
			x.dropNodeLocked(id)
		}
	}
	x.notifyLocked()
}

// ApplyLease takes a step of the lease bucket's feed.
func (x *Index) ApplyLease(d kv.Delta) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d.Reset {
		x.leases = map[string]string{}
	}
	for _, e := range d.Entries {
		if e.Deleted {
			delete(x.leases, e.Key)
		} else {
			// A second instance on a manager appends its number: <node>-2.
			x.leases[e.Key], _, _ = strings.Cut(string(e.Value), "-")
		}
	}
	x.notifyLocked()
}

// NodeObject is what the cluster knows of an admitted node, nil for others.
func (x *Index) NodeObject(id string) *skepv1.NodeObject {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.nodeObjectLocked(id)
}

func (x *Index) nodeObjectLocked(id string) *skepv1.NodeObject {
	n := x.nodes[id]
	if n == nil || n.rev == 0 {
		return nil
	}
	o := &skepv1.NodeObject{}
	if proto.Unmarshal(n.raw, o) != nil {
		return nil
	}
	if o.Meta == nil {
		o.Meta = &skepv1.Meta{Id: id}
	}
	if o.Spec == nil {
		o.Spec = &skepv1.NodeSpec{}
	}
	o.Meta.Version = n.rev
	return o
}

// Description is what the node said of itself, with the revision of its key (0 = never).
func (x *Index) Description(id string) (*skepv1.NodeDescription, uint64) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := x.nodes[id]
	if n == nil || n.desc.rev == 0 {
		return nil, 0
	}
	d := &skepv1.NodeDescription{}
	if proto.Unmarshal(n.desc.raw, d) != nil {
		return nil, n.desc.rev
	}
	return d, n.desc.rev
}

// Node is the composed view of an admitted node, nil for others.
func (x *Index) Node(id string) *skepv1.Node {
	x.mu.RLock()
	defer x.mu.RUnlock()
	o := x.nodeObjectLocked(id)
	if o == nil {
		return nil
	}
	n := x.nodes[id]
	out := &skepv1.Node{
		Meta: o.Meta, Spec: o.Spec, Number: o.Number, Subnet: o.Subnet, Role: o.Role, Fence: o.Fence, Witness: o.Witness,
		Description: &skepv1.NodeDescription{}, Status: &skepv1.NodeLive{},
	}
	if n.desc.rev != 0 && proto.Unmarshal(n.desc.raw, out.Description) != nil {
		out.Description = &skepv1.NodeDescription{}
	}
	if n.live.rev != 0 && proto.Unmarshal(n.live.raw, out.Status) != nil {
		out.Status = &skepv1.NodeLive{}
	}
	out.Manager = x.managerLocked(out, time.Now())
	return out
}

// NodeIDs are the admitted nodes, sorted.
func (x *Index) NodeIDs() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]string, 0, len(x.nodes))
	for id, n := range x.nodes {
		if n.rev != 0 {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// NodeNames are the admitted nodes with what they are called: the host name, or the name given in the spec.
func (x *Index) NodeNames() []Named {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]Named, 0, len(x.nodes))
	for id, n := range x.nodes {
		if n.rev == 0 {
			continue
		}
		if n.hostname != "" {
			out = append(out, Named{id, n.hostname})
		}
		if n.name != "" && n.name != n.hostname {
			out = append(out, Named{id, n.name})
		}
	}
	return out
}

// HasNode reports whether the node was admitted.
func (x *Index) HasNode(id string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := x.nodes[id]
	return n != nil && n.rev != 0
}

// Hostname is a node's host name, "" when it is unknown.
func (x *Index) Hostname(id string) string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if n := x.nodes[id]; n != nil {
		return n.hostname
	}
	return ""
}

// Standing is how a node is, by the monitor's verdict and by what was asked of it.
func (x *Index) Standing(id string) (skepv1.NodeState, skepv1.Availability) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := x.nodes[id]
	if n == nil {
		return skepv1.NodeState_NODE_STATE_UNKNOWN, 0
	}
	o := x.nodeObjectLocked(id)
	return n.state, o.GetSpec().GetAvailability()
}

// OrphanDescriptions are descriptions of nodes that are not admitted (any more), with the revision of their keys.
func (x *Index) OrphanDescriptions() map[string]uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[string]uint64{}
	for id, n := range x.nodes {
		if n.rev == 0 && n.desc.rev != 0 {
			out[id] = n.desc.rev
		}
	}
	return out
}

// Leader is who holds a lease, "" when nobody does.
func (x *Index) Leader(lease string) string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.leases[lease]
}
