package overlay

import (
	"net/netip"

	"skep.dev/libs/ipam"
	"skep.dev/services/ingress-mesh/internal/antispoof"
)

// senders are the tasks of this node as they may send on a network: those this process attached, and those behind the
// links that an earlier one made, whose IPv6 address follows from the other one.
func (s *space) senders(have kernel, subnet6 netip.Prefix) []antispoof.Port {
	out := make([]antispoof.Port, 0, len(have.ports)+1)
	for _, p := range have.ports {
		if _, known := s.tasks[p.task]; !known {
			out = append(out, antispoof.Port{Link: p.name, Addr: p.addr, Addr6: ipam.Embed(subnet6, p.addr)})
		}
	}
	for _, a := range s.tasks {
		out = append(out, a.sender())
	}
	return out
}

func (a Attachment) sender() antispoof.Port {
	return antispoof.Port{Link: hostEnd(a.Task), Addr: a.Addr.Addr(), Addr6: a.Addr6.Addr()}
}

// admit lets one more task send; its link need not be there yet.
func (s *space) admit(a Attachment, have kernel) error {
	_, err := s.guard.Apply(append(s.senders(have, a.Addr6.Masked()), a.sender())) // of two with one link the later counts
	return err
}
