package mesh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/rpc"
	"skep.dev/libs/sctp"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/ingress"
	"skep.dev/services/ingress-mesh/internal/picture"
)

// serve answers what people ask of this node's mesh. Everything is read from the kernel at that moment.
func (s *Service) serve() (*rpc.Server, error) {
	srv, err := rpc.NewServer(s.nc, rpc.Config{Name: "skep-mesh", Version: s.version, Description: "the network of one node", Log: s.log})
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	err = errors.Join(
		api.Handle(srv, api.MeshState.At(s.node), s.state),
		api.Handle(srv, api.MeshTrace.At(s.node), s.trace),
		api.Handle(srv, api.MeshApplied.At(s.node), s.appliedRecords),
		api.Handle(srv, api.MeshCounters.At(s.node), s.count),
	)
	if err != nil {
		_ = srv.Close()
		return nil, fmt.Errorf("mesh: %w", err)
	}
	return srv, nil
}

const (
	severityError   = "error"
	severityWarning = "warning"
)

func (s *Service) state(ctx context.Context, _ *skepv1.MeshStateRequest) (*skepv1.MeshStateReply, error) {
	out := &skepv1.MeshStateReply{}
	ports, err := s.plane.Ports(ctx)
	if err != nil {
		return nil, err
	}
	owners := s.owners()
	services := s.follow.Scope(keys.ScopeIngress).Services
	for _, p := range ports {
		st := &skepv1.MeshPortState{Protocol: p.Protocol, Port: uint32(p.Port), ServiceId: p.Service, HostMode: p.HostMode, Connections: p.Connections,
			ServiceName: services[p.Service].GetName()}
		if p.At.IsValid() {
			st.HostIp = p.At.String()
		}
		for _, b := range p.Backends {
			st.Backends = append(st.Backends, &skepv1.MeshBackendState{
				Addr: b.Addr.String(), Port: uint32(b.Port), TaskId: b.Task, NodeId: owners[b.Addr], Connections: b.Connections,
			})
		}
		out.Ports = append(out.Ports, st)
	}
	out.Findings = append(out.Findings, sctpFindings(out.Ports, s.node, sctp.Kernel())...)
	found, err := s.plane.Verify(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		out.Findings = append(out.Findings, &skepv1.MeshFinding{Severity: severityError, Subject: "published ports", Text: f})
	}
	filters, err := s.plane.ReversePaths(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		severity := severityWarning
		if f.Error {
			severity = severityError
		}
		out.Findings = append(out.Findings, &skepv1.MeshFinding{Severity: severity, Subject: "reverse path filter", Text: f.Text})
	}
	for _, id := range s.networksHere() {
		if err := s.networkState(ctx, id, out); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out.Networks, func(a, b *skepv1.MeshNetworkState) int { return strings.Compare(a.Name, b.Name) })
	s.addressFinding(out)
	s.tableFinding(out)
	s.probePeers(ctx, out)
	return out, nil
}

func (s *Service) networkState(ctx context.Context, id string, out *skepv1.MeshStateReply) error {
	scope := s.follow.Scope(id)
	name := scope.Info.GetNetwork().GetSpec().GetName()
	st, err := s.overlays.State(id)
	if err != nil {
		out.Findings = append(out.Findings, &skepv1.MeshFinding{Severity: severityError, Subject: "network " + name, Text: err.Error()})
		return nil
	}
	if encrypted(scope.Info.GetNetwork()) {
		st.VNI, st.Remote = scope.Info.GetNetwork().GetVni(), 0
		if way, err := s.tunnels.State(id); err == nil {
			st.Remote = len(way.Peers)
			for _, text := range way.Problems {
				out.Findings = append(out.Findings, &skepv1.MeshFinding{Severity: severityError, Subject: "network " + name, Text: text})
			}
		}
	}
	out.Networks = append(out.Networks, &skepv1.MeshNetworkState{
		Id: id, Name: name, Vni: st.VNI, Mtu: uint32(st.MTU), Local: uint64(st.Local), Remote: uint64(st.Remote), Encrypted: encrypted(scope.Info.GetNetwork()),
	})
	found, err := s.verifyNetwork(ctx, scope)
	if err != nil {
		return err
	}
	for _, f := range found {
		out.Findings = append(out.Findings, &skepv1.MeshFinding{Severity: severityError, Subject: "network " + name, Text: f})
	}
	return nil
}

// owners are the nodes that published backends run on.
func (s *Service) owners() map[netip.Addr]string {
	out := map[netip.Addr]string{}
	if s.follow == nil {
		return out
	}
	for node, eps := range s.follow.Scope(keys.ScopeIngress).Endpoints {
		for _, e := range eps.GetEndpoints() {
			out[address(e.GetAddr())] = node
		}
	}
	return out
}

// probesAt bounds how many peers are asked at the same time.
const probesAt = 32

// probePeers asks every node's gateway address over the data path.
func (s *Service) probePeers(ctx context.Context, out *skepv1.MeshStateReply) {
	nodes := s.follow.Scope(keys.ScopeNodes).Nodes
	slots := make(chan struct{}, probesAt)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, p := range peers(nodes, s.node) {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			st := &skepv1.MeshPeerState{NodeId: p.ID, Hostname: nodes[p.ID].GetHostname(), Addr: p.Underlay.String()}
			gateway := p.Subnet.Addr().Next()
			if err := s.probe(ctx, gateway); err != nil {
				st.Detail = fmt.Sprintf("%s does not answer through the data path (UDP port %d to %s): is it open between the nodes?", gateway, s.port, p.Underlay)
			} else {
				st.Reachable = true
			}
			mu.Lock()
			defer mu.Unlock()
			out.Peers = append(out.Peers, st)
			if !st.Reachable {
				out.Findings = append(out.Findings, &skepv1.MeshFinding{Severity: severityWarning, Subject: "peer " + st.Hostname, Text: st.Detail})
			}
		})
	}
	wg.Wait()
	slices.SortFunc(out.Peers, func(a, b *skepv1.MeshPeerState) int { return strings.Compare(a.Hostname, b.Hostname) })
	slices.SortFunc(out.Findings, func(a, b *skepv1.MeshFinding) int { return strings.Compare(a.Subject, b.Subject) })
}

// trace tells the way of a packet: from the node to a published port, or from a task to a name, a virtual address or
// another task.
func (s *Service) trace(ctx context.Context, r *skepv1.MeshTraceRequest) (*skepv1.MeshTraceReply, error) {
	if r.Target == "" {
		return nil, fault.Invalid("trace: give a port, or a task and what it would reach")
	}
	hops, err := s.traceHops(ctx, r)
	if err != nil {
		return nil, err
	}
	out := &skepv1.MeshTraceReply{}
	for _, h := range hops {
		out.Hops = append(out.Hops, &skepv1.MeshHop{Where: h.Where, Text: h.Text})
	}
	return out, nil
}

func (s *Service) traceHops(ctx context.Context, r *skepv1.MeshTraceRequest) ([]ingress.Hop, error) {
	if r.TaskId == "" {
		port, proto, _ := strings.Cut(r.Target, "/")
		if proto == "" {
			proto = "tcp"
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return nil, fault.Invalid("trace: %q is not a port, such as 8080 or 53/udp", r.Target)
		}
		return s.plane.Trace(ctx, proto, uint16(n))
	}
	s.liveMu.Lock()
	rec, here := s.live[r.TaskId]
	s.liveMu.Unlock()
	if !here {
		return nil, fault.NotFound("task %s has no network on this node", r.TaskId)
	}
	return s.traceFrom(rec, r.Target)
}

// traceFrom follows a packet out of a task's namespace.
func (s *Service) traceFrom(rec record, target string) ([]ingress.Hop, error) {
	host := target
	if h, _, err := net.SplitHostPort(target); err == nil {
		host = h
	}
	var hops []ingress.Hop
	addrs := []netip.Addr{address(host)}
	if !addrs[0].IsValid() {
		found, ours := newZone(s.tables, rec.networks()).A(strings.ToLower(strings.TrimSuffix(host, ".")))
		if !ours {
			return append(hops, ingress.Hop{Where: "resolver 127.0.0.11", Text: host + " is no name of the task's networks: it is asked of the task's or the host's name servers"}), nil
		}
		if len(found) == 0 {
			return append(hops, ingress.Hop{Where: "resolver 127.0.0.11", Text: host + " is known and has no address now: no task of it serves"}), nil
		}
		hops = append(hops, ingress.Hop{Where: "resolver 127.0.0.11", Text: fmt.Sprintf("%s is %s", host, joined(found))})
		addrs = found
	}
	for _, a := range addrs {
		more, err := s.traceAddress(rec, a)
		if err != nil {
			return nil, err
		}
		hops = append(hops, more...)
	}
	return hops, nil
}

func joined(addrs []netip.Addr) string {
	words := make([]string, 0, len(addrs))
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, ", ")
}

// places are where the addresses of a network's tasks are: node by address.
func places(scope picture.Scope) map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for _, node := range slices.Sorted(maps.Keys(scope.Endpoints)) {
		for _, e := range scope.Endpoints[node].GetEndpoints() {
			for _, a := range []netip.Addr{address(e.GetAddr()), address(e.GetAddr6())} {
				if a.IsValid() {
					out[a] = node
				}
			}
		}
	}
	return out
}
