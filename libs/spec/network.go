package spec

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/libs/ipam"
	skepv1 "skep.dev/proto/skep/v1"
)

// The words a service may name instead of a network. They are no objects: none is stored and none has addresses.
const (
	NetworkHost    = "host"    // the node's own interfaces
	NetworkBridge  = "bridge"  // no network of the cluster; every task is on its node's bridge anyway
	NetworkNone    = "none"    // no interface but loopback
	NetworkIngress = "ingress" // published ports; no service names it
)

// The driver options of a network.
const (
	OptEncrypted = "encrypted"
	OptMTU       = "com.docker.network.driver.mtu"
	OptVXLANID   = "com.docker.network.driver.overlay.vxlanid_list"
)

// The limits of a network.
const (
	DriverOverlay = "overlay"
	MinMTU        = 576
	MinMTU6       = 1280 // IPv6 has no smaller links
	MaxMTU        = 9216
	// FirstVNI is the first VXLAN id that is given to a network; the ids from reservedVNI on, below it, are the mesh's.
	FirstVNI    = 4097
	MaxVNI      = 1<<24 - 1
	reservedVNI = 4000
	// Encrypted networks have a UDP port of every node each, from here, by their VXLAN id (see EncryptedPort), so that an
	// administrator can open them.
	FirstEncryptedPort = 51820
	LastEncryptedPort  = 53819
	// A larger IPv4 subnet than this is a slip, a smaller IPv6 one leaves no room for the addresses of IPv4 in it.
	minBits4 = 8
	maxBits6 = 64
)

// labelPredefined marks networks that Docker makes by itself.
const labelPredefined = "com.docker.swarm.predefined"

// Predefined returns the word by which a predefined network is known, "" for all other names.
func Predefined(name string) string {
	lower := strings.ToLower(name)
	switch lower {
	case NetworkHost, NetworkBridge, NetworkNone, NetworkIngress:
		return lower
	}
	return ""
}

// NetworkDefaults fills in what was left open and can be filled in without looking at anything else. It is idempotent
// and does not validate. Afterwards a network is encrypted if it has the option at all.
func NetworkDefaults(n *skepv1.NetworkSpec) {
	if n == nil {
		return
	}
	if n.Driver == "" {
		n.Driver = DriverOverlay
	}
	if v, ok := n.DriverOpts[OptEncrypted]; ok && v != "" {
		if on, err := strconv.ParseBool(v); err == nil && !on {
			delete(n.DriverOpts, OptEncrypted)
		}
	}
}

// Encrypted reports whether a network asks for encryption: by the option alone, as in Docker, or by a truth value.
func Encrypted(n *skepv1.NetworkSpec) bool {
	v, ok := n.GetDriverOpts()[OptEncrypted]
	if !ok || v == "" {
		return ok
	}
	on, err := strconv.ParseBool(v)
	return err == nil && on
}

// VXLANID is the VXLAN id a network asks for, 0 when it leaves that open.
func VXLANID(n *skepv1.NetworkSpec) (uint32, error) {
	v, ok := n.GetDriverOpts()[OptVXLANID]
	if !ok {
		return 0, nil
	}
	id, err := strconv.ParseUint(v, 10, 32)
	switch {
	case strings.Contains(v, ","):
		return 0, fault.Invalid("driver option %s=%s: a network has one VXLAN id, name one", OptVXLANID, v)
	case err != nil || id == 0 || id > MaxVNI:
		return 0, fault.Invalid("driver option %s=%s is not a VXLAN id: use %d to %d", OptVXLANID, v, FirstVNI, MaxVNI)
	case id >= reservedVNI && id < FirstVNI:
		return 0, fault.Invalid("VXLAN id %d is reserved: %d to %d are the routing mesh's, use %d to %d", id, reservedVNI, FirstVNI-1, FirstVNI, MaxVNI)
	}
	return uint32(id), nil
}

// EncryptedPort is the UDP port by which nodes exchange the packets of an encrypted network with that VXLAN id. Ids
// that far apart have the same, so no two encrypted networks have such ids.
func EncryptedPort(vni uint32) uint16 {
	return FirstEncryptedPort + uint16((vni-FirstVNI)%(LastEncryptedPort-FirstEncryptedPort+1))
}

// NetworkIPAM are the IPv4 and the IPv6 entry of a network that Validate has looked at, nil where there is none.
func NetworkIPAM(entries []*skepv1.IPAMConfig) (v4, v6 *skepv1.IPAMConfig) {
	for _, c := range entries {
		p, err := netip.ParsePrefix(c.GetSubnet())
		switch {
		case err != nil:
		case p.Addr().Is4():
			v4 = c
		default:
			v6 = c
		}
	}
	return v4, v6
}

// NetworkLayout is how a network as allocated is divided.
func NetworkLayout(n *skepv1.Network) (ipam.Layout, error) {
	v4, _ := NetworkIPAM(n.GetIpam())
	if v4 == nil {
		return ipam.Layout{}, fault.Invalid("network %s has no IPv4 subnet", n.GetSpec().GetName())
	}
	l, err := layout(v4)
	if err != nil {
		return l, fault.Invalid("network %s: %v", n.GetSpec().GetName(), err)
	}
	return l, nil
}

func layout(c *skepv1.IPAMConfig) (ipam.Layout, error) {
	subnet, err := netip.ParsePrefix(c.GetSubnet())
	if err != nil {
		return ipam.Layout{}, err
	}
	var part netip.Prefix
	if c.GetIpRange() != "" {
		if part, err = netip.ParsePrefix(c.GetIpRange()); err != nil {
			return ipam.Layout{}, err
		}
	}
	var gateway netip.Addr
	if c.GetGateway() != "" {
		if gateway, err = netip.ParseAddr(c.GetGateway()); err != nil {
			return ipam.Layout{}, err
		}
	}
	return ipam.NewLayout(subnet, part, gateway)
}

// ValidateNetwork checks a network's spec, with its defaults filled in or not, in a cluster of which it looks at the
// pool of the nodes' subnets alone (nil: at nothing).
func ValidateNetwork(n *skepv1.NetworkSpec, c *skepv1.ClusterSpec) error {
	if n == nil {
		return fault.Invalid("network spec is missing")
	}
	if err := ValidateName(n.Name); err != nil {
		return err
	}
	if Predefined(n.Name) != "" {
		return fault.Invalid("%s is a pre-defined network and cannot be created", Predefined(n.Name))
	}
	if err := ValidateLabels(n.Labels); err != nil {
		return err
	}
	if _, ok := n.Labels[labelPredefined]; ok {
		return fault.Invalid("label %s is for internally created predefined networks and cannot be applied by users", labelPredefined)
	}
	if err := validateDriver(n); err != nil {
		return err
	}
	var nodes netip.Prefix
	if c.GetNodeSubnetPool() != "" {
		var err error
		if nodes, err = pool("node-subnet-pool", c.NodeSubnetPool); err != nil {
			return err
		}
	}
	return validateIPAM(n, nodes)
}

func validateDriver(n *skepv1.NetworkSpec) error {
	switch n.Driver {
	case "", DriverOverlay:
	case "bridge", "host", "macvlan", "ipvlan", "null":
		return fault.Invalid("driver %s makes networks of a single node, which services of a cluster cannot share: use driver overlay", n.Driver)
	default:
		return fault.Invalid("unknown network driver %q: use overlay", n.Driver)
	}
	for _, k := range slices.Sorted(maps.Keys(n.DriverOpts)) {
		v := n.DriverOpts[k]
		switch k {
		case OptEncrypted:
			if _, err := strconv.ParseBool(v); v != "" && err != nil {
				return fault.Invalid("driver option %s=%s: use %s alone, or true or false", k, v, k)
			}
		case OptMTU:
			if err := validateMTU(v, n.Ipv6); err != nil {
				return err
			}
		case OptVXLANID:
			if _, err := VXLANID(n); err != nil {
				return err
			}
		default:
			return fault.Invalid("unknown driver option %q of an overlay network: use %s, %s or %s", k, OptEncrypted, OptMTU, OptVXLANID)
		}
	}
	return nil
}

func validateMTU(v string, ipv6 bool) error {
	mtu, err := strconv.Atoi(v)
	switch {
	case err != nil || mtu < MinMTU || mtu > MaxMTU:
		return fault.Invalid("driver option %s=%s: use %d to %d", OptMTU, v, MinMTU, MaxMTU)
	case ipv6 && mtu < MinMTU6:
		return fault.Invalid("driver option %s=%s: a network with IPv6 needs %d or more", OptMTU, v, MinMTU6)
	}
	return nil
}

func validateIPAM(n *skepv1.NetworkSpec, nodes netip.Prefix) error {
	var count4, count6 int
	for _, c := range n.Ipam {
		if c.GetSubnet() == "" {
			return fault.Invalid("every ip-range or gateway must have a corresponding subnet")
		}
		p, err := netip.ParsePrefix(c.Subnet)
		switch {
		case err != nil || p.Addr().Is4In6():
			return fault.Invalid("invalid subnet %q: use a CIDR such as 10.0.9.0/24", c.Subnet)
		case p != p.Masked():
			return fault.Invalid("invalid subnet %q: the address has host bits, use %s", c.Subnet, p.Masked())
		}
		if p.Addr().Is4() {
			count4++
			err = validateSubnet4(c, p, nodes)
		} else {
			count6++
			err = validateSubnet6(n, c, p)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case count4 > 1:
		return fault.Invalid("network %s has %d IPv4 subnets: give one, large enough for all", n.Name, count4)
	case count6 > 1:
		return fault.Invalid("network %s has %d IPv6 subnets: give one", n.Name, count6)
	}
	return nil
}

// unusable4 are addresses that mean something else on every machine.
var unusable4 = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/3"),
}

func validateSubnet4(c *skepv1.IPAMConfig, p, nodes netip.Prefix) error {
	switch {
	case p.Bits() > ipam.MinBits:
		return fault.Invalid("subnet %s is too small: use a /%d or larger", p, ipam.MinBits)
	case p.Bits() < minBits4:
		return fault.Invalid("subnet %s is too large: use a /%d or smaller", p, minBits4)
	}
	for _, u := range unusable4 {
		if u.Overlaps(p) {
			return fault.Invalid("subnet %s overlaps %s, which no network may use: use private addresses, such as 10.0.9.0/24", p, u)
		}
	}
	if nodes.IsValid() && nodes.Overlaps(p) {
		return fault.Invalid("subnet %s overlaps %s, the pool of the nodes' own subnets: use other addresses", p, nodes)
	}
	if c.Gateway != "" {
		g, err := netip.ParseAddr(c.Gateway)
		switch {
		case err != nil:
			return fault.Invalid("invalid gateway %q: use an address in subnet %s", c.Gateway, p)
		case !p.Contains(g):
			return fault.Invalid("gateway %s is outside subnet %s: use an address in it, such as %s", g, p, p.Addr().Next())
		}
	}
	if c.IpRange != "" {
		r, err := netip.ParsePrefix(c.IpRange)
		switch {
		case err != nil:
			return fault.Invalid("invalid ip-range %q: use a part of subnet %s", c.IpRange, p)
		case r != r.Masked():
			return fault.Invalid("invalid ip-range %q: the address has host bits, use %s", c.IpRange, r.Masked())
		case r.Bits() < p.Bits() || !p.Contains(r.Addr()):
			return fault.Invalid("ip-range %s is outside subnet %s: use a part of it", r, p)
		case r.Bits() > ipam.MinBits:
			return fault.Invalid("ip-range %s is too small: use a /%d or larger", r, ipam.MinBits)
		}
	}
	if _, err := layout(c); err != nil {
		return fault.Invalid("subnet %s: %v", p, err)
	}
	return nil
}

// usable6 are the addresses networks may have: global ones and those that are unique by chance.
var usable6 = []netip.Prefix{netip.MustParsePrefix("2000::/3"), netip.MustParsePrefix("fc00::/7")}

func validateSubnet6(n *skepv1.NetworkSpec, c *skepv1.IPAMConfig, p netip.Prefix) error {
	inside := func(u netip.Prefix) bool { return u.Bits() <= p.Bits() && u.Contains(p.Addr()) }
	switch {
	case !n.Ipv6:
		return fault.Invalid("subnet %s is IPv6, and network %s has none: ask for ipv6 as well", p, n.Name)
	case p.Bits() > maxBits6:
		return fault.Invalid("subnet %s is too small: use a /%d or larger", p, maxBits6)
	case !slices.ContainsFunc(usable6, inside):
		return fault.Invalid("subnet %s is not in %s or %s, which networks may use", p, usable6[0], usable6[1])
	case ipam.Nodes6.Overlaps(p):
		return fault.Invalid("subnet %s overlaps %s, the nodes' own IPv6 addresses: use other addresses", p, ipam.Nodes6)
	case c.IpRange != "":
		return fault.Invalid("ip-range %s: IPv6 addresses follow the IPv4 ones, give a range for IPv4 alone", c.IpRange)
	case c.Gateway == "":
		return nil
	}
	g, err := netip.ParseAddr(c.Gateway)
	switch {
	case err != nil || g.Zone() != "":
		return fault.Invalid("invalid gateway %q: use an address in subnet %s", c.Gateway, p)
	case !p.Contains(g) || g == p.Addr():
		return fault.Invalid("gateway %s is outside subnet %s: use an address in it, such as %s", g, p, p.Addr().Next())
	case embedsIPv4(p, g):
		return fault.Invalid("gateway %s could be a task's address, which is the subnet's with an IPv4 address at its end: use %s", g, p.Addr().Next())
	}
	return nil
}

// embedsIPv4: the address is the subnet's own with an IPv4 address, that a network may have, in its last 32 bits.
func embedsIPv4(p netip.Prefix, a netip.Addr) bool {
	base, b := p.Addr().As16(), a.As16()
	return [12]byte(base[:12]) == [12]byte(b[:12]) && b[12] != 0
}
