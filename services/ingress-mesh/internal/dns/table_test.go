package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// taskID makes an id as tasks have them.
func taskID(i int) string { return fmt.Sprintf("%025d", i) }

func front() Network {
	return Network{
		ID: "n1", Name: "Front_net", Subnet: netip.MustParsePrefix("10.1.0.0/16"), Subnet6: netip.MustParsePrefix("fd01::/64"),
		Services: []Service{
			{ID: "s1", Name: "My_Web", Aliases: []string{"web", "My_web", "shared"}, VIP: addr("10.1.200.1"), VIP6: addr("fd01::200:1"), Tasks: []Task{
				{ID: taskID(1), Slot: 1, Node: "node1", Addr: addr("10.1.0.1"), Addr6: addr("fd01::1"), Serving: true},
				{ID: taskID(2), Slot: 2, Node: "node2", Addr: addr("10.1.0.2")},
				{ID: taskID(3), Slot: 3, Node: "node2", Addr: addr("10.1.0.3"), Serving: true},
			}},
			{ID: "s2", Name: "db", Aliases: []string{"shared"}, DNSRR: true, VIP: addr("10.1.200.2"), Tasks: []Task{
				{ID: taskID(4), Node: "node1", Addr: addr("10.1.0.4"), Serving: true},
				{ID: taskID(5), Node: "node2", Addr: addr("10.1.0.5"), Serving: true},
			}},
			{ID: "s3", Name: "idle", VIP: addr("10.1.200.3")},
			{ID: "s5", Name: "zoo", Aliases: []string{"keeper"}, VIP: addr("10.1.200.5"), Tasks: []Task{
				{ID: taskID(6), Slot: 1, Node: "node1", Addr: addr("10.1.0.6"), Addr6: addr("fd01::6"), Starting: true},
				{ID: taskID(7), Slot: 2, Node: "node2", Addr: addr("10.1.0.7"), Serving: true},
				{ID: taskID(8), Slot: 3, Node: "node2", Addr: addr("10.1.0.8")}, // it drains
			}},
			{ID: "s6", Name: "ring", DNSRR: true, Tasks: []Task{
				{ID: taskID(9), Slot: 1, Node: "node1", Addr: addr("10.1.0.9"), Starting: true},
				{ID: taskID(10), Slot: 2, Node: "node1", Addr: addr("10.1.0.10"), Serving: true},
			}},
			{ID: "s4", Name: "none", DNSRR: true},
		},
	}
}

func back() Network {
	return Network{
		ID: "n2", Name: "dev", Subnet: netip.MustParsePrefix("10.2.0.0/16"),
		Services: []Service{{ID: "s2", Name: "db", VIP: addr("10.2.200.2"), Tasks: []Task{{ID: taskID(4), Node: "node1", Addr: addr("10.2.0.4"), Serving: true}}}},
	}
}

func TestNames(t *testing.T) {
	table := NewTable([]Network{front(), back()})
	for _, c := range []struct{ name, want string }{
		{"my_web", "10.1.200.1 fd01::200:1"},
		{"web", "10.1.200.1 fd01::200:1"},
		{"web.front_net", "10.1.200.1 fd01::200:1"},
		{"web.dev", "-"},
		{"tasks.my_web", "10.1.0.1 10.1.0.3 fd01::1"},
		{"tasks.web", "10.1.0.1 10.1.0.3 fd01::1"},
		{"tasks.web.front_net", "10.1.0.1 10.1.0.3 fd01::1"},
		{"my_web.1." + taskID(1), "10.1.0.1 fd01::1"},
		{"my_web.2." + taskID(2), "10.1.0.2"}, // does not serve
		{"my_web.2." + taskID(2) + ".front_net", "10.1.0.2"},
		{"my_web.1." + taskID(2), "-"},
		{"web.2." + taskID(2), "-"},
		{taskID(2), "-"},
		{"db.node2." + taskID(5), "10.1.0.5"},
		{"db", "10.1.0.4 10.1.0.5 10.2.200.2"}, // dnsrr on one network, a virtual address on the other
		{"db.front_net", "10.1.0.4 10.1.0.5"},
		{"db.dev", "10.2.200.2"},
		{"tasks.db", "10.1.0.4 10.1.0.5 10.2.0.4"},
		{"tasks.db.dev", "10.2.0.4"},
		{"db.node1." + taskID(4), "10.1.0.4 10.2.0.4"},
		{"shared", "10.1.0.4 10.1.0.5 10.1.200.1 fd01::200:1"},
		{"idle", "10.1.200.3"},
		{"tasks.idle", ""},
		{"zoo", "10.1.200.5"},
		{"tasks.zoo", "10.1.0.6 10.1.0.7 fd01::6"}, // it lists what starts
		{"tasks.keeper.front_net", "10.1.0.6 10.1.0.7 fd01::6"},
		{"ring", "10.1.0.10"}, // for clients, so it is what serves alone
		{"tasks.ring", "10.1.0.9 10.1.0.10"},
		{"none", ""},
		{"tasks.none", ""},
		{"nobody", "-"}, {"tasks.nobody", "-"}, {"tasks", "-"}, {"tasks.", "-"}, {"", "-"}, {".", "-"}, {"front_net", "-"}, {".front_net", "-"}, {"web.", "-"},
	} {
		list, ok := table.A(c.name)
		if got := text(list, ok); got != c.want {
			t.Errorf("%s: %q, not %q", c.name, got, c.want)
		}
	}
	if list, ok := NewTable(nil).A("my_web"); ok {
		t.Error("no network knows", list)
	}
}

func text(list []netip.Addr, ok bool) string {
	if !ok {
		return "-"
	}
	list = slices.Clone(list)
	slices.SortFunc(list, netip.Addr.Compare)
	return strings.Trim(fmt.Sprint(list), "[]")
}

func TestAddresses(t *testing.T) {
	table := NewTable([]Network{front(), back()})
	for _, c := range []struct {
		addr, name string
		owned      bool
	}{
		{"10.1.200.1", "My_Web.Front_net", true},
		{"fd01::200:1", "My_Web.Front_net", true},
		{"::ffff:10.1.200.1", "My_Web.Front_net", true},
		{"10.1.0.2", "My_Web.2." + taskID(2) + ".Front_net", true},
		{"10.1.0.5", "db.node2." + taskID(5) + ".Front_net", true},
		{"10.2.0.4", "db.node1." + taskID(4) + ".dev", true},
		{"10.1.77.1", "", true},
		{"fd01::77", "", true},
		{"10.3.0.1", "", false},
	} {
		name, ok := table.PTR(addr(c.addr))
		if name != c.name || ok != (c.name != "") || table.Owns(addr(c.addr)) != c.owned {
			t.Errorf("%s: %q %v", c.addr, name, table.Owns(addr(c.addr)))
		}
	}
}

func TestInternalNames(t *testing.T) {
	table := NewTable([]Network{front(), back()})
	for name, want := range map[string]bool{
		"nobody": true, "com": true, "tasks.nobody": true, "tasks.org": true, "gone.7." + taskID(9): true,
		"nobody.front_net": true, "a.b.front_net": true, "tasks.nobody.dev": true, "gone.7." + taskID(9) + ".dev": true,
		"": false, "example.com": false, "tasks.google.com": false, "web.dev": false, "www.web.dev": false, "a.tasks.google.com": false,
		"gone.7." + taskID(9) + ".com": false, "front_net.com": false, "xfront_net.com": false,
	} {
		if internal(name, table) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
	for label, want := range map[string]bool{"com": true, "xn--p1ai": true, "net1": false, "a_b": false, "a-b": false, "": false} {
		if publicTLD(label) != want {
			t.Errorf("%q", label)
		}
	}
}

func TestReverse(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.2.1.in-addr.arpa":                  "1.2.3.4 true true",
		"2.1.in-addr.arpa":                      "1.2.0.0 false true",
		"0.in-addr.arpa":                        "0.0.0.0 false true",
		"5.4.3.2.1.in-addr.arpa":                "5",
		"256.3.2.1.in-addr.arpa":                "5",
		"04.3.2.1.in-addr.arpa":                 "5",
		"0/25.3.2.1.in-addr.arpa":               "5",
		"4..2.1.in-addr.arpa":                   "5",
		"in-addr.arpa":                          "5",
		".in-addr.arpa":                         "5",
		"x.com":                                 "5",
		"1.0.d.f.ip6.arpa":                      "fd01:: false true",
		"g.ip6.arpa":                            "5",
		"10.ip6.arpa":                           "5",
		strings.Repeat("0.", 32) + "0.ip6.arpa": "5",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa": "fd01::1 true true",
	} {
		a, complete, ok := reverse(name)
		if got := fmt.Sprint(a, complete, ok); want == "5" && ok || want != "5" && got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func networks(t *rapid.T) []Network {
	var out []Network
	next := 0
	for i := range rapid.IntRange(1, 3).Draw(t, "networks") {
		n := Network{ID: fmt.Sprint(i), Name: fmt.Sprintf("Net%d", i), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16)}
		at := func() netip.Addr { next++; return netip.AddrFrom4([4]byte{10, byte(i), byte(next >> 8), byte(next)}) }
		for j := range rapid.IntRange(0, 4).Draw(t, "services") {
			s := Service{Name: fmt.Sprintf("Svc%d", j), DNSRR: rapid.Bool().Draw(t, "dnsrr"), VIP: at()}
			s.Aliases = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "C", "svc0"}), 0, 3).Draw(t, "aliases")
			for range rapid.IntRange(0, 4).Draw(t, "tasks") {
				a := at()
				s.Tasks = append(s.Tasks, Task{ID: taskID(next), Slot: uint64(rapid.IntRange(0, 3).Draw(t, "slot")), Node: "node", Addr: a, Serving: rapid.Bool().Draw(t, "serving"), Starting: rapid.Bool().Draw(t, "starting")})
			}
			n.Services = append(n.Services, s)
		}
		out = append(out, n)
	}
	return out
}

func TestTableProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := networks(t)
		on := all[:rapid.IntRange(0, len(all)).Draw(t, "on")]
		table := NewTable(on)
		mine := map[netip.Addr]bool{}
		names := map[string]bool{}
		for _, n := range all {
			for _, s := range n.Services {
				for _, name := range append([]string{s.Name}, s.Aliases...) {
					names[strings.ToLower(name)] = true
				}
			}
		}
		for _, n := range on {
			for _, s := range n.Services {
				mine[s.VIP] = true
				for _, alias := range append([]string{s.Name}, s.Aliases...) {
					alias = strings.ToLower(alias)
					for _, suffix := range []string{"", "." + strings.ToLower(n.Name)} {
						list, ok := table.A(alias + suffix)
						tasks, ok2 := table.A("tasks." + alias + suffix)
						if !ok || !ok2 {
							t.Fatal(alias + suffix)
						}
						if !s.DNSRR && !slices.Contains(list, s.VIP) {
							t.Fatal("no virtual address")
						}
						for _, k := range s.Tasks {
							mine[k.Addr] = true
							if (k.Serving || k.Starting) != slices.Contains(tasks, k.Addr) || s.DNSRR && k.Serving != slices.Contains(list, k.Addr) {
								t.Fatal("task", k, "in", tasks, list)
							}
						}
						for _, l := range [][]netip.Addr{list, tasks} {
							seen := map[netip.Addr]bool{}
							for _, a := range l {
								if seen[a] {
									t.Fatal("twice", a)
								}
								seen[a] = true
							}
						}
					}
				}
				for _, k := range s.Tasks {
					name, ok := table.PTR(k.Addr)
					list, ok2 := table.A(strings.ToLower(name))
					if !ok || !ok2 || !slices.Equal(list, []netip.Addr{k.Addr}) {
						t.Fatal("there and back", k.Addr, name, list)
					}
				}
			}
		}
		// Nothing of a network the task is not on resolves.
		for name := range names {
			for _, q := range []string{name, "tasks." + name} {
				list, _ := table.A(q)
				for _, a := range list {
					if !mine[a] {
						t.Fatal(q, "leads to", a)
					}
				}
			}
		}
		for _, n := range all[len(on):] {
			for _, s := range n.Services {
				if _, ok := table.A(strings.ToLower(s.Name + "." + n.Name)); ok || table.Owns(s.VIP) {
					t.Fatal("knows", s.Name, n.Name)
				}
				for _, k := range s.Tasks {
					if _, ok := table.PTR(k.Addr); ok {
						t.Fatal("knows", k.Addr)
					}
				}
			}
		}
	})
}
