package ingress

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// legacyFilterRules does what filterRules does for an iptables that keeps its rules outside nftables. Tables that were
// never used are not asked for: to list one is to make it.
func (p *Plane) legacyFilterRules() (out []Finding, err error) {
	if p.forwardNft {
		return nil, nil
	}
	for _, f := range p.firewalls {
		if f.six && !p.ipv6 {
			continue
		}
		tables := usedTables(f.six)
		for _, table := range []string{"raw", "mangle", "filter"} {
			if !slices.Contains(tables, table) {
				continue
			}
			chains, err := f.ListChains(table)
			if err != nil {
				return nil, fmt.Errorf("list the chains of %s table %s: %w", f.name, table, err)
			}
			for _, chain := range chains {
				rules, err := f.List(table, chain)
				if err != nil {
					return nil, fmt.Errorf("list %s table %s chain %s: %w", f.name, table, chain, err)
				}
				if !legacyDrops(rules, []string{p.cfg.Bridge, Link}) {
					continue
				}
				which := "IPv4"
				if f.six {
					which = "IPv6"
				}
				out = append(out, Finding{true, fmt.Sprintf("the strict reverse path filter in %s table %s chain %s drops %s packets of published ports between nodes, which come in by %s with the addresses of their clients: %s",
					f.name, table, chain, which, Link, legacyAdvice(f.six, table, chain, p.cfg.Bridge))})
			}
		}
	}
	return out, nil
}

// legacyDrops reads a chain as `iptables -S` shows it: does it filter by the way back before all links are let through?
func legacyDrops(rules, links []string) bool {
	passed := map[string]bool{}
	for _, r := range rules {
		f := strings.Fields(r)
		if len(f) < 2 || f[0] != "-A" {
			continue
		}
		if len(f) == 6 && f[2] == "-i" && f[4] == "-j" && (f[5] == "ACCEPT" || f[5] == "RETURN") {
			passed[f[3]] = true
			continue
		}
		if !slices.Contains(f, "rpfilter") || slices.Contains(f, "--loose") {
			continue
		}
		for _, l := range links {
			if i := slices.Index(f, "-i"); i > 0 && i+1 < len(f) && (f[i+1] == l) == (f[i-1] == "!") {
				continue // it is about other links
			}
			if !passed[l] {
				return true
			}
		}
	}
	return false
}

// legacyAdvice lets the mesh's links through with iptables.
func legacyAdvice(six bool, table, chain, bridge string) string {
	tool := "iptables"
	if six {
		tool = "ip6tables"
	}
	cmd := func(link string) string {
		return fmt.Sprintf("`%s -t %s -I %s -i %s -j ACCEPT`", tool, table, chain, link)
	}
	return "run " + cmd(bridge) + " and " + cmd(Link) + " and keep both with the firewall's rules"
}

// usedTables are the tables of an iptables outside nftables that this network namespace has.
func usedTables(six bool) []string {
	path := "/proc/thread-self/net/ip_tables_names"
	if six {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil // the kernel has none of that kind
	}
	return strings.Fields(string(b))
}
