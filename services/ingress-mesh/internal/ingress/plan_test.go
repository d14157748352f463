package ingress

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/nftables"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func testConfig() Config {
	return Config{
		Log: zap.NewNop(), Bridge: "skep0", Number: 1, Subnet: netip.MustParsePrefix("100.64.2.0/23"), Gateway: netip.MustParseAddr("100.64.2.1"),
		Underlay: netip.MustParseAddr("10.90.0.1"), Port: 4789, UnderlayMTU: func() int { return 1500 },
	}
}

func drawSlots(t *rapid.T, label string) (out []slot) {
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(1, 30), 0, 12, rapid.ID[int]).Draw(t, label) {
		out = append(out, slot{target{netip.AddrFrom4([4]byte{100, 64, 0, byte(i)}), 80}, "t"})
	}
	return out
}

// Slots are dense, hold what is wanted and nothing else, and what can stay stays.
func TestAssign(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := drawSlots(t, "have"), drawSlots(t, "want")
		for i := range have {
			if rapid.Bool().Draw(t, "hole") {
				have[i] = slot{}
			}
		}
		got := assign(have, want)
		in, out := map[target]int{}, map[target]int{}
		for _, w := range want {
			in[w.target]++
		}
		for i, g := range got {
			out[g.target]++
			if i < len(have) && in[have[i].target] == 1 && g.target != have[i].target {
				t.Fatalf("slot %d had %v, which is still wanted, and has %v", i, have[i], g)
			}
		}
		if !reflect.DeepEqual(in, out) {
			t.Fatalf("wanted %v, got %v", want, got)
		}
		if again := assign(got, want); !reflect.DeepEqual(again, got) {
			t.Fatalf("%v is not stable: %v", got, again)
		}
	})
}

// What is planned, written and read back needs no change.
func TestPlanIsConverged(t *testing.T) {
	cfg := testConfig()
	rapid.Check(t, func(t *rapid.T) {
		var st State
		for i := range rapid.IntRange(0, 8).Draw(t, "services") {
			s := Service{Protocol: []string{"tcp", "udp", "sctp"}[i%3], Port: uint16(8000 + i), ID: string(rune('a' + i))}
			for _, b := range drawSlots(t, "backends") {
				s.Backends = append(s.Backends, backend(b.addr, b.port, b.task))
			}
			st.Services = append(st.Services, s)
		}
		for i := range rapid.IntRange(0, 4).Draw(t, "peers") {
			st.Peers = append(st.Peers, Peer{"p", uint16(i*4000 + 2), netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 65, byte(2 * i), 0}), 23), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})})
		}
		ipv6 := rapid.Bool().Draw(t, "IPv6")
		p := planState(&cfg, st, backends{}, ipv6)
		if len(p.problems) > 0 || len(p.peers) != len(st.Peers) || len(p.v4.ports)+len(p.v4.refused) != len(st.Services) || len(p.v6.ports)+len(p.v6.refused) != len(st.Services) && ipv6 {
			t.Fatalf("%+v", p)
		}
		if !ipv6 && len(p.v6.ports)+len(p.v6.refused) > 0 {
			t.Fatalf("%+v", p)
		}
		tables := wantedTables(&cfg, p)
		s := snapshot{host: tables[0].made(), fabric: tables[1].made()}
		again := planState(&cfg, st, s.backends(), ipv6)
		if c := nftChanges(wantedTables(&cfg, again), s, false); len(c) > 0 {
			t.Fatalf("%d changes, the first: %s", len(c), c[0].what)
		}
		if c := nftChanges(tables, snapshot{}, false); len(c) < 10 {
			t.Fatal("an empty kernel needs no change")
		}
	})
}

func TestPlanProblems(t *testing.T) {
	cfg := testConfig()
	a, none := netip.MustParseAddr, netip.Addr{}
	p := planState(&cfg, State{
		Peers: []Peer{
			{"self", 1, netip.MustParsePrefix("100.64.4.0/23"), a("10.90.0.2")},
			{"zero", 0, netip.MustParsePrefix("100.64.4.0/23"), a("10.90.0.2")},
			{"overlap", 2, netip.MustParsePrefix("100.64.0.0/16"), a("10.90.0.2")},
			{"v6", 3, netip.MustParsePrefix("100.64.4.0/23"), a("fd00::2")},
			{"good", 4, netip.MustParsePrefix("100.64.4.0/23"), a("::ffff:10.90.0.2")},
			{"twice", 4, netip.MustParsePrefix("100.64.6.0/23"), a("10.90.0.3")},
			{"nobody", 5, netip.MustParsePrefix("100.64.6.0/23"), a("0.0.0.0")},
			{"many", 6, netip.MustParsePrefix("100.64.6.0/23"), a("239.1.1.1")},
			{"all", 7, netip.MustParsePrefix("100.64.6.0/23"), a("255.255.255.255")},
			{"here", 8, netip.MustParsePrefix("100.64.6.0/23"), a("10.90.0.1")},
			{"loopback", 9, netip.MustParsePrefix("100.64.6.0/23"), a("127.0.0.1")},
		},
		Services: []Service{
			{"icmp", 80, "x", nil},
			{"tcp", 0, "x", nil},
			{"tcp", 80, "a", []Backend{{a("100.64.2.9"), a("fd00::9"), 80, "t1"}, {a("100.64.2.9"), a("fd00::9"), 80, "t1"}, {a("fd00::1"), a("10.0.0.1"), 80, "t2"}, {netip.Addr{}, netip.Addr{}, 80, "t3"}, {a("100.64.2.8"), netip.Addr{}, 0, "t4"}}},
			{"tcp", 80, "b", []Backend{{a("100.64.2.7"), a("fd00::7"), 80, "t5"}}},
		},
		HostPorts: []HostPort{{"tcp", 80, none, a("100.64.2.6"), none, 80, "t6"}, {"tcp", 81, none, a("100.64.2.6"), none, 80, "t6"}, {"", 82, none, a("100.64.2.6"), none, 80, "t6"}},
	}, backends{}, true)
	if len(p.problems) != 19 || len(p.peers) != 1 || p.peers[0].ID != "good" {
		t.Errorf("%d problems: %s\npeers %v", len(p.problems), strings.Join(p.problems, "\n"), p.peers)
	}
	want := map[portKey]published{
		{unix.IPPROTO_TCP, 80}: {"service a", []slot{{target{a("100.64.2.9"), 80}, "t1"}}},
		{unix.IPPROTO_TCP, 81}: {"host", []slot{{target{a("100.64.2.6"), 80}, "t6"}}},
	}
	if !reflect.DeepEqual(p.v4.ports, want) || len(p.v4.refused) != 0 {
		t.Errorf("%+v", p.v4)
	}
	want6 := portMap{
		map[portKey]published{{unix.IPPROTO_TCP, 80}: {"service a", []slot{{target{a("fd00::9"), 80}, "t1"}}}},
		map[portKey]string{{unix.IPPROTO_TCP, 81}: "host"}, // published here, and its task has no IPv6
	}
	if !reflect.DeepEqual(p.v6, want6) {
		t.Errorf("%+v", p.v6)
	}
}

func TestKeys(t *testing.T) {
	k := portKey{unix.IPPROTO_UDP, 0x1234}
	if got, ok := portKeyOf(k.raw()); !ok || got != k {
		t.Error(got, ok)
	}
	for _, a := range []string{"100.64.2.9", "fd00::9"} {
		x := target{netip.MustParseAddr(a), 0xabcd}
		if got, ok := targetOf(x.raw()); !ok || got != x {
			t.Error(got, ok)
		}
	}
	for _, raw := range []string{"", "x", "1234567"} {
		if _, ok := portKeyOf(raw); ok {
			t.Errorf("%q is a port", raw)
		}
	}
	if _, ok := targetOf("12345"); ok {
		t.Error("five bytes are a target")
	}
	if a := nextHop6(8192).String(); a != "fe80::53:4bff:fe45:2000" {
		t.Error(a)
	}
	if m := fabricMAC(8192).String(); m != "02:53:4b:45:20:00" {
		t.Error(m)
	}
	for _, b := range [][]byte{nil, {1}, {0, 0, 0, 0}, {200, 0, 1, 0, 0}, {8, 0, 1, 0, 0xff, 0xff, 0xff, 0xfb}} {
		if c := chainOf(b); c != "" {
			t.Errorf("%v: %q", b, c)
		}
	}
}

// Every layout's name depends on what cannot be changed in place.
func TestLayoutName(t *testing.T) {
	cfg := testConfig()
	sets, chains := setDefs(hostTable), hostChains(&cfg, false)
	name := layoutName(sets, chains)
	sets[0].Counter = false
	if layoutName(sets, chains) == name {
		t.Error("another set has the same name")
	}
	sets = setDefs(hostTable)
	chains[0].base.Priority = nftables.ChainPriorityFilter
	if layoutName(sets, chains) == name {
		t.Error("another hook has the same name")
	}
	cfg.Port = 4790
	if chains = hostChains(&cfg, false); layoutName(sets, chains) != name {
		t.Error("a rule changes the layout")
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"bridge":    func(c *Config) { c.Bridge = "" },
		"number":    func(c *Config) { c.Number = 0 },
		"dummy":     func(c *Config) { c.Number = 0xffff },
		"subnet":    func(c *Config) { c.Subnet = netip.MustParsePrefix("fd00::/64") },
		"gateway":   func(c *Config) { c.Gateway = netip.MustParseAddr("10.0.0.1") },
		"data path": func(c *Config) { c.Underlay = netip.Addr{} },
		"port":      func(c *Config) { c.Port = 0 },
		"MTU":       func(c *Config) { c.UnderlayMTU = nil },
	} {
		c := testConfig()
		change(&c)
		if p, err := New(c); err == nil {
			_ = p.Close()
			t.Error(name, "was taken")
		}
	}
}

func TestStaleFlows(t *testing.T) {
	b := func(i byte) slot { return slot{target{netip.AddrFrom4([4]byte{100, 64, 0, i}), 80}, "t"} }
	udp, tcp := portKey{unix.IPPROTO_UDP, 53}, portKey{unix.IPPROTO_TCP, 53}
	for _, c := range []struct {
		before, after slotMap
		left          int
		opened        bool
	}{
		{nil, nil, 0, false},
		{slotMap{udp: {b(1), b(2)}}, slotMap{udp: {b(2), b(3)}}, 1, false},
		{slotMap{udp: {b(1), b(2)}}, nil, 2, false},
		{slotMap{tcp: {b(1)}}, nil, 0, false},
		{nil, slotMap{udp: {b(1)}}, 0, true},
		{nil, slotMap{tcp: {b(1)}}, 0, false},
		{slotMap{udp: {b(1)}}, slotMap{udp: {b(1), b(2)}}, 0, false},
	} {
		s := staleFlows(c.before, c.after)
		if len(s.left[udp]) != c.left || s.opened[53] != c.opened || s.empty() != (c.left == 0 && !c.opened) {
			t.Errorf("%v → %v: %+v", c.before, c.after, s)
		}
	}
}
