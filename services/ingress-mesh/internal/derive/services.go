package derive

import (
	"fmt"
	"net/netip"
	"strings"

	"skep.dev/libs/keys"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// service is what matters of a service here.
type service struct {
	name     string
	vips     map[string]string // network → address
	vips6    map[string]string
	networks map[string][]string // of the newest spec: network → aliases
	dnsrr    bool
	starting bool // its tasks that run are listed whatever their checks say
	fixed    map[string][]netip.Addr
	ports    []*skepv1.PortConfig // in ingress mode
}

func newService(o *skepv1.Service) *service {
	s := &service{
		name: o.GetSpec().GetName(), vips: map[string]string{}, vips6: map[string]string{}, networks: map[string][]string{},
		dnsrr: o.GetSpec().GetEndpoint().GetMode() == skepv1.EndpointSpec_MODE_DNSRR, starting: o.GetSpec().GetEndpoint().GetDnsStarting(),
		fixed: spec.Fixed(o.GetSpec()),
	}
	for _, n := range o.GetSpec().GetTask().GetNetworks() {
		s.networks[n.GetTarget()] = n.GetAliases()
	}
	for _, v := range o.GetEndpoint().GetVirtualIps() {
		addr := bare(v.GetAddr())
		if strings.Contains(addr, ":") {
			s.vips6[v.GetNetworkId()] = addr
		} else {
			s.vips[v.GetNetworkId()] = addr
		}
	}
	for _, port := range o.GetEndpoint().GetPorts() {
		if port.GetPublishMode() == skepv1.PublishMode_PUBLISH_MODE_INGRESS && port.GetPublishedPort() != 0 {
			s.ports = append(s.ports, port)
		}
	}
	return s
}

// published: it has ports on the mesh. A service that is gone has none.
func (s *service) published() bool { return s != nil && len(s.ports) > 0 }

// listsStarting: its names stand for tasks that do not serve yet, too.
func (s *service) listsStarting() bool { return s != nil && s.starting }

// bare is an address without its prefix length.
func bare(cidr string) string {
	addr, _, _ := strings.Cut(cidr, "/")
	return addr
}

func (p *Picture) putService(id, key string, val []byte) error {
	var o skepv1.Service
	if err := decode(key, val, &o); err != nil {
		return err
	}
	p.dirtyServices[id] = true
	was := p.services[id]
	delete(p.services, id)
	if val != nil {
		p.services[id] = newService(&o)
	}
	p.refix(id, was, p.services[id])
	if now := p.services[id]; was.published() != now.published() || was.listsStarting() != now.listsStarting() {
		p.markUsers(id)
	}
	return nil
}

// everOn reports whether a service is on a network by its newest spec or by a revision that is kept.
func (p *Picture) everOn(service, network string) bool {
	if _, on := p.services[service].networks[network]; on {
		return true
	}
	for _, nets := range p.revs[service] {
		if _, on := memberOf(nets, network); on {
			return true
		}
	}
	return false
}

// markUsers makes the next Plan look at the nodes that have tasks of a service.
func (p *Picture) markUsers(service string) { mark(p.dirtyNodes, p.users[service]) }

// markTasks makes the next Plan look at the nodes that have live tasks of a revision: where they may be follows from it.
func (p *Picture) markTasks(r taskRev) {
	if p.onRev[r.service][r.revision] == 0 {
		return // the usual case: it is new
	}
	for node := range p.users[r.service] {
		if p.live[node][r] {
			p.dirtyNodes[node] = true
		}
	}
}

// PutRevision takes a key of bucket rev, service.<id>.<number>; nil: it was deleted.
func (p *Picture) PutRevision(key string, val []byte) error {
	id, number, ok := keys.ParseRevision(key)
	if !ok {
		if _, ours := keys.Revision.ID(key); ours {
			return fmt.Errorf("read key %s: it does not end with a service's id and a number", key)
		}
		return nil
	}
	var r skepv1.Revision
	if err := decode(key, val, &r); err != nil {
		return err
	}
	p.dirtyServices[id] = true
	p.markTasks(taskRev{id, number})
	if val == nil {
		delete(p.revs[id], number)
		if len(p.revs[id]) == 0 {
			delete(p.revs, id)
		}
		return nil
	}
	var nets []member
	for _, n := range r.GetSpec().GetTask().GetNetworks() {
		nets = append(nets, newMember(n))
	}
	if p.revs[id] == nil {
		p.revs[id] = map[uint64][]member{}
	}
	p.revs[id][number] = nets
	return nil
}

// serviceRecords are what a service should have: one record on each of its networks, those included that only live tasks
// of an older revision are on, and one for its published ports.
func (p *Picture) serviceRecords(id string) map[string]*skepv1.MeshRecord {
	out := map[string]*skepv1.MeshRecord{}
	s := p.services[id]
	if s == nil {
		return out
	}
	put := func(scope string, m *skepv1.MeshService) {
		m.Id, m.Name, m.Dnsrr = id, s.name, s.dnsrr
		out[keys.Endpoint.Key(scope, keys.ServiceItem(id))] = &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Service{Service: m}}
	}
	on := func(network string) {
		if p.networks[network] != nil { // neither a word such as host nor one that is gone
			put(network, &skepv1.MeshService{Vip: s.vips[network], Vip6: s.vips6[network], Aliases: s.networks[network]})
		}
	}
	if s.published() {
		put(keys.ScopeIngress, &skepv1.MeshService{Ports: s.ports})
	}
	for n := range s.networks {
		on(n)
	}
	for number := range p.onRev[id] {
		for _, n := range p.revs[id][number] {
			on(n.network)
		}
	}
	return out
}
