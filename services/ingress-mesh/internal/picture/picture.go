// Package picture is what one node knows of the cluster's networks: the records of bucket endpoint that concern it, as
// the mesh controller wrote them. It follows them over core NATS, asks again for what it may have missed, and keeps
// the last state on disk, so that a node whose managers are away, or which restarts meanwhile, goes on with what it knew.
//
// It decides nothing and touches no kernel. Every record stands for itself and the newest one wins, so a lost message
// matters only until the next one for the same key, or the next comparison with the controller.
package picture

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

// Scope is everything known of one scope. The records are shared: read them, do not change them.
type Scope struct {
	Info      *skepv1.MeshNetwork
	Services  map[string]*skepv1.MeshService   // by id
	Endpoints map[string]*skepv1.MeshEndpoints // by node
	Nodes     map[string]*skepv1.MeshNode      // scope node only
}

type entry struct {
	rev uint64
	rec *skepv1.MeshRecord // nil = deleted at rev
}

// Picture holds records by key. It is safe for concurrent use.
type Picture struct {
	mu     sync.RWMutex
	scopes map[string]map[string]entry // scope → item
}

// New is an empty picture.
func New() *Picture { return &Picture{scopes: map[string]map[string]entry{}} }

// Apply takes a record at a revision, nil for a deletion, and reports whether that was news.
func (p *Picture) Apply(scope, item string, rev uint64, rec *skepv1.MeshRecord) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.scopes[scope]
	old, known := s[item]
	if known && old.rev >= rev {
		return false
	}
	if s == nil {
		s = map[string]entry{}
		p.scopes[scope] = s
	}
	s[item] = entry{rev, rec}
	return rec != nil || old.rec != nil
}

// Newest is the revision of the newest record known.
func (p *Picture) Newest() uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out uint64
	for _, items := range p.scopes {
		for _, e := range items {
			out = max(out, e.rev)
		}
	}
	return out
}

// Forget drops a scope.
func (p *Picture) Forget(scope string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.scopes, scope)
}

// Known lists the keys of live records with their revisions.
func (p *Picture) Known() map[string]uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	out := map[string]uint64{}
	for scope, items := range p.scopes {
		for item, e := range items {
			if e.rec != nil {
				out[scope+"."+item] = e.rev
			}
		}
	}
	return out
}

// Gone takes a key that the controller, whose knowledge goes to upTo, says does not exist. A record that was written
// later stays. It reports whether that was news.
func (p *Picture) Gone(key string, upTo uint64) bool {
	scope, item, ok := keys.ParseEndpoint(key)
	if !ok {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e, known := p.scopes[scope][item]
	if !known || e.rec == nil || e.rev > upTo {
		return false
	}
	p.scopes[scope][item] = entry{rev: upTo}
	return true
}

// Scope gives what is known of one scope.
func (p *Picture) Scope(scope string) Scope {
	p.mu.RLock()
	defer p.mu.RUnlock()
	s := Scope{Services: map[string]*skepv1.MeshService{}, Endpoints: map[string]*skepv1.MeshEndpoints{}, Nodes: map[string]*skepv1.MeshNode{}}
	for item, e := range p.scopes[scope] {
		switch r := e.rec.GetRecord().(type) {
		case *skepv1.MeshRecord_Network:
			s.Info = r.Network
		case *skepv1.MeshRecord_Service:
			s.Services[r.Service.GetId()] = r.Service
		case *skepv1.MeshRecord_Endpoints:
			s.Endpoints[item] = r.Endpoints
		case *skepv1.MeshRecord_Node:
			s.Nodes[item] = r.Node
		}
	}
	return s
}

// Network is a network's own record, nil when it is not known.
func (p *Picture) Network(id string) *skepv1.MeshNetwork {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.scopes[id][keys.ItemInfo].rec.GetNetwork()
}

// Endpoints is one node's part of a scope, nil when it has none.
func (p *Picture) Endpoints(scope, node string) *skepv1.MeshEndpoints {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.scopes[scope][node].rec.GetEndpoints()
}

// Publishes reports whether a service has ports on the mesh.
func (p *Picture) Publishes(service string) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.scopes[keys.ScopeIngress][keys.ServiceItem(service)].rec != nil
}

// Networks are the ids of the networks something is known of, sorted.
func (p *Picture) Networks() []string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	out := slices.Sorted(maps.Keys(p.scopes))
	return slices.DeleteFunc(out, func(s string) bool { return s == keys.ScopeNodes || s == keys.ScopeIngress })
}

// Marshal encodes the live records for the disk, as a MeshSyncReply.
func (p *Picture) Marshal() ([]byte, error) {
	p.mu.RLock()
	r := &skepv1.MeshSyncReply{}
	for scope, items := range p.scopes {
		for item, e := range items {
			if e.rec != nil {
				r.Changed = append(r.Changed, &skepv1.MeshEntry{Key: keys.Endpoint.Key(scope, item), Revision: e.rev, Record: e.rec})
			}
		}
	}
	p.mu.RUnlock()
	b, err := proto.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode the picture of the networks: %w", err)
	}
	return b, nil
}

// Unmarshal takes what Marshal made into an empty picture.
func (p *Picture) Unmarshal(b []byte) error {
	r := &skepv1.MeshSyncReply{}
	if err := proto.Unmarshal(b, r); err != nil {
		return fmt.Errorf("read the picture of the networks: %w", err)
	}
	for _, e := range r.Changed {
		if scope, item, ok := keys.ParseEndpoint(e.Key); ok {
			p.Apply(scope, item, e.Revision, e.Record)
		}
	}
	return nil
}
