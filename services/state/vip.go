package state

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"

	"skep.dev/libs/fault"
	"skep.dev/libs/ipam"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// allocateVIPs gives a service a virtual address on each of its networks, and keeps those it has. With IPv6 a second
// one follows from the first.
func (s *Service) allocateVIPs(id string, want *skepv1.ServiceSpec, had *skepv1.Endpoint) ([]*skepv1.VirtualIP, error) {
	if want.GetEndpoint().GetMode() == skepv1.EndpointSpec_MODE_DNSRR {
		return nil, nil
	}
	var out []*skepv1.VirtualIP
	own := fixedKeys(want)
	for _, network := range spec.Overlays(want) {
		n := s.ix.Network(network)
		if n == nil {
			return nil, networkNotFound(network, nil)
		}
		l, err := spec.NetworkLayout(n)
		if err != nil {
			return nil, err
		}
		a, ok := s.keptVIP(id, network, l, had)
		if _, mine := own[keys.VIPKey(network, a)]; ok && mine {
			return nil, fault.Conflict("ip %s is the virtual address of service %s itself on network %s: use another one", a, want.Name, n.Spec.Name)
		}
		if !ok {
			if a, err = s.freeVIP(n, l, own); err != nil {
				return nil, err
			}
		}
		out = append(out, &skepv1.VirtualIP{NetworkId: network, Addr: netip.PrefixFrom(a, l.Subnet.Bits()).String()})
		if a6, ok := vip6(n, a); ok {
			out = append(out, &skepv1.VirtualIP{NetworkId: network, Addr: a6.String()})
		}
	}
	return out, nil
}

// vip6 is the IPv6 address that goes with a virtual one: the network's IPv6 subnet, ending in the IPv4 address.
func vip6(n *skepv1.Network, a netip.Addr) (netip.Prefix, bool) {
	_, c := spec.NetworkIPAM(n.Ipam)
	p, err := netip.ParsePrefix(c.GetSubnet())
	if err != nil {
		return p, false
	}
	b, v4 := p.Masked().Addr().As16(), a.As4()
	copy(b[12:], v4[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), p.Bits()), true
}

// vip4s are the IPv4 ones of some virtual addresses by their index keys.
func vip4s(vips []*skepv1.VirtualIP) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	for _, v := range vips {
		if p, err := netip.ParsePrefix(v.Addr); err == nil && p.Addr().Is4() {
			out[keys.VIPKey(v.NetworkId, p.Addr())] = p.Addr()
		}
	}
	return out
}

func (s *Service) keptVIP(id, network string, l ipam.Layout, had *skepv1.Endpoint) (netip.Addr, bool) {
	for key, a := range vip4s(had.GetVirtualIps()) {
		if k, taken := s.ix.Key(key); key == keys.VIPKey(network, a) && l.Subnet.Contains(a) && (!taken || k.Value == id) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (s *Service) freeVIP(n *skepv1.Network, l ipam.Layout, but map[string]netip.Addr) (netip.Addr, error) {
	// From a random one on: several instances that allocate at once rarely meet.
	for a := range l.VIPs(rand.Uint32()) {
		key := keys.VIPKey(n.Meta.Id, a)
		if _, taken := s.ix.Key(key); !taken && !but[key].IsValid() {
			return a, nil
		}
	}
	return netip.Addr{}, fault.Exhausted("network %s (%s) has %d virtual addresses and all are in use by services: use --endpoint-mode dnsrr, or a network with a larger subnet",
		n.Spec.Name, l.Subnet, l.VIPCount())
}

// addressKeys are the addresses that are a service's alone, by their index keys: its virtual ones and those its task is
// given by name.
func addressKeys(vips []*skepv1.VirtualIP, spec *skepv1.ServiceSpec) map[string]netip.Addr {
	out := vip4s(vips)
	maps.Copy(out, fixedKeys(spec))
	return out
}

// addressOps adds to a batch what moves a service from its old addresses to the new ones. A key that the service has and
// did not name is written again, so that nobody who takes it for a stray one deletes it.
func (s *Service) addressOps(b *kv.Batch, id string, was, is map[string]netip.Addr) error {
	for key := range was {
		if _, stays := is[key]; stays {
			continue
		}
		if k, ok := s.ix.Key(key); ok && k.Value == id {
			b.Delete(key, k.Revision)
		}
	}
	for key := range is {
		_, had := was[key]
		switch k, ok := s.ix.Key(key); {
		case !ok:
			b.Create(key, []byte(id))
		case k.Value != id:
			return fmt.Errorf("address %s is another service's: %w", key, kv.ErrConflict) // taken since it was free: look again
		case !had:
			b.Update(key, []byte(id), k.Revision)
		}
	}
	return nil
}
