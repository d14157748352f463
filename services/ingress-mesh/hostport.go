package mesh

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"skep.dev/libs/attach"
	"skep.dev/libs/fault"
	"skep.dev/libs/ownaddr"
)

// Ports of the host that nobody named come from here, as in docker.
const (
	firstHostPort = 32768
	lastHostPort  = 60999
)

// bindPorts fills in the ports a task publishes on this host alone. Those it named are taken as they are: the scheduler
// keeps tasks with the same one apart, but for the moment in which one replaces the other.
func (s *Service) bindPorts(asked []attach.Port) ([]attach.Port, error) {
	out := slices.Clone(asked)
	s.liveMu.Lock()
	defer s.liveMu.Unlock()
	for _, p := range asked {
		if err := ownAddress(p.HostIP); err != nil {
			return nil, err
		}
	}
	used := map[attach.Port]bool{}
	for _, r := range s.live {
		for _, p := range r.Ports {
			used[attach.Port{Protocol: p.Protocol, Published: p.Published}] = true
		}
	}
	for i, p := range out {
		if p.Published != 0 {
			if !unbound(p.Protocol, p.HostIP, p.Published) {
				return nil, fault.Conflict("host port %s/%s is in use by another program of this node: end it, or publish another port", hostPort(p.HostIP, p.Published), p.Protocol)
			}
			continue
		}
		n, ok := s.freeHostPort(p.Protocol, p.HostIP, used)
		if !ok {
			return nil, fault.Exhausted("all host ports %d-%d/%s of this node are in use: publish a port by number", firstHostPort, lastHostPort, p.Protocol)
		}
		out[i].Published = n
		used[attach.Port{Protocol: p.Protocol, Published: n}] = true
	}
	return out, nil
}

// freeHostPort finds a port no task of ours has and no program of the host listens on.
func (s *Service) freeHostPort(protocol string, at netip.Addr, used map[attach.Port]bool) (uint16, bool) {
	const span = lastHostPort - firstHostPort + 1
	for range span {
		s.nextPort = (s.nextPort + 1) % span
		n := uint16(firstHostPort + s.nextPort)
		if !used[attach.Port{Protocol: protocol, Published: n}] && unbound(protocol, at, n) {
			return n, true
		}
	}
	return 0, false
}

// ownAddress refuses one that no interface of this node has: another node may.
func ownAddress(a netip.Addr) error {
	if !a.IsValid() {
		return nil
	}
	if own, err := ownaddr.Has(a); own || err != nil {
		return err
	}
	return fault.Invalid("host_ip %s is no address of this node: publish the port at one it has, or let a constraint lead the service to the node that has it", a)
}

// hostPort is a port of one address, or of all.
func hostPort(at netip.Addr, port uint16) string {
	if !at.IsValid() {
		return fmt.Sprint(port)
	}
	return netip.AddrPortFrom(at, port).String()
}

func unbound(protocol string, host netip.Addr, port uint16) bool {
	at := fmt.Sprintf(":%d", port)
	if host.IsValid() {
		at = netip.AddrPortFrom(host, port).String()
	}
	switch protocol {
	case "udp":
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			return false
		}
		return c.Close() == nil
	case "tcp":
		l, err := net.Listen("tcp", at)
		if err != nil {
			return false
		}
		return l.Close() == nil
	}
	return true
}
