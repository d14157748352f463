package ipam

import (
	"net/netip"
	"testing"
)

func TestLayout(t *testing.T) {
	for _, tc := range []struct {
		subnet, pool string
		blocks, vips int
	}{
		{"10.0.0.0/20", "", 192, 1023},
		{"10.0.0.0/24", "", 48, 63},
		{"10.0.0.0/16", "", 768, 16383},
		{"10.0.0.0/29", "", 6, 1},
		{"10.0.0.0/16", "10.0.5.0/24", 48, 64},
	} {
		var pool netip.Prefix
		if tc.pool != "" {
			pool = netip.MustParsePrefix(tc.pool)
		}
		l, err := NewLayout(netip.MustParsePrefix(tc.subnet), pool, netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[netip.Addr]bool{}
		blocks := 0
		for b := range l.Blocks() {
			blocks++
			for a := range l.Hosts(b) {
				if seen[a] {
					t.Fatalf("%s: %s is in two blocks", tc.subnet, a)
				}
				if seen[a] = true; !l.IsTask(a) {
					t.Errorf("%s: %s of a block is not a task's", tc.subnet, a)
				}
			}
		}
		for _, a := range []netip.Addr{{}, l.Gateway, l.Subnet.Addr(), lastOf(l.Subnet), l.Subnet.Addr().Prev(), netip.MustParseAddr("fd00::1")} {
			if l.IsTask(a) {
				t.Errorf("%s: %s is a task's", tc.subnet, a)
			}
		}
		for v := range l.VIPs(7) {
			if seen[v] || l.IsTask(v) {
				t.Fatalf("%s: %s is a task's and a service's, or twice a service's", tc.subnet, v)
			}
			seen[v] = true
		}
		if blocks != tc.blocks || l.BlockCount() != tc.blocks || l.VIPCount() != tc.vips {
			t.Errorf("%s in %s: %d blocks (%d), %d VIPs; want %d and %d", tc.pool, tc.subnet, blocks, l.BlockCount(), l.VIPCount(), tc.blocks, tc.vips)
		}
		if seen[l.Gateway] || seen[l.Subnet.Addr()] || seen[lastOf(l.Subnet)] {
			t.Errorf("%s: gives away an address that is nobody's", tc.subnet)
		}
	}
}

func TestUnicast(t *testing.T) {
	for text, want := range map[string]bool{
		"10.9.0.7": true, "127.0.0.1": true, "fd00::7": true, "fe80::1%eth0": true, "::ffff:10.9.0.7": true,
		"0.0.0.0": false, "::": false, "255.255.255.255": false, "::ffff:255.255.255.255": false, "239.1.1.1": false, "::ffff:224.0.0.1": false, "ff02::1": false,
	} {
		if Unicast(netip.MustParseAddr(text)) != want {
			t.Errorf("%s: %v", text, !want)
		}
	}
	if Unicast(netip.Addr{}) {
		t.Error("no address at all")
	}
}

func TestLayoutRefuses(t *testing.T) {
	p := netip.MustParsePrefix
	for _, tc := range []struct {
		subnet, pool netip.Prefix
		gw           string
	}{
		{p("10.0.0.0/30"), netip.Prefix{}, ""},
		{p("10.0.0.1/24"), netip.Prefix{}, ""},
		{p("fd00::/64"), netip.Prefix{}, ""},
		{p("10.0.0.0/24"), p("10.0.1.0/26"), ""},
		{p("10.0.0.0/24"), netip.Prefix{}, "10.0.1.1"},
		{p("10.0.0.0/24"), netip.Prefix{}, "10.0.0.255"},
	} {
		var gw netip.Addr
		if tc.gw != "" {
			gw = netip.MustParseAddr(tc.gw)
		}
		if l, err := NewLayout(tc.subnet, tc.pool, gw); err == nil {
			t.Errorf("%s, range %s, gateway %s gave %+v", tc.subnet, tc.pool, tc.gw, l)
		}
	}
}

func TestElsewhere(t *testing.T) {
	for _, c := range []struct {
		a, own string
		want   bool
	}{
		{"10.0.0.2", "10.0.0.1", true}, {"10.0.0.1", "10.0.0.1", false}, {"127.0.0.1", "10.0.0.1", false}, {"127.0.0.2", "127.0.0.1", true},
		{"224.0.0.1", "10.0.0.1", false}, {"0.0.0.0", "10.0.0.1", false}, {"::1", "fd00::1", false}, {"fd00::2", "fd00::1", true},
	} {
		if got := Elsewhere(netip.MustParseAddr(c.a), netip.MustParseAddr(c.own)); got != c.want {
			t.Errorf("%s for %s: %v", c.a, c.own, got)
		}
	}
}
