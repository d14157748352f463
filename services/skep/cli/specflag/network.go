package specflag

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	skepv1 "skep.dev/proto/skep/v1"
)

// NetworkFlags holds the flags of `network create`.
type NetworkFlags struct {
	driver, scope, ipamDriver, configFrom *scalar[string]
	subnets, gateways, ranges             *list[string]
	aux, ipamOpts                         *list[string]
	internal, attachable, ingress         *boolean
	ipv4, ipv6, configOnly                *boolean
	labels, opts                          *list[string]
}

// Network registers the flags of `network create`.
func Network(fs *pflag.FlagSet) *NetworkFlags {
	f := &Flags{fs: fs}
	fs.SortFlags = true
	n := &NetworkFlags{
		driver:     addScalar(f, "driver", "d", "string", `Driver of the network: "overlay", the only one there is (default overlay)`, text),
		scope:      addScalar(f, "scope", "", "string", `Where the network is: "swarm", in the whole cluster (default swarm)`, text),
		subnets:    addSplit(f, "subnet", "Subnet in CIDR form: at most one IPv4 and one IPv6 (default: a free one of the cluster's pools)"),
		gateways:   addSplit(f, "gateway", "Gateway of the subnet it lies in (default: the first address)"),
		ranges:     addSplit(f, "ip-range", "Part of a subnet that services and tasks get their addresses from, in CIDR form"),
		aux:        addSplit(f, "aux-address", "Not supported"),
		internal:   addBool(f, "internal", "", "Give its tasks no way out of the cluster"),
		attachable: addBool(f, "attachable", "", "Accepted for Docker's sake and stored; what joins a network is a service's task"),
		ingress:    addBool(f, "ingress", "", "Not supported: there is one ingress network, always"),
		ipv4:       addBool(f, "ipv4", "", "Accepted for Docker's sake: every network has IPv4"),
		ipv6:       addBool(f, "ipv6", "", "Give tasks and services IPv6 addresses as well"),
		configOnly: addBool(f, "config-only", "", "Not supported"),
		configFrom: addScalar(f, "config-from", "", "network", "Not supported", text),
		ipamDriver: addScalar(f, "ipam-driver", "", "string", "Not supported", text),
		ipamOpts:   addList(f, "ipam-opt", "", "list", "Not supported"),
		labels:     &list[string]{typ: "list", parse: one(ParseLabel)},
		opts:       &list[string]{typ: "list", parse: one(parseDriverOpt)},
	}
	fs.VarP(n.opts, "opt", "o", "Option of the driver: encrypted, com.docker.network.driver.mtu=BYTES, com.docker.network.driver.overlay.vxlanid_list=ID")
	fs.Var(n.labels, "label", "Label of the network")
	for _, name := range []string{"aux-address", "ingress", "ipv4", "config-only", "config-from", "ipam-driver", "ipam-opt"} {
		_ = fs.MarkHidden(name) // it was registered above
	}
	return n
}

// addSplit is a list whose values may also stand in one, with commas between them.
func addSplit(f *Flags, name, usage string) *list[string] {
	l := &list[string]{typ: "list", parse: splitCommas}
	f.fs.Var(l, name, usage)
	return l
}

// parseDriverOpt reads key or key=value.
func parseDriverOpt(s string) (string, error) {
	if k, _, _ := strings.Cut(s, "="); strings.TrimSpace(k) == "" {
		return "", invalidf("invalid driver option '%s': it must be key or key=value", s)
	}
	return s, nil
}

// Spec is what the flags ask for. Whether it makes a network is for others to say (spec.ValidateNetwork).
func (n *NetworkFlags) Spec(name string) (*skepv1.NetworkSpec, error) {
	if err := n.refuse(); err != nil {
		return nil, err
	}
	s := &skepv1.NetworkSpec{
		Name: name, Driver: "overlay", Labels: toMap(n.labels.vals), DriverOpts: toMap(n.opts.vals),
		Internal: n.internal.val, Attachable: n.attachable.val, Ipv6: n.ipv6.val,
	}
	if n.driver.set {
		s.Driver = n.driver.val
	}
	var err error
	s.Ipam, err = pairIPAM(n.subnets.vals, n.ranges.vals, n.gateways.vals)
	return s, err
}

// refuse says why, for what Docker has and skep has not.
func (n *NetworkFlags) refuse() error {
	switch {
	case n.ingress.val:
		return invalidf("--ingress is not supported: every cluster has its network of published ports, ingress, and it needs no settings")
	case n.aux.set():
		return invalidf("--aux-address is not supported: keep addresses free for other uses with --ip-range, which says where services and tasks get theirs from")
	case n.configOnly.val:
		return invalidf("--config-only is not supported: it is for networks of a single node; give an overlay network its settings directly")
	case n.configFrom.set:
		return invalidf("--config-from is not supported: it is for networks of a single node; give an overlay network its settings directly")
	case n.ipamDriver.set && n.ipamDriver.val != "default":
		return invalidf("--ipam-driver %s is not supported: skep hands out the addresses itself; --subnet, --gateway and --ip-range say which", n.ipamDriver.val)
	case n.ipamOpts.set():
		return invalidf("--ipam-opt is not supported: skep hands out the addresses itself; --subnet, --gateway and --ip-range say which")
	case n.ipv4.set && !n.ipv4.val:
		return invalidf("--ipv4=false is not supported: every network has IPv4, and --ipv6 gives it IPv6 as well")
	case n.scope.set && n.scope.val != "swarm":
		return invalidf("--scope %s is not supported: networks exist in the whole cluster, their scope is swarm", n.scope.val)
	}
	return nil
}

// pairIPAM gives every subnet the range and the gateway that lie in it, by Docker's rules and in its words.
func pairIPAM(subnets, ranges, gateways []string) ([]*skepv1.IPAMConfig, error) {
	if len(subnets) < len(ranges) || len(subnets) < len(gateways) {
		return nil, invalidf("every ip-range or gateway must have a corresponding subnet")
	}
	var out []*skepv1.IPAMConfig
	var have []netip.Prefix
	for _, s := range subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, invalidf("invalid subnet %s: write it in CIDR form, as 10.0.9.0/24", s)
		}
		if slices.ContainsFunc(have, p.Overlaps) {
			return nil, invalidf("multiple overlapping subnet configuration is not supported")
		}
		have = append(have, p)
		out = append(out, &skepv1.IPAMConfig{Subnet: s})
	}
	within := func(a netip.Addr) int {
		return slices.IndexFunc(have, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, r := range ranges {
		p, err := netip.ParsePrefix(r)
		if err != nil {
			return nil, invalidf("invalid ip-range %s: write it in CIDR form, as 10.0.9.128/25", r)
		}
		i := within(p.Addr())
		if i < 0 {
			return nil, invalidf("no matching subnet for range %s", r)
		}
		if out[i].IpRange != "" {
			return nil, invalidf("cannot configure multiple ranges (%s, %s) on the same subnet (%s)", r, out[i].IpRange, out[i].Subnet)
		}
		out[i].IpRange = r
	}
	for _, g := range gateways {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return nil, invalidf("invalid gateway %s: it must be an address", g)
		}
		i := within(a)
		if i < 0 {
			return nil, invalidf("no matching subnet for gateway %s", g)
		}
		if out[i].Gateway != "" {
			return nil, invalidf("cannot configure multiple gateways (%s, %s) for the same subnet (%s)", g, out[i].Gateway, out[i].Subnet)
		}
		out[i].Gateway = g
	}
	return out, nil
}
