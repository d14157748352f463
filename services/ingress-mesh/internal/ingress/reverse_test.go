package ingress

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// reroute takes a route back.
const reroute = "ip route del 10.90.0.1 dev up1; ip neigh flush dev eth0"

// commands are those that a finding says to run.
var commands = regexp.MustCompile("`([^`]+)`")

// TestReversePaths: a host's filter that drops what comes by the fabric is found and named, and what the finding says to
// do helps; one that does no harm is no finding.
func TestReversePaths(t *testing.T) {
	r := newRig(t)
	entry, far := r.nodes[0], r.nodes[1] // far has strict filters for all links but the mesh's
	r.apply(both(8080, "web", far.tasks[0].backend(80))...)
	far.do("ip link add up1 type veth peer name up2; ip link set up1 up; ip link set up2 up")
	reaches := func() (v4, v6 bool) {
		six := make(chan bool)
		go func() {
			_, _, err := r.clients[1].ask("tcp6", entry.at6(8080))
			six <- err == nil
		}()
		_, _, err := r.clients[0].ask("tcp4", entry.at(8080))
		return err == nil, <-six
	}
	findings := func() (out []string) {
		f, err := far.plane.ReversePaths(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range f {
			out = append(out, fmt.Sprint(map[bool]string{true: "error ", false: "warning "}[x.Error], x.Text))
		}
		return out
	}
	if f := findings(); len(f) > 0 {
		t.Fatalf("a host like any other: %q", f)
	}
	chain := func(family, hook, priority, policy string, rules ...string) string {
		out := fmt.Sprintf("nft add table %s strict; nft 'add chain %s strict c { type filter hook %s priority %s; policy %s; }'; nft add chain %s strict deep", family, family, hook, priority, policy, family)
		for _, rule := range rules {
			at := "c"
			if rest, ok := strings.CutPrefix(rule, "deep "); ok {
				at, rule = "deep", rest
			}
			out += fmt.Sprintf("; nft 'add rule %s strict %s %s'", family, at, rule)
		}
		return out
	}
	for name, x := range map[string]struct {
		do, undo string
		want     string // part of the only finding; none: it does no harm
		v4, v6   bool   // what gets through meanwhile
	}{
		"in a table for both":  {chain("inet", "prerouting", "0", "accept", "fib saddr . iif oif missing drop"), "", "error the strict reverse path filter in table inet strict chain c drops IPv4 and IPv6 packets", false, false},
		"for IPv6 alone":       {chain("inet", "prerouting", "-300", "accept", "meta nfproto ipv6 fib saddr . iif oif missing drop"), "", "error the strict reverse path filter in table inet strict chain c drops IPv6 packets", true, false},
		"in a table of IPv4":   {chain("ip", "prerouting", "-300", "accept", "fib saddr . iif oif 0 log prefix \"no\" drop"), "", "error the strict reverse path filter in table ip strict chain c drops IPv4 packets", false, true},
		"when it is forwarded": {chain("inet", "forward", "0", "accept", "fib saddr . iif oif missing reject"), "", "error the strict reverse path filter in table inet strict chain c drops", false, false},
		"with marks, which replies have": {chain("inet", "prerouting", "10", "accept", "iifname skin0 accept", "fib saddr . mark . iif oif missing drop"), "",
			"error the strict reverse path filter in table inet strict chain c drops IPv4 and IPv6", false, false},
		"one chain deeper": {chain("inet", "prerouting", "0", "accept", "iif != lo jump deep", "deep fib saddr . iif oif missing drop"), "",
			"error the strict reverse path filter in table inet strict chain deep drops", false, false},
		"all else is dropped": {chain("inet", "prerouting", "0", "drop", "iifname lo accept", "meta l4proto icmpv6 accept", "udp sport . udp dport { 67 . 68, 68 . 67 } accept", "fib saddr . mark . iif oif exists accept", "jump deep"), "",
			"error the strict reverse path filter in table inet strict chain c drops IPv4 and IPv6", false, false},
		"for some packets": {chain("inet", "prerouting", "0", "accept", "udp dport 4444 fib saddr . iif oif missing drop"), "",
			"warning the strict reverse path filter in table inet strict chain c drops", true, true},
		"of iptables": {"ip6tables -t raw -A PREROUTING -m rpfilter --invert -j DROP", "ip6tables -t raw -F",
			"error the strict reverse path filter in table ip6 raw chain PREROUTING drops IPv6 packets", true, false},
		"of iptables, with a chain of its own": {"iptables -t mangle -N rp; iptables -t mangle -A PREROUTING -j rp; iptables -t mangle -A rp -m rpfilter --validmark -j RETURN; iptables -t mangle -A rp -p udp --sport 67 -j RETURN; iptables -t mangle -A rp -j DROP", "iptables -t mangle -F; iptables -t mangle -X rp",
			"error the strict reverse path filter in table ip mangle chain rp drops IPv4 packets", false, true},
		"firewalld's": {strings.ReplaceAll(chain("inet", "prerouting", "10", "accept", "icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept", "meta nfproto ipv6 fib saddr . mark . iif oif missing drop"), " strict", " firewalld"), "nft delete table inet firewalld",
			"error the strict reverse path filter in table inet firewalld chain c drops IPv6 packets of published ports between nodes, which come in by skin0 with the addresses of their clients: set IPv6_rpfilter=loose", true, false},
		"no default route": {"ip route del default", "ip route add default via 10.90.0.254",
			"warning net.ipv4.conf.all.rp_filter is 1 and this host has no default route", false, true},
		"another way back to a node": {"ip route add 10.90.0.1 dev up1", reroute,
			"error net.ipv4.conf.eth0.rp_filter is strict, and the route to 10.90.0.1 does not lead by eth0", false, false},

		"loose": {chain("inet", "prerouting", "10", "accept", "fib saddr . mark oif missing drop"), "", "", true, true},
		"of other links": {chain("inet", "prerouting", "10", "accept", "iifname eth0 fib saddr . iif oif missing drop", "iifname { up1, eth0 } jump deep", "iifname \"e*\" goto deep", "deep fib saddr . iif oif missing drop"),
			"", "", true, true},
		"the mesh's links are let through": {chain("inet", "prerouting", "10", "drop", "iifname \"sk*\" accept", "fib saddr . mark . iif oif exists accept"), "", "", true, true},
		"loose, of iptables":               {"iptables -t raw -A PREROUTING -m rpfilter --loose --invert -j DROP; ip6tables -t raw -A PREROUTING -m rpfilter --loose --invert -j DROP", "iptables -t raw -F; ip6tables -t raw -F", "", true, true},
		"wg-quick's marks":                 {"sysctl -w net.ipv4.conf.all.src_valid_mark=1", "sysctl -w net.ipv4.conf.all.src_valid_mark=0", "", true, true},
	} {
		far.do(x.do)
		if err := far.plane.Repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		f := findings()
		if x.want == "" && len(f) > 0 || x.want != "" && (len(f) != 1 || !strings.Contains(f[0], x.want)) {
			t.Errorf("%s: found %q, want %q", name, f, x.want)
		}
		if v4, v6 := reaches(); v4 != x.v4 || v6 != x.v6 {
			t.Errorf("%s: a client reaches the task over IPv4 %v, over IPv6 %v", name, v4, v6)
		}
		if len(f) == 1 && !strings.Contains(f[0], "firewalld") { // what it says is what helps
			for _, c := range commands.FindAllStringSubmatch(f[0], -1) {
				far.do(c[1])
			}
			if err := far.plane.Repair(t.Context()); err != nil {
				t.Fatal(err)
			}
			if v4, v6 := reaches(); (!v4 || !v6) && x.undo != reroute { // there the route itself is a dead end
				t.Errorf("%s: after what the finding says to do, a client reaches the task over IPv4 %v, over IPv6 %v: %s", name, v4, v6, f[0])
			}
			if f := findings(); len(f) > 0 {
				t.Errorf("%s: after what the finding says to do: %q", name, f)
			}
		}
		undo := x.undo
		if undo == "" {
			undo = "nft delete table inet strict || nft delete table ip strict"
		}
		far.do(undo + "; sysctl -w net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
		if err := far.plane.Repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		if f := findings(); len(f) > 0 {
			t.Fatalf("after %s was undone: %q", name, f)
		}
	}
	far.wantRight()
}

// TestLegacyReversePaths reads chains as an iptables of the old kind shows them.
func TestLegacyReversePaths(t *testing.T) {
	links := []string{"skep0", Link}
	for rules, want := range map[string]bool{
		"-P PREROUTING ACCEPT": false,
		"-P PREROUTING ACCEPT|-A PREROUTING -m rpfilter --validmark --invert -j DROP":                                                                   true,
		"-A PREROUTING -m rpfilter --loose --invert -j DROP":                                                                                            false,
		"-A PREROUTING -i skep0 -j ACCEPT|-A PREROUTING -i skin0 -j ACCEPT|-A PREROUTING -m rpfilter --invert -j DROP":                                  false,
		"-A PREROUTING -i skin0 -j ACCEPT|-A PREROUTING -m rpfilter --invert -j DROP":                                                                   true,
		"-A PREROUTING -m rpfilter --invert -j DROP|-A PREROUTING -i skep0 -j ACCEPT|-A PREROUTING -i skin0 -j ACCEPT":                                  true,
		"-A PREROUTING -i eth0 -m rpfilter --invert -j DROP":                                                                                            false,
		"-A PREROUTING ! -i lo -m rpfilter --invert -j DROP":                                                                                            true,
		"-A PREROUTING -i skin0 -p tcp -m tcp --dport 80 -j ACCEPT|-A PREROUTING -i skep0 -j ACCEPT|-A PREROUTING -m rpfilter --invert -j nixos-rp-log": true,
		"-N rp|-A rp -m rpfilter --validmark -j RETURN|-A rp -j DROP":                                                                                   true,
	} {
		if got := legacyDrops(strings.Split(rules, "|"), links); got != want {
			t.Errorf("%s: %v, want %v", rules, got, want)
		}
	}
}
