package doctor

import (
	"fmt"
	"net/netip"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// fullAt is the share of a network's virtual addresses from which on it is told that they run out.
const fullAt = 0.9

// addresses compares what was given to services with what they ask for and with what the networks have.
func (d *exam) addresses() {
	since := len(d.out)
	vnis := map[uint32]string{}
	known := map[string]*skepv1.Network{}
	for _, n := range d.After.Networks {
		known[n.GetMeta().GetId()] = n
		name := n.GetSpec().GetName()
		if n.Removing {
			d.add(Warn, "network "+name, "its removal is not finished: `skep network rm %s` ends it, or says which service is in the way", name)
		}
		if n.Vni == 0 {
			continue
		}
		if other, taken := vnis[n.Vni]; taken {
			d.add(Error, "network "+name, "it has the VXLAN id %d of network %s: the two are one for the kernel; remove one and create it again", n.Vni, other)
		}
		vnis[n.Vni] = name
	}
	held := map[string]string{} // network and address → service
	used := map[string]int{}    // network → virtual IPv4 addresses
	ports := map[port]string{}
	for _, s := range d.settled.services {
		d.vips(s, known, held, used)
		for _, p := range onMesh(s) {
			if other, taken := ports[portOf(p)]; taken {
				d.add(Error, fmt.Sprintf("port %d/%s", p.PublishedPort, portOf(p).protocol), "services %s and %s both publish it: take it off one (skep service update --publish-rm %d)",
					other, s.GetSpec().GetName(), p.TargetPort)
			}
			ports[portOf(p)] = s.GetSpec().GetName()
		}
	}
	overlays := 0
	for id, n := range d.settled.networks {
		if spec.Predefined(id) != "" {
			continue
		}
		overlays++
		l, err := spec.NetworkLayout(n)
		if err != nil {
			d.add(Error, "network "+n.GetSpec().GetName(), "its addresses make no sense: %v; remove it and create it again", err)
			continue
		}
		d.routes(n)
		if total := l.VIPCount(); total > 0 && float64(used[id]) >= fullAt*float64(total) {
			d.add(Warn, "network "+n.GetSpec().GetName(), "%d of its %d virtual addresses are in use: move services to a larger network, or use --endpoint-mode dnsrr, before they run out", used[id], total)
		}
	}
	d.found(since, "addresses", "%s, %s and %s: as the services ask for them", count(overlays, "network"), count(len(held), "virtual address"), count(len(ports), "published port"))
}

// mostRoutes is how many overlaps are told of one network.
const mostRoutes = 3

// routes names the nodes' own routes to a part of a network's subnets: what is behind them is out of its tasks' reach.
func (d *exam) routes(n *skepv1.Network) {
	name, told, more := n.GetSpec().GetName(), 0, 0
	for _, node := range byName(d.After.Nodes) {
		for _, text := range node.GetDescription().GetRoutes() {
			route, err := netip.ParsePrefix(text)
			if err != nil {
				continue
			}
			for _, c := range n.GetIpam() {
				p, err := netip.ParsePrefix(c.Subnet)
				if err != nil || !p.Overlaps(route) {
					continue
				}
				if told++; told > mostRoutes {
					more++
					continue
				}
				d.add(Warn, "network "+name, "its subnet %s overlaps the route %s of node %s: its tasks do not reach what is behind that route in the subnet. Make a network with a --subnet elsewhere, and move its services over with skep service update --network-rm %s --network-add OTHER",
					p, route, render.Hostname(node), name)
			}
		}
	}
	if more > 0 {
		d.add(Warn, "network "+name, "%s of the nodes overlap its subnets", count(more, "more route"))
	}
}

// vips looks at the virtual addresses of one service.
func (d *exam) vips(s *skepv1.Service, known map[string]*skepv1.Network, held map[string]string, used map[string]int) {
	name := s.GetSpec().GetName()
	check := "service " + name
	dnsrr := s.GetSpec().GetEndpoint().GetMode() == skepv1.EndpointSpec_MODE_DNSRR
	has := map[string]bool{}
	for _, v := range s.GetEndpoint().GetVirtualIps() {
		n := known[v.NetworkId]
		p, err := netip.ParsePrefix(v.Addr)
		switch {
		case n == nil:
			d.add(Error, check, "it has the virtual address %s on network %s, which does not exist: `skep service update --force %s` gives it new ones", v.Addr, v.NetworkId, name)
			continue
		case err != nil || !inside(n, p.Addr()):
			d.add(Error, check, "its virtual address %s is not one of network %s: take it off the network and put it back", v.Addr, n.GetSpec().GetName())
			continue
		}
		key := v.NetworkId + " " + p.Addr().String()
		if other, taken := held[key]; taken {
			d.add(Error, check, "it has the virtual address %s of service %s on network %s: take one off the network and put it back", p.Addr(), other, n.GetSpec().GetName())
		}
		held[key] = name
		has[v.NetworkId] = true
		if p.Addr().Is4() {
			used[v.NetworkId]++
		}
	}
	for _, a := range s.GetSpec().GetTask().GetNetworks() {
		switch n := known[a.Target]; {
		case spec.Predefined(a.Target) != "":
		case n == nil:
			d.add(Error, check, "it is on network %s, which does not exist: `skep service update --network-rm %s %s`", a.Target, a.Target, name)
		case !dnsrr && !has[a.Target]:
			d.add(Error, check, "it has no virtual address on network %s: take it off the network and put it back", n.GetSpec().GetName())
		}
	}
}

// inside tells whether an address is one of a network's.
func inside(n *skepv1.Network, a netip.Addr) bool {
	for _, c := range n.GetIpam() {
		if p, err := netip.ParsePrefix(c.Subnet); err == nil && p.Contains(a) {
			return true
		}
	}
	return false
}
