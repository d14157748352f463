package compose

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// defaultNetwork is what services are on that name none.
const defaultNetwork = "default"

// network is one that a service uses.
type network struct {
	key, name string
	external  bool
}

// use finds a network by its key, and notes that it is needed.
func (s *stack) use(key string) *network {
	if n := s.networks[key]; n != nil {
		return n
	}
	decl, ok := s.project.Networks[key]
	if !ok && key != defaultNetwork {
		return nil
	}
	n := &network{key: key, external: bool(decl.External), name: s.ownName(key, decl.Name)}
	if n.external {
		n.name = externalName(key, decl.Name)
	}
	s.networks[key] = n
	return n
}

// attach reads networks and network_mode.
func (s *service) attach() {
	in := s.in
	if in.NetworkMode != "" && in.NetworkMode != "default" {
		s.networkMode()
		return
	}
	keys := slices.Sorted(maps.Keys(in.Networks))
	if len(keys) == 0 {
		keys = []string{defaultNetwork}
	}
	for _, key := range keys {
		path := s.at("networks", key)
		n := s.use(key)
		if n == nil {
			s.wrongAt(path, "there is no network %s at the top of the files%s", key, nearest(key, slices.Collect(maps.Keys(s.project.Networks))))
			continue
		}
		s.out.Task.Networks = append(s.out.Task.Networks, s.attachment(path, n, in.Networks[key]))
	}
	slices.SortFunc(s.out.Task.Networks, func(a, b *skepv1.NetworkAttachment) int { return strings.Compare(a.Target, b.Target) })
	if name := in.ContainerName; name != "" {
		if s.single() {
			s.alias(name)
			s.noteAt(s.at("container_name"), "the container is not named so: the name is an alias on the service's networks")
		} else {
			s.noteAt(s.at("container_name"), "it has no effect: a service of several containers has one name, the service's")
		}
	}
}

// alias adds a name to every network of the service that has names.
func (s *service) alias(name string) {
	for _, a := range s.out.Task.Networks {
		if spec.Predefined(a.Target) == "" && !slices.Contains(a.Aliases, name) {
			a.Aliases = append(a.Aliases, name)
		}
	}
}

func (s *service) networkMode() {
	path := s.at("network_mode")
	if len(s.in.Networks) > 0 {
		s.wrongAt(path, "the service has networks too: remove one of them")
		return
	}
	mode := s.in.NetworkMode
	switch mode {
	case spec.NetworkHost, spec.NetworkNone, spec.NetworkBridge:
		s.out.Task.Networks = []*skepv1.NetworkAttachment{{Target: mode}}
		if s.in.ContainerName != "" {
			s.noteAt(s.at("container_name"), "it has no effect: a service on network %s has no names", mode)
		}
		return
	}
	if strings.HasPrefix(mode, "service:") || strings.HasPrefix(mode, "container:") {
		s.wrongAt(path, "the network of another container cannot be shared: put both services on one network")
		return
	}
	s.wrongAt(path, "unknown mode: use host, none or bridge, or networks")
}

func (s *service) attachment(path []string, n *network, in *types.ServiceNetworkConfig) *skepv1.NetworkAttachment {
	a := &skepv1.NetworkAttachment{Target: n.name}
	if spec.Predefined(n.name) != "" {
		a.Target = spec.Predefined(n.name)
		return a
	}
	if in.ServiceNameAliasEnabled() {
		a.Aliases = []string{s.name}
	}
	if in == nil {
		return a
	}
	for _, name := range in.Aliases {
		if !slices.Contains(a.Aliases, name) {
			a.Aliases = append(a.Aliases, name)
		}
	}
	if len(in.DriverOpts) > 0 {
		a.DriverOpts = maps.Clone(map[string]string(in.DriverOpts))
	}
	a.Ipv4Address = s.address(append(path, "ipv4_address"), in.Ipv4Address, true)
	a.Ipv6Address = s.address(append(path, "ipv6_address"), in.Ipv6Address, false)
	return a
}

// address is a task's fixed address on a network.
func (s *service) address(path []string, text string, v4 bool) string {
	if text == "" {
		return ""
	}
	ip, err := netip.ParseAddr(text)
	switch {
	case err != nil || ip.Is4() != v4:
		s.wrongAt(path, "%.60q is no such address", text)
	case !s.single():
		s.wrongAt(path, "one address is for one task: give the service one replica, or remove the address")
	default:
		return ip.String()
	}
	return ""
}

// links reads links, once every service's networks are known: the name is one of the service that is linked to.
func (s *stack) links() {
	byName := map[string]*service{}
	for _, one := range s.services {
		byName[one.name] = one
	}
	for _, one := range s.services {
		for i, link := range one.in.Links {
			to, name, renamed := strings.Cut(link, ":")
			path, other := one.at("links", itoa(i)), byName[to]
			if other == nil {
				s.wrongAt(path, "there is no service %s%s", to, nearest(to, slices.Collect(maps.Keys(byName))))
				continue
			}
			if !renamed {
				name = to
			}
			shared := false
			for _, a := range other.out.Task.Networks {
				if spec.Predefined(a.Target) != "" || !slices.ContainsFunc(one.out.Task.Networks, func(b *skepv1.NetworkAttachment) bool { return b.Target == a.Target }) {
					continue
				}
				shared = true
				if !slices.Contains(a.Aliases, name) {
					a.Aliases = append(a.Aliases, name)
				}
			}
			if !shared {
				s.wrongAt(path, "%s and %s are on no network together: put them on one", one.name, to)
				continue
			}
			s.noteAt(path, "%s is an alias of %s on the networks that both have", name, to)
		}
	}
}

// finishNetworks makes the stack's own networks that services use.
func (s *stack) finishNetworks() {
	for _, key := range slices.Sorted(maps.Keys(s.project.Networks)) {
		if s.networks[key] == nil {
			s.noteAt([]string{"networks", key}, "no service uses it, so it is not made")
		}
	}
	names := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(s.networks)) {
		n := s.networks[key]
		decl, path := s.project.Networks[key], []string{"networks", key}
		if n.external {
			if spec.Predefined(n.name) == "" {
				s.external("network", n.name, path)
			}
			if decl.Driver != "" || len(decl.DriverOpts) > 0 {
				s.noteAt(path, "it is external: its driver and options are those that it was made with")
			}
			continue
		}
		if other, ok := names[n.name]; ok {
			s.wrongAt(path, "it has the name %s, as %s has: give it another", n.name, other)
			continue
		}
		names[n.name] = key
		out := &skepv1.NetworkSpec{Name: n.name, Labels: s.labels(decl.Labels), Driver: decl.Driver, Internal: decl.Internal, Attachable: decl.Attachable}
		if out.Driver == "" {
			out.Driver = spec.DriverOverlay
		}
		if len(decl.DriverOpts) > 0 {
			out.DriverOpts = maps.Clone(map[string]string(decl.DriverOpts))
		}
		if decl.EnableIPv4 != nil && !*decl.EnableIPv4 {
			s.unsupported(append(path, "enable_ipv4"), "every network has IPv4: remove it")
		}
		out.Ipv6 = decl.EnableIPv6 != nil && *decl.EnableIPv6
		if d := decl.Ipam.Driver; d != "" && d != "default" {
			s.unsupported(append(path, "ipam", "driver"), "there is one way to give addresses: remove it, or write default")
		}
		for _, c := range decl.Ipam.Config {
			out.Ipam = append(out.Ipam, &skepv1.IPAMConfig{Subnet: c.Subnet, Gateway: c.Gateway, IpRange: c.IPRange})
		}
		if err := spec.ValidateNetwork(out, nil); err != nil {
			s.wrongAt(path, "%v", err)
			continue
		}
		s.out.Spec.Networks = append(s.out.Spec.Networks, out)
	}
	slices.SortFunc(s.out.Spec.Networks, func(a, b *skepv1.NetworkSpec) int { return strings.Compare(a.Name, b.Name) })
}

// external adds an object that must exist already.
func (s *stack) external(kind, name string, path []string) {
	s.out.External = append(s.out.External, External{Kind: kind, Name: name, Where: find(s.docs, path)})
}
