package ingress

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go.uber.org/zap"
)

// foreignFindings names nftables chains of others that drop forwarded packets by policy: a packet must pass all
// tables, so no rule of ours can let it through. iptables' own chain is the exception: SKEP-FORWARD is in it.
func (p *Plane) foreignFindings(s snapshot) []string {
	var out []string
	for _, ch := range s.foreign {
		if *ch.Hooknum != *nftables.ChainHookForward || *ch.Policy != nftables.ChainPolicyDrop || ch.Table.Family == nftables.TableFamilyNetdev {
			continue
		}
		name := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet", nftables.TableFamilyBridge: "bridge"}[ch.Table.Family]
		ours := ch.Table.Name == "filter" && ch.Name == "FORWARD" && p.forwardNft
		if name == "" || name == "ip" && ours || name == "ip6" && (ours || !p.ipv6) {
			continue
		}
		known, err := p.letsThrough(ch)
		if err != nil { // the library does not know all there is; then the operator has to look
			p.cfg.Log.Debug("cannot read a chain of others", zap.Error(err))
		}
		if known {
			continue
		}
		out = append(out, fmt.Sprintf("forward traffic is dropped by table %s %s chain %s policy drop: "+
			`add 'nft insert rule %s %s %s iifname { "%s", "%s" } accept' and 'nft insert rule %s %s %s oifname { "%s", "%s" } ct state established,related accept' and the same with 'ct status dnat accept'`,
			name, ch.Table.Name, ch.Name, name, ch.Table.Name, ch.Name, p.cfg.Bridge, Link, name, ch.Table.Name, ch.Name, p.cfg.Bridge, Link))
	}
	slices.Sort(out)
	return out
}

// letsThrough: a rule of the chain names both of our links, so somebody has thought of us.
func (p *Plane) letsThrough(ch *nftables.Chain) (bool, error) {
	c, err := openNftables()
	if err != nil {
		return false, err
	}
	defer func() { _ = c.CloseLasting() }()
	rules, err := c.GetRules(ch.Table, ch)
	if err != nil {
		return false, fmt.Errorf("list the rules of nftables chain %s %s: %w", ch.Table.Name, ch.Name, err)
	}
	named := map[string]bool{}
	note := func(b []byte) { named[string(bytes.TrimRight(b, "\x00"))] = true }
	for _, r := range rules {
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Cmp:
				note(e.Data)
			case *expr.Lookup:
				list, err := c.GetSetElements(&nftables.Set{Table: ch.Table, Name: e.SetName})
				if err != nil {
					return false, fmt.Errorf("list nftables set %s %s: %w", ch.Table.Name, e.SetName, err)
				}
				for _, el := range list {
					note(el.Key)
				}
			}
		}
	}
	return named[p.cfg.Bridge] && named[Link], nil
}
