package state

import (
	"net/netip"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// fixedKeys are the addresses a spec gives its task by name, by their index keys. Its networks are ids by then.
func fixedKeys(want *skepv1.ServiceSpec) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	for network, addrs := range spec.Fixed(want) {
		for _, a := range addrs {
			out[keys.VIPKey(network, a)] = a
		}
	}
	return out
}

// mayFix refuses addresses that their networks do not have, or that are another service's. One that a task without a name
// for its own has got by chance is the mesh's to tell: the task waits for it, and says so.
func (s *Service) mayFix(id string, want *skepv1.ServiceSpec) error {
	if err := spec.OneTask(want); err != nil {
		return err
	}
	for _, at := range want.GetTask().GetNetworks() {
		if at.GetIpv4Address() == "" && at.GetIpv6Address() == "" {
			continue
		}
		n := s.ix.Network(at.Target)
		if n == nil {
			return networkNotFound(at.Target, nil)
		}
		if err := spec.FixedOn(n, at); err != nil {
			return err
		}
		for _, text := range []string{at.Ipv4Address, at.Ipv6Address} {
			a, err := netip.ParseAddr(text)
			if err != nil {
				continue // none, or Validate has refused it
			}
			k, taken := s.ix.Key(keys.VIPKey(at.Target, a))
			if !taken || k.Value == id {
				continue
			}
			what := "the address of the task"
			if _, virtual := vip4s(s.ix.Service(k.Value).GetEndpoint().GetVirtualIps())[keys.VIPKey(at.Target, a)]; virtual {
				what = "the virtual address"
			}
			return fault.Conflict("ip %s on network %s is %s of service %s (%s): use another one", a, n.Spec.Name, what, s.ix.ServiceName(k.Value), k.Value)
		}
	}
	return nil
}
