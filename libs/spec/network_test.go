package spec

import (
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

func opts(kv ...string) func(*skepv1.NetworkSpec) {
	return func(n *skepv1.NetworkSpec) {
		n.DriverOpts = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			n.DriverOpts[kv[i]] = kv[i+1]
		}
	}
}

// entries are subnet, gateway and range of each.
func entries(v ...string) func(*skepv1.NetworkSpec) {
	return func(n *skepv1.NetworkSpec) {
		for i := 0; i < len(v); i += 3 {
			n.Ipam = append(n.Ipam, &skepv1.IPAMConfig{Subnet: v[i], Gateway: v[i+1], IpRange: v[i+2]})
		}
	}
}

func entries6(v ...string) func(*skepv1.NetworkSpec) {
	return func(n *skepv1.NetworkSpec) { n.Ipv6 = true; entries(v...)(n) }
}

func TestValidateNetwork(t *testing.T) {
	c := &skepv1.ClusterSpec{}
	ClusterDefaults(c)
	for _, x := range []struct {
		edit func(*skepv1.NetworkSpec)
		want string // "" = accepted
	}{
		{func(*skepv1.NetworkSpec) {}, ""},
		{func(n *skepv1.NetworkSpec) { n.Name = "" }, "meta: name must be provided"},
		{func(n *skepv1.NetworkSpec) { n.Name = "a b" }, "name must be valid as a DNS name component"},
		{func(n *skepv1.NetworkSpec) { n.Name = strings.Repeat("a", 64) }, "name must be 63 characters or fewer"},
		{func(n *skepv1.NetworkSpec) { n.Name = "Ingress" }, "ingress is a pre-defined network and cannot be created"},
		{func(n *skepv1.NetworkSpec) { n.Labels = map[string]string{"a b": ""} }, "label 'a b' contains whitespaces"},
		{func(n *skepv1.NetworkSpec) { n.Labels = map[string]string{"com.docker.swarm.predefined": ""} }, "label com.docker.swarm.predefined is for internally created predefined networks and cannot be applied by users"},

		{func(n *skepv1.NetworkSpec) { n.Driver = "overlay" }, ""},
		{func(n *skepv1.NetworkSpec) { n.Driver = "bridge" }, "driver bridge makes networks of a single node, which services of a cluster cannot share: use driver overlay"},
		{func(n *skepv1.NetworkSpec) { n.Driver = "macvlan" }, "driver macvlan makes networks of a single node, which services of a cluster cannot share: use driver overlay"},
		{func(n *skepv1.NetworkSpec) { n.Driver = "weave" }, `unknown network driver "weave": use overlay`},
		{opts("dsr", ""), `unknown driver option "dsr" of an overlay network: use encrypted, com.docker.network.driver.mtu or com.docker.network.driver.overlay.vxlanid_list`},
		{opts(OptEncrypted, "", OptMTU, "9000"), ""},
		{opts(OptEncrypted, "maybe"), "driver option encrypted=maybe: use encrypted alone, or true or false"},
		{opts(OptMTU, "575"), "driver option com.docker.network.driver.mtu=575: use 576 to 9216"},
		{opts(OptMTU, "9217"), "driver option com.docker.network.driver.mtu=9217: use 576 to 9216"},
		{opts(OptMTU, "x"), "driver option com.docker.network.driver.mtu=x: use 576 to 9216"},
		{opts(OptVXLANID, "1"), ""},
		{opts(OptVXLANID, "16777215"), ""},
		{opts(OptVXLANID, "0"), "driver option com.docker.network.driver.overlay.vxlanid_list=0 is not a VXLAN id: use 4097 to 16777215"},
		{opts(OptVXLANID, "16777216"), "driver option com.docker.network.driver.overlay.vxlanid_list=16777216 is not a VXLAN id: use 4097 to 16777215"},
		{opts(OptVXLANID, "5000,5001"), "driver option com.docker.network.driver.overlay.vxlanid_list=5000,5001: a network has one VXLAN id, name one"},
		{opts(OptVXLANID, "4096"), "VXLAN id 4096 is reserved: 4000 to 4096 are the routing mesh's, use 4097 to 16777215"},
		{func(n *skepv1.NetworkSpec) { n.Ipv6 = true; opts(OptMTU, "1279")(n) }, "driver option com.docker.network.driver.mtu=1279: a network with IPv6 needs 1280 or more"},
		{func(n *skepv1.NetworkSpec) { n.Ipv6 = true; opts(OptEncrypted, "")(n) }, ""},
		{func(n *skepv1.NetworkSpec) { n.Ipv6 = true; opts(OptEncrypted, "false")(n) }, ""},

		{entries("10.9.0.0/24", "", ""), ""},
		{entries("10.9.0.0/24", "10.9.0.254", "10.9.0.128/25"), ""},
		{entries("10.9.0.0/29", "", ""), ""},
		{entries("10.0.0.0/8", "", ""), ""},
		{entries("", "10.9.0.1", ""), "every ip-range or gateway must have a corresponding subnet"},
		{entries("10.9.0.0", "", ""), `invalid subnet "10.9.0.0": use a CIDR such as 10.0.9.0/24`},
		{entries("::ffff:10.0.0.0/104", "", ""), `invalid subnet "::ffff:10.0.0.0/104": use a CIDR such as 10.0.9.0/24`},
		{entries("10.9.0.1/24", "", ""), `invalid subnet "10.9.0.1/24": the address has host bits, use 10.9.0.0/24`},
		{entries("10.9.0.0/30", "", ""), "subnet 10.9.0.0/30 is too small: use a /29 or larger"},
		{entries("10.0.0.0/7", "", ""), `subnet 10.0.0.0/7 is too large: use a /8 or smaller`},
		{entries("127.1.0.0/16", "", ""), "subnet 127.1.0.0/16 overlaps 127.0.0.0/8, which no network may use: use private addresses, such as 10.0.9.0/24"},
		{entries("239.0.0.0/24", "", ""), "subnet 239.0.0.0/24 overlaps 224.0.0.0/3, which no network may use: use private addresses, such as 10.0.9.0/24"},
		{entries("100.64.0.0/24", "", ""), "subnet 100.64.0.0/24 overlaps 100.64.0.0/10, the pool of the nodes' own subnets: use other addresses"},
		{entries("10.9.0.0/24", "10.9.1.1", ""), "gateway 10.9.1.1 is outside subnet 10.9.0.0/24: use an address in it, such as 10.9.0.1"},
		{entries("10.9.0.0/24", "fd00::1", ""), "gateway fd00::1 is outside subnet 10.9.0.0/24: use an address in it, such as 10.9.0.1"},
		{entries("10.9.0.0/24", "x", ""), `invalid gateway "x": use an address in subnet 10.9.0.0/24`},
		{entries("10.9.0.0/24", "10.9.0.0", ""), "subnet 10.9.0.0/24: gateway 10.9.0.0 is not a host address of network 10.9.0.0/24"},
		{entries("10.9.0.0/24", "10.9.0.255", ""), "subnet 10.9.0.0/24: gateway 10.9.0.255 is not a host address of network 10.9.0.0/24"},
		{entries("10.9.0.0/24", "", "x"), `invalid ip-range "x": use a part of subnet 10.9.0.0/24`},
		{entries("10.9.0.0/24", "", "10.9.0.65/26"), `invalid ip-range "10.9.0.65/26": the address has host bits, use 10.9.0.64/26`},
		{entries("10.9.0.0/24", "", "10.9.1.0/25"), "ip-range 10.9.1.0/25 is outside subnet 10.9.0.0/24: use a part of it"},
		{entries("10.9.0.0/24", "", "10.8.0.0/15"), "ip-range 10.8.0.0/15 is outside subnet 10.9.0.0/24: use a part of it"},
		{entries("10.9.0.0/24", "", "10.9.0.0/30"), "ip-range 10.9.0.0/30 is too small: use a /29 or larger"},
		{entries("10.9.0.0/24", "", "", "10.10.0.0/24", "", ""), "network net has 2 IPv4 subnets: give one, large enough for all"},

		{entries6("fd00:1::/64", "", ""), ""},
		{entries6("10.9.0.0/24", "", "", "2001:db8::/48", "2001:db8::1", ""), ""},
		{entries("fd00:1::/64", "", ""), "subnet fd00:1::/64 is IPv6, and network net has none: ask for ipv6 as well"},
		{entries6("fd00:1::/65", "", ""), "subnet fd00:1::/65 is too small: use a /64 or larger"},
		{entries6("fe80::/64", "", ""), "subnet fe80::/64 is not in 2000::/3 or fc00::/7, which networks may use"},
		{entries6("::/0", "", ""), "subnet ::/0 is not in 2000::/3 or fc00::/7, which networks may use"},
		{entries6("fd94:4a0:dd4d::/64", "", ""), "subnet fd94:4a0:dd4d::/64 overlaps fd94:4a0:dd4d::/96, the nodes' own IPv6 addresses: use other addresses"},
		{entries6("fd00:1::1/64", "", ""), `invalid subnet "fd00:1::1/64": the address has host bits, use fd00:1::/64`},
		{entries6("fd00:1::/64", "fd00:2::1", ""), "gateway fd00:2::1 is outside subnet fd00:1::/64: use an address in it, such as fd00:1::1"},
		{entries6("fd00:1::/64", "fd00:1::a09:1", ""), "gateway fd00:1::a09:1 could be a task's address, which is the subnet's with an IPv4 address at its end: use fd00:1::1"},
		{entries6("fd00:1::/64", "", "fd00:1::/96"), "ip-range fd00:1::/96: IPv6 addresses follow the IPv4 ones, give a range for IPv4 alone"},
		{entries6("fd00:1::/64", "", "", "fd00:2::/64", "", ""), "network net has 2 IPv6 subnets: give one"},
	} {
		n := &skepv1.NetworkSpec{Name: "net"}
		x.edit(n)
		for range 2 { // with and without the defaults
			err := ValidateNetwork(n, c)
			switch {
			case x.want == "" && err != nil, x.want != "" && (err == nil || err.Error() != x.want):
				t.Errorf("%v: %v, want %q", n, err, x.want)
			case err != nil && !fault.Is(err, fault.CodeInvalid):
				t.Errorf("%v: code %s", n, fault.Of(err))
			}
			NetworkDefaults(n)
		}
		again := proto.CloneOf(n)
		NetworkDefaults(again)
		if !proto.Equal(n, again) || n.Driver == "" {
			t.Errorf("defaults are not stable: %v, %v", n, again)
		}
	}
	if err := ValidateNetwork(nil, c); err == nil {
		t.Error("no spec is accepted")
	}
	if err := ValidateNetwork(&skepv1.NetworkSpec{Name: "net", Ipam: []*skepv1.IPAMConfig{{Subnet: "100.64.0.0/24"}}}, nil); err != nil {
		t.Errorf("without a cluster: %v", err)
	}
}

// Whatever passes validation can be divided.
func FuzzNetworkLayout(f *testing.F) {
	f.Add("10.0.0.0/24", "10.0.0.1", "10.0.0.128/25")
	f.Add("192.168.0.0/29", "", "")
	f.Add("fd00::/64", "fd00::1", "")
	f.Fuzz(func(t *testing.T, subnet, gateway, part string) {
		n := &skepv1.NetworkSpec{Name: "n", Ipv6: true, Ipam: []*skepv1.IPAMConfig{{Subnet: subnet, Gateway: gateway, IpRange: part}}}
		if ValidateNetwork(n, nil) != nil {
			return
		}
		v4, v6 := NetworkIPAM(n.Ipam)
		if (v4 == nil) == (v6 == nil) {
			t.Fatalf("%q is of neither family or of both", subnet)
		}
		if v4 == nil {
			return
		}
		l, err := NetworkLayout(&skepv1.Network{Spec: n, Ipam: n.Ipam})
		if err != nil || l.BlockCount() == 0 || l.Subnet != netip.MustParsePrefix(subnet) {
			t.Fatalf("%q %q %q: %v %v", subnet, gateway, part, l, err)
		}
		for range l.VIPs(0) {
			return
		}
		t.Fatalf("%q %q %q leaves no virtual address", subnet, gateway, part)
	})
}

func TestEncrypted(t *testing.T) {
	for v, want := range map[string]bool{"": true, "true": true, "1": true, "false": false, "0": false, "x": false} {
		n := &skepv1.NetworkSpec{Name: "n", DriverOpts: map[string]string{OptEncrypted: v}}
		if Encrypted(n) != want {
			t.Errorf("encrypted=%s: %v", v, !want)
		}
		NetworkDefaults(n)
		if _, ok := n.DriverOpts[OptEncrypted]; v != "x" && ok != want {
			t.Errorf("encrypted=%s is stored as %v", v, n.DriverOpts)
		}
	}
	if Encrypted(&skepv1.NetworkSpec{}) {
		t.Error("encrypted by itself")
	}
}

func TestServiceNetworks(t *testing.T) {
	attach := func(targets ...string) *skepv1.ServiceSpec {
		s := good()
		for _, n := range targets {
			s.Task.Networks = append(s.Task.Networks, &skepv1.NetworkAttachment{Target: n})
		}
		return s
	}
	with := func(s *skepv1.ServiceSpec, mode skepv1.PublishMode) *skepv1.ServiceSpec {
		s.Endpoint = &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishMode: mode}}}
		return s
	}
	named := func(alias string) *skepv1.ServiceSpec {
		s := attach("a")
		s.Task.Networks[0].Aliases = []string{alias}
		return s
	}
	const ingress, onHost = skepv1.PublishMode_PUBLISH_MODE_INGRESS, skepv1.PublishMode_PUBLISH_MODE_HOST
	for _, x := range []struct {
		s    *skepv1.ServiceSpec
		want string
	}{
		{attach("a", "b", "bridge"), ""},
		{attach("host"), ""},
		{attach("none"), ""},
		{with(attach("host"), onHost), ""},
		{with(attach("a"), ingress), ""},
		{attach(""), "network attachment without a network: use a name or id"},
		{attach("a", "INGRESS"), "Service cannot be explicitly attached to the ingress network"},
		{attach("host", "a"), "network host cannot be combined with other networks: leave out host or the others"},
		{attach("a", "NONE"), "network none cannot be combined with other networks: leave out none or the others"},
		{with(attach("host"), ingress), "port 80 cannot be published in ingress mode: the routing mesh does not reach tasks on network host, use mode=host or another network"},
		{with(attach("none"), onHost), "port 80 cannot be published: tasks on network none have no interface, use another network"},
		{named("db-1.internal"), ""},
		{named("a b"), `invalid alias "a b" on network a: use letters, digits, '-', '_' and '.', as in a host name`},
		{named(""), `invalid alias "" on network a: use letters, digits, '-', '_' and '.', as in a host name`},
	} {
		if err := Validate(x.s); x.want == "" && err != nil || x.want != "" && (err == nil || err.Error() != x.want) {
			t.Errorf("%v: %v, want %q", x.s.Task.Networks, err, x.want)
		}
	}
	a, b := attach("front"), attach("front", "back")
	b.Task.Networks[0].Aliases = []string{"www", "web"}
	if got := Diff(a, b); got != "networks +front:www,web +back -front" {
		t.Errorf("diff: %s", got)
	}
}

// TestEncryptedPort: whatever VXLAN id a network has, its port is one of those that no service may publish.
func TestEncryptedPort(t *testing.T) {
	for vni, want := range map[uint32]uint16{FirstVNI: 51820, FirstVNI + 1: 51821, FirstVNI + 1999: 53819, FirstVNI + 2000: 51820} {
		if p := EncryptedPort(vni); p != want {
			t.Errorf("VXLAN id %d: port %d, want %d", vni, p, want)
		}
	}
	for _, vni := range []uint32{1, 3999, FirstVNI - 1, MaxVNI} {
		if p := EncryptedPort(vni); p < FirstEncryptedPort || p > LastEncryptedPort {
			t.Errorf("VXLAN id %d: port %d is outside", vni, p)
		}
	}
}
