package ipam

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestNodeAddr6(t *testing.T) {
	for in, want := range map[string]string{
		"100.64.2.10":        "fd94:4a0:dd4d::6440:20a",
		"::ffff:100.64.2.10": "fd94:4a0:dd4d::6440:20a",
		"fd00::1":            "invalid IP",
	} {
		if got := NodeAddr6(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if a := NodeAddr6(netip.Addr{}); a.IsValid() {
		t.Error("no address has", a)
	}
	for in, want := range map[string]string{"100.64.2.0/23": "fd94:4a0:dd4d::6440:200/119", "100.64.3.7/23": "fd94:4a0:dd4d::6440:200/119", "fd00::/64": "invalid Prefix"} {
		if got := NodeSubnet6(netip.MustParsePrefix(in)); got.String() != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if p := NodeSubnet6(netip.Prefix{}); p.IsValid() {
		t.Error("no subnet has", p)
	}
}

// An address is in a subnet exactly when its IPv6 address is in the subnet's, so two nodes' never meet.
func TestNodeSubnet6FollowsIPv4(t *testing.T) {
	addr := rapid.Custom(func(t *rapid.T) netip.Addr { return fromUint(rapid.Uint32().Draw(t, "address")) })
	rapid.Check(t, func(t *rapid.T) {
		p := netip.PrefixFrom(addr.Draw(t, "subnet"), rapid.IntRange(0, 32).Draw(t, "bits"))
		a := addr.Draw(t, "task")
		if p.Masked().Contains(a) != NodeSubnet6(p).Contains(NodeAddr6(a)) {
			t.Fatalf("%s in %s: %v, %s in %s: not", a, p, p.Contains(a), NodeAddr6(a), NodeSubnet6(p))
		}
		if !Nodes6.Contains(NodeAddr6(a)) {
			t.Fatalf("%s is outside %s", NodeAddr6(a), Nodes6)
		}
	})
}

func TestEmbed(t *testing.T) {
	six := netip.MustParsePrefix("fd00:1::/64")
	for _, c := range []struct {
		subnet netip.Prefix
		a      string
		want   string
	}{
		{six, "10.0.9.200", "fd00:1::a00:9c8"},
		{netip.MustParsePrefix("fd00:1::7/64"), "10.0.9.200", "fd00:1::a00:9c8"},
		{netip.MustParsePrefix("fd00:1:2:3:4:5::/96"), "255.255.255.255", "fd00:1:2:3:4:5:ffff:ffff"},
		{netip.Prefix{}, "10.0.9.200", "invalid IP"},
	} {
		if got := Embed(c.subnet, netip.MustParseAddr(c.a)).String(); got != c.want {
			t.Errorf("%s in %s is %s, want %s", c.a, c.subnet, got, c.want)
		}
	}
}
