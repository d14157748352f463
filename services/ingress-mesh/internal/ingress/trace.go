package ingress

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep.dev/libs/ipam"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// PortState is one published port as the kernel has it.
type PortState struct {
	Protocol    string
	Port        uint16
	At          netip.Addr // of HostMode: the one address of the host, invalid: all
	Service     string     // "" with HostMode
	HostMode    bool
	Backends    []BackendState // none: connections are refused
	Connections uint64         // new ones since the port's entry was made, of both address families
}

// BackendState is one backend of a published port.
type BackendState struct {
	Addr        netip.Addr
	Port        uint16
	Task        string
	Connections uint64
}

// Hop is one station of a packet's way.
type Hop struct{ Where, Text string }

// Ports reads what is published from the kernel, ordered by port and protocol.
func (p *Plane) Ports(ctx context.Context) (out []PortState, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err = nsfs.Inside(p.home, func() error {
		s, err := p.readSnapshot()
		if err == nil {
			out = portStates(s)
		}
		return err
	})
	return out, err
}

func portStates(s snapshot) []PortState {
	if s.host == nil {
		return nil
	}
	byKey := map[portKey]*PortState{}
	for _, set := range []string{setPorts, setRefused, setPorts6, setRefused6} {
		for raw, e := range s.host.sets[set] {
			k, ok := portKeyOf(raw)
			if !ok {
				continue
			}
			if st := byKey[k]; st != nil {
				st.Connections += e.packets
				continue
			}
			st := &PortState{Protocol: protocolName(k.proto), Port: k.port, HostMode: e.comment == hostOwner, Connections: e.packets}
			st.Service, _ = strings.CutPrefix(e.comment, ownerOf(""))
			if st.HostMode {
				st.Service = ""
			}
			byKey[k] = st
		}
	}
	for _, set := range []string{setBackends, setBackends6} {
		for _, raw := range slices.Sorted(maps.Keys(s.host.sets[set])) {
			e := s.host.sets[set][raw]
			k, _ := portKeyOf(raw)
			if t, ok := targetOf(e.val); ok && byKey[k] != nil {
				byKey[k].note(t, e)
			}
		}
	}
	out := hostStates(s)
	for _, st := range byKey {
		out = append(out, *st)
	}
	slices.SortStableFunc(out, func(a, b PortState) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(protocolNumber(a.Protocol), protocolNumber(b.Protocol)), a.At.Compare(b.At))
	})
	return out
}

// note adds an entry of the kernel's map: a task that is there already, by its IPv4 address, has more connections.
func (st *PortState) note(t target, e element) {
	for i := range st.Backends {
		if b := &st.Backends[i]; b.Task == e.comment && b.Port == t.port && ipam.NodeAddr6(b.Addr) == t.addr {
			b.Connections += e.packets
			return
		}
	}
	st.Backends = append(st.Backends, BackendState{t.addr, t.port, e.comment, e.packets})
}

// Trace tells, from what the kernel has, which rules a packet to the port would meet at this node and where it may go.
func (p *Plane) Trace(ctx context.Context, proto string, port uint16) (hops []Hop, err error) {
	k := portKey{protocolNumber(proto), port}
	if k.proto == 0 || port == 0 {
		return nil, fmt.Errorf("trace port %d/%s: the protocol is one of tcp, udp, sctp and the port not 0", port, proto)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	err = nsfs.Inside(p.home, func() error {
		s, err := p.readSnapshot()
		if err == nil {
			hops, err = p.trace(s, k)
		}
		return err
	})
	return hops, err
}

func (p *Plane) trace(s snapshot, k portKey) ([]Hop, error) {
	const where = "nft inet " + tableName + " "
	if s.host == nil {
		return []Hop{{where, "the table is missing: nothing is published on this node until it is repaired"}}, nil
	}
	if e, ok := s.host.sets[setRefused][k.raw()]; ok {
		return []Hop{{where + "guard", fmt.Sprintf("%s of %s has no backend: new connections are refused", k, e.comment)}}, nil
	}
	if hops := traceHosts(s, k); len(hops) > 0 {
		return hops, nil
	}
	if _, ok := s.host.sets[setPorts][k.raw()]; !ok {
		return []Hop{{where + "publish-in", fmt.Sprintf("%s is not published: the packet is for the node itself", k)}}, nil
	}
	hops, err := p.traceFamily(s, k, inet4)
	if err != nil {
		return nil, err
	}
	if e, ok := s.host.sets[setRefused6][k.raw()]; ok {
		hops = append(hops, Hop{where + "guard", fmt.Sprintf("%s of %s has no backend with an IPv6 address: new connections over IPv6 are refused", k, e.comment)})
	} else if _, ok := s.host.sets[setPorts6][k.raw()]; ok {
		more, err := p.traceFamily(s, k, inet6)
		if err != nil {
			return nil, err
		}
		hops = append(hops, more...)
	} else {
		hops = append(hops, Hop{where + "publish-in", "this node has no IPv6: the port is published at its IPv4 addresses alone"})
	}
	for _, f := range p.foreignFindings(s) {
		hops = append(hops, Hop{"nft forward", f})
	}
	return hops, nil
}

// traceHosts are the addresses of the host at which a port is published, where it is not at all of them.
func traceHosts(s snapshot, k portKey) (hops []Hop) {
	for _, st := range hostStates(s) {
		if (portKey{protocolNumber(st.Protocol), st.Port}) == k {
			b := st.Backends[0]
			hops = append(hops, Hop{"nft inet " + tableName + " publish-in", fmt.Sprintf("%s at address %s alone: goes to %s, task %s (%d connections so far)", k, st.At, netip.AddrPortFrom(b.Addr, b.Port), b.Task, b.Connections)})
		}
	}
	slices.SortFunc(hops, func(a, b Hop) int { return strings.Compare(a.Text, b.Text) })
	return hops
}

// traceFamily follows a packet of one address family to a port that has backends.
func (p *Plane) traceFamily(s snapshot, k portKey, f *family) ([]Hop, error) {
	const where = "nft inet " + tableName + " "
	e := s.host.sets[f.ports][k.raw()]
	hops := []Hop{{where + "publish-in", fmt.Sprintf("%s of %s, to an %s address of this node: goes on in chain %s (%d connections so far)", k, e.comment, f.name, e.val, e.packets)}}
	if _, ok := s.host.chains[e.val]; !ok {
		return append(hops, Hop{where + e.val, "the chain is missing"}), nil
	}
	slots := slotsOf(s.host.sets[f.backends])[k]
	hops = append(hops, Hop{where + e.val, fmt.Sprintf("one of %d backends at random", len(slots))})
	for i, b := range slots {
		if !b.addr.IsValid() {
			hops = append(hops, Hop{where + f.backends, fmt.Sprintf("backend %d is missing: connections that draw it go to the first", i)})
			continue
		}
		n := s.host.sets[f.backends][k.raw()+string(native(uint32(i)))].packets
		hops = append(hops, Hop{where + f.backends, fmt.Sprintf("backend %d: %s, task %s (%d connections so far)", i, netip.AddrPortFrom(b.addr, b.port), b.task, n)})
		way, err := p.traceRoute(b.addr)
		if err != nil {
			return nil, err
		}
		hops = append(hops, way...)
	}
	return hops, nil
}

func (p *Plane) traceRoute(a netip.Addr) ([]Hop, error) {
	routes, err := p.nl.RouteGet(net.IP(a.AsSlice()))
	if err != nil || len(routes) == 0 {
		return []Hop{{"route", fmt.Sprintf("there is none to %s: %v", a, err)}}, nil
	}
	r := routes[0]
	l, err := p.nl.LinkByIndex(r.LinkIndex)
	if err != nil {
		return nil, fmt.Errorf("look up the link of the route to %s: %w", a, err)
	}
	switch l.Attrs().Name {
	case p.cfg.Bridge:
		return []Hop{{"route", fmt.Sprintf("%s is on this node, by %s", a, p.cfg.Bridge)}}, nil
	case Link:
		via := addrOf(r.Gw)
		hops := []Hop{{"route", fmt.Sprintf("%s is on another node, by %s via %s", a, Link, via)}}
		return append(hops, p.traceFabric(r.LinkIndex, via)...), nil
	}
	return []Hop{{"route", fmt.Sprintf("%s would go by %s, which is neither %s nor %s: it is not part of the mesh", a, l.Attrs().Name, p.cfg.Bridge, Link)}}, nil
}

func (p *Plane) traceFabric(index int, via netip.Addr) []Hop {
	neighs, err := p.nl.NeighList(index, netlink.FAMILY_ALL)
	if err != nil {
		return []Hop{{"neighbours", err.Error()}}
	}
	fdb, err := p.nl.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return []Hop{{"fdb", err.Error()}}
	}
	for _, n := range neighs {
		if addrOf(n.IP) != via {
			continue
		}
		for _, f := range fdb {
			if f.HardwareAddr.String() == n.HardwareAddr.String() {
				return []Hop{{"fdb " + Link, fmt.Sprintf("%s is %s, sent to node address %s, UDP port %d", via, n.HardwareAddr, addrOf(f.IP), p.cfg.Port)}}
			}
		}
		return []Hop{{"fdb " + Link, fmt.Sprintf("%s is %s, and no node is known to have it", via, n.HardwareAddr)}}
	}
	return []Hop{{"neighbours " + Link, via.String() + " is not known"}}
}
