package derive

import (
	"bytes"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

// Stored is a record as the bucket has it. It is kept encoded: a large cluster has a million endpoints.
type Stored struct {
	Revision uint64
	Raw      []byte
	Blocks   []string // of a node's part of a network: what it is leased

	single []string // and single addresses
	wgKey  string
	tasks  int // of a node's part of a network or of the published ports: its endpoints
}

// Record decodes it; nil when there is none.
func (s Stored) Record() *skepv1.MeshRecord {
	if s.Raw == nil {
		return nil
	}
	r := &skepv1.MeshRecord{}
	if err := proto.Unmarshal(s.Raw, r); err != nil {
		return nil // it was decoded before it was kept
	}
	return r
}

func newStored(key string, val []byte, rev uint64) (Stored, error) {
	r := &skepv1.MeshRecord{}
	if err := proto.Unmarshal(val, r); err != nil {
		return Stored{}, fmt.Errorf("read key %s: %w", key, err)
	}
	e := r.GetEndpoints()
	raw := bytes.Clone(val)
	if raw == nil {
		raw = []byte{}
	}
	return Stored{Revision: rev, Raw: raw, Blocks: e.GetBlocks(), single: e.GetAddresses(), wgKey: e.GetWgPublicKey(), tasks: len(e.GetEndpoints())}, nil
}

func (p *Picture) clearStored() {
	p.stored, p.scopes = map[string]Stored{}, map[string]map[string]bool{}
	p.ofNode, p.ofSvc, p.single = map[string]map[string]bool{}, map[string]map[string]bool{}, map[string]map[string]string{}
}

// ResetStored forgets what the bucket held; the entries that follow are all of it. They may be older than what was
// written here since: that stays known.
func (p *Picture) ResetStored() {
	p.MarkAll()
	p.clearStored()
	for key, s := range p.unseen {
		if s.Raw != nil {
			p.set(key, s)
		}
	}
}

// PutStored takes a key of bucket endpoint at a revision; nil: it was deleted then. What is not newer than what is known
// is passed over; what is, and was not written here, is looked at by the next Plan.
func (p *Picture) PutStored(key string, val []byte, rev uint64) error {
	p.revision, p.fed = max(p.revision, rev), max(p.fed, rev)
	if key == keys.EndpointFence.Key() {
		return nil
	}
	if own, ok := p.unseen[key]; ok {
		if own.Revision <= rev {
			delete(p.unseen, key)
		}
		if own.Revision >= rev {
			return nil
		}
	}
	if have, ok := p.stored[key]; ok && have.Revision >= rev {
		return nil
	}
	p.markKey(key)
	if val == nil {
		p.unset(key)
		return nil
	}
	s, err := newStored(key, val, rev)
	if err != nil {
		// What nobody can read is written anew, with the blocks it had when it was read last.
		s = p.stored[key]
		s.Revision, s.Raw = rev, []byte{}
	}
	p.set(key, s)
	return err
}

// Written notes a record that was committed here, nil: deleted. It stays known until the feed has come to it. A feed that
// was faster than the answer has told of it already, and perhaps of what came after: then it is believed.
func (p *Picture) Written(key string, val []byte, rev uint64) error {
	if rev <= p.fed {
		return nil
	}
	p.revision = max(p.revision, rev)
	if val == nil {
		p.unseen[key] = Stored{Revision: rev}
		p.unset(key)
		return nil
	}
	s, err := newStored(key, val, rev)
	if err != nil {
		return err
	}
	p.unseen[key] = s
	p.set(key, s)
	return nil
}

// Resign ends the time in which only what was written here counts: another may write from now on.
func (p *Picture) Resign() { clear(p.unseen) }

func (p *Picture) set(key string, s Stored) {
	scope, item, _ := keys.ParseEndpoint(key)
	p.leased(scope, item, p.stored[key].single, s.single)
	p.stored[key] = s
	add(p.scopes, scope, item)
	if svc, ok := keys.ParseServiceItem(item); ok {
		add(p.ofSvc, svc, key)
	} else if item != keys.ItemInfo {
		add(p.ofNode, item, key)
	}
}

func (p *Picture) unset(key string) {
	scope, item, _ := keys.ParseEndpoint(key)
	p.leased(scope, item, p.stored[key].single, nil)
	delete(p.stored, key)
	remove(p.scopes, scope, item)
	if svc, ok := keys.ParseServiceItem(item); ok {
		remove(p.ofSvc, svc, key)
	} else {
		remove(p.ofNode, item, key)
	}
}

func add(m map[string]map[string]bool, a, b string) {
	if m[a] == nil {
		m[a] = map[string]bool{}
	}
	m[a][b] = true
}

func remove(m map[string]map[string]bool, a, b string) {
	delete(m[a], b)
	if len(m[a]) == 0 {
		delete(m, a)
	}
}

// Get is a record as stored.
func (p *Picture) Get(key string) (Stored, bool) {
	s, ok := p.stored[key]
	return s, ok
}

// Endpoints are the keys under which a node's tasks stand, with their revisions.
func (p *Picture) Endpoints(node string) map[string]uint64 {
	out := map[string]uint64{}
	for key := range p.ofNode[node] {
		if scope, _, _ := keys.ParseEndpoint(key); scope != keys.ScopeNodes {
			out[key] = p.stored[key].Revision
		}
	}
	return out
}

// Up are the nodes that are part of the cluster and not known to be down.
func (p *Picture) Up() []string {
	var out []string
	for id, n := range p.nodes {
		if n.object != nil && !n.down {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// IsUp reports whether a node of the cluster is not known to be down.
func (p *Picture) IsUp(id string) bool {
	n := p.nodes[id]
	return n != nil && n.object != nil && !n.down
}

// IsMember reports whether a node is part of the cluster.
func (p *Picture) IsMember(id string) bool { return p.known(id) != nil }

// Revision is that of the newest change of the bucket known here.
func (p *Picture) Revision() uint64 { return p.revision }

// Items are the items of a scope, sorted.
func (p *Picture) Items(scope string) []string {
	out := make([]string, 0, len(p.scopes[scope]))
	for item := range p.scopes[scope] {
		out = append(out, item)
	}
	slices.Sort(out)
	return out
}

// Network is a network that exists, nil otherwise.
func (p *Picture) Network(id string) *skepv1.Network { return p.networks[id] }

// Info is a network as nodes are told of it.
func (p *Picture) Info(id string) *skepv1.MeshNetwork {
	n := p.networks[id]
	if n == nil {
		return nil
	}
	return &skepv1.MeshNetwork{Network: n, DataPathPort: p.port, Reserved: p.reserved(id)}
}

// Host is a node's host name and the address of its data path.
func (p *Picture) Host(id string) (hostname, addr string) {
	if n := p.nodes[id]; n != nil {
		return n.hostname, n.address
	}
	return "", ""
}
