package mesh

import (
	"fmt"
	"net"
	"slices"

	"skep.dev/libs/attach"
	"skep.dev/libs/fault"
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
	used := map[attach.Port]bool{}
	for _, r := range s.live {
		for _, p := range r.Ports {
			used[attach.Port{Protocol: p.Protocol, Published: p.Published}] = true
		}
	}
	for i, p := range out {
		if p.Published != 0 {
			if !unbound(p.Protocol, p.Published) {
				return nil, fault.Conflict("host port %d/%s is in use by another program of this node: end it, or publish another port", p.Published, p.Protocol)
			}
			continue
		}
		n, ok := s.freeHostPort(p.Protocol, used)
		if !ok {
			return nil, fault.Exhausted("all host ports %d-%d/%s of this node are in use: publish a port by number", firstHostPort, lastHostPort, p.Protocol)
		}
		out[i].Published = n
		used[attach.Port{Protocol: p.Protocol, Published: n}] = true
	}
	return out, nil
}

// freeHostPort finds a port no task of ours has and no program of the host listens on.
func (s *Service) freeHostPort(protocol string, used map[attach.Port]bool) (uint16, bool) {
	const span = lastHostPort - firstHostPort + 1
	for range span {
		s.nextPort = (s.nextPort + 1) % span
		n := uint16(firstHostPort + s.nextPort)
		if !used[attach.Port{Protocol: protocol, Published: n}] && unbound(protocol, n) {
			return n, true
		}
	}
	return 0, false
}

func unbound(protocol string, port uint16) bool {
	at := fmt.Sprintf(":%d", port)
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
