package mesh

import (
	"fmt"
	"net/netip"

	"skep.dev/services/ingress-mesh/internal/ingress"
	"skep.dev/services/ingress-mesh/internal/vip"
)

// traceAddress follows a packet from a task to an address: the translation in its own namespace, then the network.
func (s *Service) traceAddress(rec record, a netip.Addr) ([]ingress.Hop, error) {
	const table = "nft inet skep_vip of the task"
	known, err := vip.Read(s.nsPath(rec.Task))
	if err != nil {
		return nil, err
	}
	var hops []ingress.Hop
	targets := []netip.Addr{a}
	for _, v := range known {
		if v.VIP != a && v.VIP6 != a {
			continue
		}
		targets = v.Backends
		if a == v.VIP6 {
			targets = v.Backends6
		}
		if len(targets) == 0 {
			return append(hops, ingress.Hop{Where: table, Text: fmt.Sprintf("%s of service %s has no task that serves: refused", a, v.Service.Service)}), nil
		}
		hops = append(hops, ingress.Hop{Where: table, Text: fmt.Sprintf("%s of service %s: one of %d tasks at random (%d connections so far)", a, v.Service.Service, len(targets), v.Connections)})
	}
	for _, t := range targets {
		hops = append(hops, s.tracePlace(rec, t))
	}
	return hops, nil
}

// tracePlace says where an address is that a task's packet goes to.
func (s *Service) tracePlace(rec record, a netip.Addr) ingress.Hop {
	for _, m := range rec.Networks {
		if !m.Addr.Contains(a) && !m.Addr6.Contains(a) {
			continue
		}
		where := "network " + s.follow.Network(m.Network).GetNetwork().GetSpec().GetName() + " by " + m.Device
		node, known := places(s.follow.Scope(m.Network))[a]
		switch {
		case !known:
			return ingress.Hop{Where: where, Text: fmt.Sprintf("%s is nobody's: dropped", a)}
		case node == s.node:
			return ingress.Hop{Where: where, Text: fmt.Sprintf("%s is a task of this node", a)}
		}
		at, err := s.overlays.Way(m.Network, a)
		if err != nil {
			return ingress.Hop{Where: where, Text: fmt.Sprintf("%s: %v", a, err)}
		}
		if !at.IsValid() {
			return ingress.Hop{Where: where, Text: fmt.Sprintf("%s is a task of node %s, and this node's kernel does not know the way: it is put right within seconds", a, node)}
		}
		return ingress.Hop{Where: where, Text: fmt.Sprintf("%s is a task of node %s, sent to %s, UDP port %d", a, node, at, s.port)}
	}
	if !rec.Address.IsValid() {
		return ingress.Hop{Where: "route", Text: fmt.Sprintf("%s is on none of the task's networks, and the task has no way out", a)}
	}
	return ingress.Hop{Where: "eth0", Text: fmt.Sprintf("%s is on none of the task's networks: it goes out by %s, as from this node", a, Bridge)}
}
