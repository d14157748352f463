package ingress

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// Finding is something about the host that is not this package's to change.
type Finding struct {
	Error bool // packets are lost; else only some may be
	Text  string
}

// ReversePaths says which filters of the host drop packets of the mesh because of the way they come in: a packet by the
// fabric has its client's address, to which the host's own route leads by another link. The sysctls of the mesh's own
// links are not among them: Apply and Repair see to these.
func (p *Plane) ReversePaths(ctx context.Context) (out []Finding, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.applied || p.cleaned {
		return nil, nil
	}
	err = nsfs.Inside(p.home, func() error {
		for _, f := range []func() ([]Finding, error){p.noRouteFinding, p.underlayFinding, p.filterRules, p.legacyFilterRules} {
			more, ferr := f()
			if err := errors.Join(ctx.Err(), ferr); err != nil {
				return err
			}
			out = append(out, more...)
		}
		return nil
	})
	return out, err
}

// rpFilter is how strict the kernel is with a link: 0 not at all, 1 strict, 2 loose. The link's own value and that of
// `all` are compared, and the greater counts.
func rpFilter(link string) string {
	own, _ := readSysctl("net/ipv4/conf/" + link + "/rp_filter") // a link that is gone filters nothing
	all, _ := readSysctl("net/ipv4/conf/all/rp_filter")
	return max(own, all)
}

// srcValidMark: the kernel's filter of a link asks for the route of packets with their mark, which for replies leads to
// the fabric. wg-quick switches that on for all links.
func srcValidMark(link string) bool {
	for _, l := range []string{"all", link} {
		if v, err := readSysctl("net/ipv4/conf/" + l + "/src_valid_mark"); err == nil && v != "0" {
			return true
		}
	}
	return false
}

// noRouteFinding: the fabric's filter is loose where the host has filters (see wantedSysctls), and lets a packet in if
// there is any route to its source, which a default route is.
func (p *Plane) noRouteFinding() ([]Finding, error) {
	all, err := readSysctl("net/ipv4/conf/all/rp_filter")
	if err != nil || all == "0" {
		return nil, nil // a kernel without IPv4 has no such filter
	}
	routes, err := p.nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the default routes: %w", err)
	}
	if slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Table != replyTable && r.Type == unix.RTN_UNICAST }) {
		return nil, nil
	}
	return []Finding{{false, fmt.Sprintf("net.ipv4.conf.all.rp_filter is %s and this host has no default route: clients it has no route to do not reach tasks here by published ports of other nodes: "+
		"add a default route, or run `sysctl -w net.ipv4.conf.all.rp_filter=0` and put it into /etc/sysctl.d", all)}}, nil
}

// underlayFinding: packets of a peer come in where this node has its address, and are dropped there if the way back is
// another one. An address on the loopback, which routers spread, says nothing of the link.
func (p *Plane) underlayFinding() ([]Finding, error) {
	if !p.cfg.Underlay.Is4() {
		return nil, nil
	}
	addrs, err := p.nl.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this host: %w", err)
	}
	i := slices.IndexFunc(addrs, func(a netlink.Addr) bool { return addrOf(a.IP) == p.cfg.Underlay })
	if i < 0 {
		return nil, nil
	}
	l, err := p.nl.LinkByIndex(addrs[i].LinkIndex)
	if err != nil || l.Attrs().Name == "lo" || rpFilter(l.Attrs().Name) != "1" {
		return nil, nil // a link that went away meanwhile has no filter
	}
	var elsewhere []string
	for _, peer := range p.state.Peers {
		routes, err := p.nl.RouteGet(peer.Underlay.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].LinkIndex != l.Attrs().Index {
			elsewhere = append(elsewhere, peer.Underlay.String())
		}
	}
	if len(elsewhere) == 0 {
		return nil, nil
	}
	more := ""
	if n := len(elsewhere) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more nodes)", n)
	}
	name := l.Attrs().Name
	return []Finding{{true, fmt.Sprintf("net.ipv4.conf.%s.rp_filter is strict, and the route to %s%s does not lead by %s, which has this node's data path address %s: what comes from there is dropped: "+
		"mend the route, or run `sysctl -w net.ipv4.conf.%s.rp_filter=2` and put it into /etc/sysctl.d", strings.ReplaceAll(name, ".", "/"), elsewhere[0], more, name, p.cfg.Underlay, strings.ReplaceAll(name, ".", "/"))}}, nil
}

// filterRules looks at the nftables chains of others that packets from the fabric meet, iptables' own among them where
// that writes nftables.
func (p *Plane) filterRules() ([]Finding, error) {
	c, err := openNftables()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.CloseLasting() }()
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	links := []string{Link, p.cfg.Bridge}
	index := map[string]int{}
	for _, name := range links {
		if l, err := findLink(p.nl, name); err == nil && l != nil {
			index[name] = l.Attrs().Index
		}
	}
	found := map[string]*strictRule{}
	for _, ch := range chains {
		if ch.Hooknum == nil || ch.Priority == nil || ch.Table.Name == tableName ||
			*ch.Hooknum != *nftables.ChainHookPrerouting && *ch.Hooknum != *nftables.ChainHookForward {
			continue
		}
		for _, family := range familiesOf(ch.Table, p.ipv6) {
			for _, link := range links {
				w := &ruleWalk{c: c, table: ch.Table, family: family, link: link, index: index[link], fabric: link == Link, marked: *ch.Hooknum == *nftables.ChainHookForward || *ch.Priority > markedFrom}
				rule, err := w.base(ch)
				if err != nil { // the library does not know all there is; then the operator has to look
					p.cfg.Log.Debug("cannot read a chain of others", zap.Error(err))
				}
				if rule == nil {
					continue
				}
				key := fmt.Sprint(ch.Table.Family, ch.Table.Name, rule.chain)
				if found[key] == nil {
					found[key] = rule
				}
				found[key].add(family, rule.narrow)
			}
		}
	}
	var out []Finding
	for _, r := range found {
		out = append(out, r.finding(p.cfg.Bridge))
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Text, b.Text) })
	return out, nil
}
