package mesh

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"skep.dev/libs/attach"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/dns"
	"skep.dev/services/ingress-mesh/internal/ingress"
	"skep.dev/services/ingress-mesh/internal/overlay"
	"skep.dev/services/ingress-mesh/internal/picture"
	"skep.dev/services/ingress-mesh/internal/vip"
)

// Everything here turns what is known into what the kernel and the resolvers should have: no I/O, no state.

func address(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

// port is a port, or the number of a node, as records spell it: 0 for one that is none.
func port(v uint32) uint16 {
	if v > math.MaxUint16 {
		return 0
	}
	return uint16(v)
}

func prefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// subnets are a network's IPv4 and IPv6 subnets, invalid where it has none.
func subnets(n *skepv1.Network) (v4, v6 netip.Prefix) {
	for _, c := range n.GetIpam() {
		p := prefix(c.GetSubnet())
		if p.Addr().Is4() {
			v4 = p
		} else {
			v6 = p
		}
	}
	return v4, v6
}

func encrypted(n *skepv1.Network) bool { return spec.Encrypted(n.GetSpec()) }

// plain is a network without encryption, as this node should have it.
func plain(scope picture.Scope, nodes map[string]*skepv1.MeshNode, self string) overlay.Network {
	n := scope.Info.GetNetwork()
	out := overlay.Network{ID: n.GetMeta().GetId(), Name: n.GetSpec().GetName(), VNI: n.GetVni()}
	out.Subnet, out.Subnet6 = subnets(n)
	if mtu, err := strconv.Atoi(n.GetSpec().GetDriverOpts()[spec.OptMTU]); err == nil {
		out.MTU = mtu
	}
	for node, eps := range scope.Endpoints {
		under := address(nodes[node].GetAddr())
		if node == self || !under.IsValid() {
			continue
		}
		for _, e := range eps.GetEndpoints() {
			if a := address(e.GetAddr()); a.IsValid() {
				out.Remotes = append(out.Remotes, overlay.Remote{Addr: a, Addr6: address(e.GetAddr6()), Node: under})
			}
		}
	}
	return out
}

// serving are the endpoints of each service that are to get traffic, ordered by address, so that nodes and restarts
// agree on the order.
func serving(scope picture.Scope, draining map[string]bool) map[string][]*skepv1.MeshEndpoint {
	out := map[string][]*skepv1.MeshEndpoint{}
	for _, eps := range scope.Endpoints {
		for _, e := range eps.GetEndpoints() {
			if e.GetServing() && !draining[e.GetTaskId()] {
				out[e.GetServiceId()] = append(out[e.GetServiceId()], e)
			}
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b *skepv1.MeshEndpoint) int {
			return cmp.Or(address(a.GetAddr()).Compare(address(b.GetAddr())), strings.Compare(a.GetTaskId(), b.GetTaskId()))
		})
	}
	return out
}

// lost are the addresses of tasks of other nodes that are down, in order: whoever has a connection to one hears so. An
// address that another task has is not lost.
func lost(scope picture.Scope, self string) []netip.Addr {
	gone, had := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for node, eps := range scope.Endpoints {
		for _, e := range eps.GetEndpoints() {
			in := had
			if e.GetLost() && !e.GetServing() && node != self {
				in = gone
			}
			for _, a := range []netip.Addr{address(e.GetAddr()), address(e.GetAddr6())} {
				if a.IsValid() {
					in[a] = true
				}
			}
		}
	}
	maps.DeleteFunc(gone, func(a netip.Addr, _ bool) bool { return had[a] })
	return slices.SortedFunc(maps.Keys(gone), netip.Addr.Compare)
}

// virtual are the virtual addresses of one network with what is behind them, and its tasks that are lost.
func virtual(scope picture.Scope, draining map[string]bool, self string) []vip.Service {
	behind := serving(scope, draining)
	var out []vip.Service
	if gone := lost(scope, self); len(gone) > 0 {
		out = append(out, vip.Service{Lost: gone})
	}
	for _, id := range slices.Sorted(maps.Keys(scope.Services)) {
		svc := scope.Services[id]
		v := vip.Service{Service: id, VIP: address(svc.GetVip()), VIP6: address(svc.GetVip6())}
		if !v.VIP.IsValid() {
			continue
		}
		for _, e := range behind[id] {
			v.Backends = append(v.Backends, address(e.GetAddr()))
			if a := address(e.GetAddr6()); a.IsValid() {
				v.Backends6 = append(v.Backends6, a)
			}
		}
		out = append(out, v)
	}
	return out
}

// names is what one network's names stand for.
func names(scope picture.Scope, draining map[string]bool) dns.Network {
	n := scope.Info.GetNetwork()
	out := dns.Network{ID: n.GetMeta().GetId(), Name: n.GetSpec().GetName()}
	out.Subnet, out.Subnet6 = subnets(n)
	tasks := map[string][]dns.Task{}
	for node, eps := range scope.Endpoints {
		for _, e := range eps.GetEndpoints() {
			tasks[e.GetServiceId()] = append(tasks[e.GetServiceId()], dns.Task{
				ID: e.GetTaskId(), Slot: e.GetSlot(), Node: node, Addr: address(e.GetAddr()), Addr6: address(e.GetAddr6()),
				Serving: e.GetServing() && !draining[e.GetTaskId()], Starting: e.GetStarting() && !draining[e.GetTaskId()],
			})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(scope.Services)) {
		svc := scope.Services[id]
		out.Services = append(out.Services, dns.Service{
			ID: id, Name: svc.GetName(), Aliases: svc.GetAliases(), VIP: address(svc.GetVip()), VIP6: address(svc.GetVip6()),
			DNSRR: svc.GetDnsrr(), Tasks: tasks[id],
		})
	}
	return out
}

// peers are the other nodes whose place in the data path is known.
func peers(nodes map[string]*skepv1.MeshNode, self string) []ingress.Peer {
	var out []ingress.Peer
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[id]
		p := ingress.Peer{ID: id, Number: port(n.GetNumber()), Subnet: prefix(n.GetSubnet()), Underlay: address(n.GetAddr())}
		if id != self && p.Number != 0 && p.Subnet.IsValid() && p.Underlay.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

// published are the ports of the mesh with what is behind them.
func published(scope picture.Scope, draining map[string]bool) []ingress.Service {
	behind := serving(scope, draining)
	var out []ingress.Service
	for _, id := range slices.Sorted(maps.Keys(scope.Services)) {
		for _, p := range scope.Services[id].GetPorts() {
			if port(p.GetPublishedPort()) == 0 || p.GetPublishMode() != skepv1.PublishMode_PUBLISH_MODE_INGRESS {
				continue
			}
			s := ingress.Service{Protocol: p.GetProtocol(), Port: port(p.GetPublishedPort()), ID: id}
			for _, e := range behind[id] {
				s.Backends = append(s.Backends, ingress.Backend{Addr: address(e.GetAddr()), Addr6: address(e.GetAddr6()), Port: port(p.GetTargetPort()), Task: e.GetTaskId()})
			}
			out = append(out, s)
		}
	}
	return out
}

// hostPorts are what tasks publish on this host alone. Of two tasks with the same port, as during an update, the one
// that was here first has it until it drains.
func hostPorts(tasks []record, draining map[string]bool) []ingress.HostPort {
	slices.SortFunc(tasks, func(a, b record) int {
		return cmp.Or(cmp.Compare(a.Attached, b.Attached), strings.Compare(a.Task, b.Task))
	})
	var out []ingress.HostPort
	for _, rec := range tasks {
		if draining[rec.Task] || !rec.Address.IsValid() {
			continue
		}
		for _, p := range rec.Ports {
			if !slices.ContainsFunc(out, func(o ingress.HostPort) bool { return sameHostPort(o, p) }) {
				out = append(out, ingress.HostPort{Protocol: p.Protocol, Published: p.Published, At: p.HostIP, Addr: rec.Address, Addr6: rec.address6Of(), Target: p.Target, Task: rec.Task})
			}
		}
	}
	return out
}

// sameHostPort: a packet may be for both, which are at one address, or one of them at all.
func sameHostPort(o ingress.HostPort, p attach.Port) bool {
	return o.Protocol == p.Protocol && o.Published == p.Published && (o.At == p.HostIP || !o.At.IsValid() || !p.HostIP.IsValid())
}
