package index

import (
	"slices"
	"sort"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

type service struct {
	stored
	name     string
	replicas int64 // -1 = one per node
	networks []string
	depends  []string // ids of the services it depends on
	run      uint64   // its job_iteration
}

type node struct {
	stored
	desc stored
	live stored
	// What lists and addressing ask for all the time.
	hostname string
	name     string
	state    skepv1.NodeState
	role     skepv1.NodeRole // as it is certified
	desired  skepv1.NodeRole
	witness  bool     // it votes, and has nothing to run tasks with
	global   []string // volume plug-ins whose volumes are the same everywhere
}

func (x *Index) resetSpec() {
	x.cluster = stored{}
	x.services = map[string]*service{}
	x.names = map[string]string{}
	x.order = nil
	x.keys = map[string]Key{}
	x.fenced = map[string]bool{}
	x.nets.reset()
	x.stacks = map[string]*stack{}
	clear(x.managers)
	for _, n := range x.nodes {
		n.stored = stored{}
	}
}

func (x *Index) resetNodes() {
	if x.nodes == nil {
		x.nodes = map[string]*node{}
	}
	x.group = nil
	for id, n := range x.nodes {
		n.desc, n.live, n.hostname, n.global = stored{}, stored{}, "", nil
		if n.state != 0 {
			n.state = 0
			x.dirty[id] = struct{}{}
		}
	}
}

// ApplySpec takes a step of the spec bucket's feed.
func (x *Index) ApplySpec(d kv.Delta) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d.Reset {
		x.resetSpec()
	}
	now := time.Now()
	for _, e := range d.Entries {
		switch f, id := keys.Of(subject.Spec, e.Key); f {
		case nil:
		case keys.Cluster:
			x.cluster = stored{}
			if !e.Deleted {
				x.cluster = keep(e)
			}
		case keys.Service:
			x.applyServiceLocked(id, e, d.Reset)
		case keys.Network:
			x.nets.apply(id, e, d.Reset)
		case keys.Stack:
			x.applyStackLocked(id, e)
		case keys.Node:
			x.applyNodeObjectLocked(id, e)
		default: // what belongs to one object at a time
			if e.Deleted {
				delete(x.keys, e.Key)
			} else {
				x.keys[e.Key] = Key{Value: string(e.Value), Revision: e.Revision, Seen: now}
			}
		}
	}
	if d.Reset {
		sort.Strings(x.order)
		sort.Strings(x.nets.order)
		for id := range x.nodes {
			x.dropNodeLocked(id)
		}
	}
	x.notifyLocked()
}

func (x *Index) applyNodeObjectLocked(id string, e kv.Entry) {
	n := x.nodeLocked(id)
	known, was := n.rev != 0, n.role
	n.stored, n.name, n.role, n.desired, n.witness = stored{}, "", 0, 0, false
	delete(x.fenced, id)
	delete(x.managers, id)
	var o skepv1.NodeObject
	if !e.Deleted && proto.Unmarshal(e.Value, &o) == nil {
		id = strings.Clone(id)
		if o.Fence != nil {
			x.fenced[id] = true
		}
		n.stored, n.name, n.role, n.desired, n.witness = keep(e), strings.Clone(o.GetSpec().GetName()), o.Role, o.GetSpec().GetRole(), o.Witness
		if n.role == skepv1.NodeRole_NODE_ROLE_MANAGER || n.desired == skepv1.NodeRole_NODE_ROLE_MANAGER {
			x.managers[id] = struct{}{}
		}
		if known && was != n.role {
			x.turned = append(x.turned, id)
		}
	}
	if _, is := x.managers[id]; !is {
		delete(x.beats, id)
	}
	x.dropNodeLocked(id)
}

func (x *Index) applyServiceLocked(id string, e kv.Entry, bulk bool) {
	var was uint64
	if old := x.services[id]; old != nil {
		was = old.run
		lower := strings.ToLower(old.name)
		if x.names[lower] == id {
			delete(x.names, lower)
			if i, ok := slices.BinarySearch(x.order, lower); ok && !bulk {
				x.order = slices.Delete(x.order, i, i+1)
			}
		}
		delete(x.services, id)
		x.nets.move(id, old.networks, nil)
	}
	if e.Deleted {
		return
	}
	var o skepv1.Service
	if proto.Unmarshal(e.Value, &o) != nil {
		return
	}
	s := &service{stored: keep(e), name: strings.Clone(o.GetSpec().GetName()), replicas: replicas(o.Spec), networks: joined(o.Spec), run: o.JobIteration}
	for _, d := range o.GetSpec().GetDependsOn() {
		s.depends = append(s.depends, d.GetService())
	}
	if s.run != was {
		x.recountLocked(id)
	}
	x.services[id] = s
	x.nets.move(id, nil, s.networks)
	lower := strings.ToLower(s.name)
	x.names[lower] = id
	if bulk {
		x.order = append(x.order, lower)
	} else if i, ok := slices.BinarySearch(x.order, lower); !ok {
		x.order = slices.Insert(x.order, i, lower)
	}
}

// Dependents are the services that depend on one, by name.
func (x *Index) Dependents(id string) []Named {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []Named
	for svc, s := range x.services {
		if slices.Contains(s.depends, id) {
			out = append(out, Named{ID: svc, Name: s.name})
		}
	}
	slices.SortFunc(out, func(a, b Named) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Dependencies are the ids of the services that a service depends on.
func (x *Index) Dependencies(id string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if s := x.services[id]; s != nil {
		return slices.Clone(s.depends)
	}
	return nil
}

func replicas(s *skepv1.ServiceSpec) int64 {
	switch m := s.GetMode().GetMode().(type) {
	case *skepv1.ServiceMode_Global, *skepv1.ServiceMode_GlobalJob:
		return -1
	case *skepv1.ServiceMode_ReplicatedJob:
		return int64(m.ReplicatedJob.GetMaxConcurrent())
	case *skepv1.ServiceMode_Replicated:
		return int64(m.Replicated.GetReplicas())
	}
	return 1
}

// Cluster is the cluster object, nil before `skep init`.
func (x *Index) Cluster() *skepv1.Cluster {
	x.mu.RLock()
	s := x.cluster
	x.mu.RUnlock()
	if s.rev == 0 {
		return nil
	}
	c := &skepv1.Cluster{}
	if proto.Unmarshal(s.raw, c) != nil {
		return nil
	}
	if c.Meta == nil {
		c.Meta = &skepv1.Meta{}
	}
	c.Meta.Version = s.rev
	return c
}

// Key looks up an idx.* key.
func (x *Index) Key(key string) (Key, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	k, ok := x.keys[key]
	return k, ok
}

// Keys are the idx.* keys that begin with prefix.
func (x *Index) Keys(prefix string) map[string]Key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[string]Key{}
	for k, v := range x.keys {
		if strings.HasPrefix(k, prefix) {
			out[k] = v
		}
	}
	return out
}

// Service is the service of that id as stored, its version filled in; nil when there is none.
func (x *Index) Service(id string) *skepv1.Service {
	x.mu.RLock()
	s := x.services[id]
	x.mu.RUnlock()
	if s == nil {
		return nil
	}
	o := &skepv1.Service{}
	if proto.Unmarshal(s.raw, o) != nil {
		return nil
	}
	if o.Meta == nil {
		o.Meta = &skepv1.Meta{Id: id}
	}
	o.Meta.Version = s.rev
	return o
}

// ServiceName is the name of a service, "" when it is gone.
func (x *Index) ServiceName(id string) string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if s := x.services[id]; s != nil {
		return s.name
	}
	return ""
}

// ServiceByName finds a service by its name, whatever the case.
func (x *Index) ServiceByName(name string) (id string, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	id, ok = x.names[strings.ToLower(name)]
	return id, ok
}

// Named is an object's id and name.
type Named struct{ ID, Name string }

// ServicesAfter lists services by name, from the first one whose lower-case name is beyond after.
func (x *Index) ServicesAfter(after string) []Named {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i, found := slices.BinarySearch(x.order, after)
	if found {
		i++
	}
	out := make([]Named, 0, len(x.order)-i)
	for _, n := range x.order[i:] {
		id := x.names[n]
		if s := x.services[id]; s != nil {
			out = append(out, Named{ID: id, Name: s.name})
		}
	}
	return out
}

// ServiceCount is the number of services.
func (x *Index) ServiceCount() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.services)
}
