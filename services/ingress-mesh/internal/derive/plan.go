package derive

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/printable"
	skepv1 "skep.dev/proto/skep/v1"
)

// maxRecord keeps a record below the broker's payload limit, alone in an answer too.
const maxRecord = 1<<20 - 4096

// Change is one write: the key, the revision it is at (0 = it does not exist) and its new value, nil to delete it.
type Change struct {
	Key      string
	Revision uint64
	Value    []byte
}

// Item is whose change it is: a node's, a service's (svc_…), or a network's own (info).
func (c Change) Item() string {
	_, item, _ := keys.ParseEndpoint(c.Key)
	return item
}

// Plan says what has to be written so that the records of everything dirty are as they should be, and takes that as
// looked at. Nothing differs: it is empty. Problems are records that cannot be stored: what is stored of them stays. A node
// that is held is looked at another time; nil: none is.
func (p *Picture) Plan(held func(node string) bool) (changes []Change, problems []string) {
	nodes := drain(p.dirtyNodes)
	if held != nil {
		nodes = slices.DeleteFunc(nodes, func(id string) bool {
			if held(id) {
				p.dirtyNodes[id] = true
				return true
			}
			return false
		})
	}
	for _, id := range nodes {
		p.recount(id) // may make services dirty
	}
	for _, id := range drain(p.dirtyNetworks) {
		want := map[string]*skepv1.MeshRecord{}
		have := map[string]bool{}
		if info := p.Info(id); info != nil {
			want[keys.Endpoint.Key(id, keys.ItemInfo)] = &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Network{Network: info}}
		} else {
			for item := range p.scopes[id] { // nothing below a network outlives it
				have[keys.Endpoint.Key(id, item)] = true
			}
		}
		changes, problems = p.compare(changes, problems, want, have)
	}
	for _, id := range drain(p.dirtyServices) {
		changes, problems = p.compare(changes, problems, p.serviceRecords(id), p.ofSvc[id])
	}
	for _, id := range nodes {
		changes, problems = p.compare(changes, problems, p.nodeRecords(id), p.ofNode[id])
		if n := p.nodes[id]; n != nil && *n == (node{}) {
			delete(p.nodes, id)
		}
	}
	return dedupe(changes), problems
}

// Undo makes the next Plan look again at those whose changes were not committed.
func (p *Picture) Undo(changes []Change) {
	for _, c := range changes {
		p.markKey(c.Key)
	}
}

func drain(m map[string]bool) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	clear(m)
	slices.Sort(out)
	return out
}

// dedupe keeps the first change of a key: a network that goes takes records along that a node's own plan names too.
func dedupe(all []Change) []Change {
	seen := make(map[string]bool, len(all))
	return slices.DeleteFunc(all, func(c Change) bool {
		again := seen[c.Key]
		seen[c.Key] = true
		return again
	})
}

func (p *Picture) compare(changes []Change, problems []string, want map[string]*skepv1.MeshRecord, have map[string]bool) ([]Change, []string) {
	keys := make([]string, 0, len(want)+len(have))
	for k := range want {
		keys = append(keys, k)
	}
	for k := range have {
		if want[k] == nil {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		stored, exists := p.stored[key]
		if want[key] == nil {
			if exists {
				changes = append(changes, Change{Key: key, Revision: stored.Revision})
			}
			continue
		}
		raw, err := encode(want[key])
		switch {
		case err != nil:
			problems = append(problems, fmt.Sprintf("record %s: %v", key, err))
		case len(raw) > maxRecord:
			problems = append(problems, fmt.Sprintf("record %s has %d bytes, and the broker takes %d: spread the tasks over more nodes or networks", key, len(raw), maxRecord))
		case !exists || !bytes.Equal(raw, stored.Raw):
			changes = append(changes, Change{Key: key, Revision: stored.Revision, Value: raw})
		}
	}
	return changes, problems
}

func encode(r *skepv1.MeshRecord) ([]byte, error) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return raw, nil
}

// maxHostname is what a host name may have in DNS; every node is told of it.
const maxHostname = 253

// nodeRecords are what a node should have: its own record, and its part of every network it has addresses of. What it
// reports beyond what it was given is left out (belief.go), and Audit tells.
func (p *Picture) nodeRecords(id string) map[string]*skepv1.MeshRecord {
	out := map[string]*skepv1.MeshRecord{}
	n := p.known(id)
	if n == nil {
		return out
	}
	if addr := underlay(n.address); addr != "" {
		out[keys.Endpoint.Key(keys.ScopeNodes, id)] = &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Node{Node: &skepv1.MeshNode{
			Id: id, Hostname: printable.Cut(n.hostname, maxHostname), Number: n.object.GetNumber(), Subnet: n.object.GetSubnet(), Addr: addr,
		}}}
	}
	given := map[string]part{} // by network
	parts := map[string]*skepv1.MeshEndpoints{}
	part := func(scope string) *skepv1.MeshEndpoints {
		if parts[scope] == nil {
			parts[scope] = &skepv1.MeshEndpoints{}
		}
		return parts[scope]
	}
	// Blocks and keys were given by a node's request: they stand until it gives them back, or goes.
	for key := range p.ofNode[id] {
		scope, _, _ := keys.ParseEndpoint(key)
		s := p.stored[key]
		wgKey, port := keyOf(p.networks[scope], s)
		if p.networks[scope] != nil && (len(s.Blocks) > 0 || wgKey != "") {
			x := part(scope)
			x.Blocks, x.WgPublicKey, x.WgPort = s.Blocks, wgKey, port
		}
	}
	for scope, addrs := range p.kept(id) {
		part(scope).Addresses = addrs
	}
	for name, t := range p.tasksOf(id) {
		st, reported := p.statuses[id][name]
		if !reported || !st.placed() {
			continue
		}
		here := !n.down && !p.draining[id][name]
		serving := here && serves(t, st)
		lost := n.lost() && !serving
		// Only where the service asks for it: what a check says of the others changes no record.
		starting := here && !serving && p.services[t.service].listsStarting() && runs(t, st)
		e := func(addr, addr6 string) *skepv1.MeshEndpoint {
			return &skepv1.MeshEndpoint{TaskId: name, ServiceId: t.service, Slot: t.slot, Addr: addr, Addr6: addr6, Serving: serving, Lost: lost}
		}
		for _, a := range st.networks {
			if _, seen := given[a.network]; !seen {
				given[a.network] = p.part(a.network, id, parts[a.network].GetAddresses())
			}
			if v4, v6, ok := p.reported(given[a.network], t, a); ok {
				x, named := part(a.network), e(v4, v6)
				named.Starting = starting
				x.Endpoints = append(x.Endpoints, named)
			}
		}
		if v4, v6, ok := bridged(n.object, st); ok && p.services[t.service].published() {
			x := part(keys.ScopeIngress)
			x.Endpoints = append(x.Endpoints, e(v4, v6))
		}
	}
	for scope, x := range parts {
		slices.SortFunc(x.Endpoints, func(a, b *skepv1.MeshEndpoint) int { return strings.Compare(a.TaskId, b.TaskId) })
		out[keys.Endpoint.Key(scope, id)] = &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Endpoints{Endpoints: x}}
	}
	return out
}
