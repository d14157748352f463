package overlay

import "net/netip"

// Way is the node an address of a network is sent to, as the kernel has it; invalid when it does not know.
func (p *Plane) Way(network string, a netip.Addr) (netip.Addr, error) {
	var out netip.Addr
	err := p.read(network, func(s *space) error {
		have, err := s.observe(p)
		if err != nil {
			return err
		}
		for _, n := range have.neigh {
			if n.addr != a {
				continue
			}
			for _, f := range have.fdb {
				if f.mac == n.mac {
					out = f.dst
				}
			}
		}
		return nil
	})
	return out, err
}
