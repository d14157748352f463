package ingress

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

const (
	// markedFrom is the priority of our chains that mark replies: later ones see the mark.
	markedFrom = -150
	// Of the kernel's linux/netfilter/xt_rpfilter.h.
	rpfilterLoose, rpfilterValidMark, rpfilterInvert = 1, 2, 8
	// deepest is as far as the kernel lets chains jump.
	deepest = 16
)

func familiesOf(t *nftables.Table, ipv6 bool) []byte {
	switch {
	case t.Family == nftables.TableFamilyIPv4, t.Family == nftables.TableFamilyINet && !ipv6:
		return []byte{unix.NFPROTO_IPV4}
	case t.Family == nftables.TableFamilyINet:
		return []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}
	case t.Family == nftables.TableFamilyIPv6 && ipv6:
		return []byte{unix.NFPROTO_IPV6}
	}
	return nil
}

// strictRule is a rule that drops packets whose source is not reached by the link they come in by.
type strictRule struct {
	table    *nftables.Table
	chain    string
	iptables bool // it was made by iptables
	narrow   bool // it looks at more than that, so it may not be about all packets
	v4, v6   bool
}

func (r *strictRule) add(family byte, narrow bool) {
	r.v4, r.v6 = r.v4 || family == unix.NFPROTO_IPV4, r.v6 || family == unix.NFPROTO_IPV6
	r.narrow = r.narrow && narrow
}

// finding names the rule and what helps.
func (r *strictRule) finding(bridge string) Finding {
	family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}[r.table.Family]
	which := "IPv4 and IPv6"
	if !r.v6 {
		which = "IPv4"
	} else if !r.v4 {
		which = "IPv6"
	}
	do := fmt.Sprintf("run `nft 'insert rule %s %s %s iifname { \"%s\", \"%s\" } accept'` and keep it with the firewall's rules", family, r.table.Name, r.chain, bridge, Link)
	switch {
	case r.table.Name == "firewalld":
		do = "set IPv6_rpfilter=loose (or no, where firewalld does not know that) in /etc/firewalld/firewalld.conf and run `firewall-cmd --reload`"
	case r.iptables && family != "inet":
		do = legacyAdvice(family == "ip6", r.table.Name, r.chain, bridge)
	}
	return Finding{!r.narrow, fmt.Sprintf("the strict reverse path filter in table %s %s chain %s drops %s packets of published ports between nodes, which come in by %s with the addresses of their clients: %s",
		family, r.table.Name, r.chain, which, Link, do)}
}

// ruleWalk follows the packets of one family that come in by one of the mesh's links through a base chain.
type ruleWalk struct {
	c      *nftables.Conn
	table  *nftables.Table
	family byte
	link   string
	index  int
	fabric bool // link is the fabric: its packets have sources from elsewhere; else they have a mark, if they are replies
	marked bool
}

// base gives the first strict rule the packets meet, if there is one.
func (w *ruleWalk) base(ch *nftables.Chain) (*strictRule, error) {
	end := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
	r, _, err := w.walk(ch.Name, end, 0, false)
	return r, err
}

// walk follows one chain; drops says that what reaches its end is dropped, over that the packet went no further.
func (w *ruleWalk) walk(name string, drops bool, depth int, narrow bool) (found *strictRule, over bool, err error) {
	if depth > deepest {
		return nil, true, nil
	}
	rules, err := w.c.GetRules(w.table, &nftables.Chain{Name: name})
	if err != nil {
		return nil, false, fmt.Errorf("list the rules of nftables chain %s %s: %w", w.table.Name, name, err)
	}
	var gate *strictRule // only what passed the filter went on elsewhere
	for _, r := range rules {
		m, err := w.match(r)
		if err != nil {
			return nil, false, err
		}
		strict := m.strict(w)
		here := func() *strictRule {
			return &strictRule{table: w.table, chain: name, iptables: m.iptables, narrow: narrow || m.narrow}
		}
		switch {
		case m.excluded || m.verdict == nil && !m.rejects:
			continue
		case strict && m.missing && (m.rejects || slices.Contains([]expr.VerdictKind{expr.VerdictDrop, expr.VerdictJump, expr.VerdictGoto}, m.verdict.Kind)):
			return here(), true, nil
		case strict && !m.missing && (m.verdict != nil && (m.verdict.Kind == expr.VerdictAccept || m.verdict.Kind == expr.VerdictReturn)):
			gate = here()
			continue
		case m.fib: // a filter of another kind decides about packets one by one
			continue
		case m.verdict != nil && (m.verdict.Kind == expr.VerdictJump || m.verdict.Kind == expr.VerdictGoto):
			goes := m.verdict.Kind == expr.VerdictGoto
			found, over, err = w.walk(m.verdict.Chain, goes && drops, depth+1, narrow || m.narrow)
			if found != nil || err != nil || !m.narrow && (over || goes) {
				return found, over || !m.narrow, err
			}
		case m.narrow:
			continue
		case m.rejects || m.verdict.Kind == expr.VerdictDrop:
			return gate, true, nil
		case m.verdict.Kind == expr.VerdictReturn && depth > 0:
			return nil, false, nil
		case m.verdict.Kind == expr.VerdictReturn: // of a base chain: to its policy
			if drops {
				return gate, true, nil
			}
			return nil, true, nil
		case m.verdict.Kind == expr.VerdictAccept:
			return nil, true, nil
		}
	}
	if drops {
		return gate, true, nil
	}
	return nil, false, nil
}

// matched is what a rule asks of a packet.
type matched struct {
	excluded bool // packets of the walk never match
	narrow   bool // it asks for more than links and families
	iptables bool
	fib      bool // it asks for the way back,
	byLink   bool // which must be the link it came in by,
	withMark bool // for packets with this mark;
	missing  bool // and matches those for which there is none
	verdict  *expr.Verdict
	rejects  bool
}

// strict: packets of the walk have another way back than that.
func (m matched) strict(w *ruleWalk) bool {
	return m.fib && m.byLink && (w.fabric || m.withMark && w.marked)
}

// match reads a rule: what each register holds, and what is asked of it.
func (w *ruleWalk) match(r *nftables.Rule) (m matched, err error) {
	const other = "other"
	regs := map[uint32]string{}
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			regs[e.Register] = map[expr.MetaKey]string{expr.MetaKeyIIFNAME: "iif", expr.MetaKeyIIF: "index", expr.MetaKeyNFPROTO: "family"}[e.Key]
		case *expr.Fib:
			regs[e.Register] = other
			if e.FlagSADDR && (e.ResultOIF || e.ResultOIFNAME) {
				regs[e.Register], m.fib, m.byLink, m.withMark = "fib", true, e.FlagIIF, e.FlagMARK
			}
		case *expr.Cmp:
			equal := e.Op == expr.CmpOpEq
			switch regs[e.Register] {
			case "iif":
				m.excluded = m.excluded || named(e.Data, w.link) != equal
			case "index":
				m.excluded = m.excluded || bytes.Equal(e.Data, native(uint32(w.index))) != equal
			case "family":
				m.excluded = m.excluded || (len(e.Data) > 0 && e.Data[0] == w.family) != equal
			case "fib":
				m.missing = len(bytes.Trim(e.Data, "\x00")) == 0 == equal
			default:
				m.narrow = true
			}
		case *expr.Lookup:
			if e.IsDestRegSet {
				continue // the value of a map is asked about later
			}
			if regs[e.SourceRegister] != "iif" {
				m.narrow = true
				continue
			}
			list, err := w.c.GetSetElements(&nftables.Set{Table: w.table, Name: e.SetName})
			if err != nil {
				return m, fmt.Errorf("list nftables set %s %s: %w", w.table.Name, e.SetName, err)
			}
			has := slices.ContainsFunc(list, func(el nftables.SetElement) bool { return named(el.Key, w.link) })
			m.excluded = m.excluded || has == e.Invert
		case *expr.Match:
			m.iptables = true
			flags, ok := e.Info.(*xt.Unknown)
			if e.Name != "rpfilter" || !ok || len(*flags) == 0 {
				m.narrow = m.narrow || e.Name != "comment"
				continue
			}
			f := (*flags)[0]
			m.fib, m.byLink, m.withMark, m.missing = true, f&rpfilterLoose == 0, f&rpfilterValidMark != 0, f&rpfilterInvert != 0
		case *expr.Target:
			m.iptables = true
		case *expr.Verdict:
			m.verdict = e
		case *expr.Reject:
			m.rejects = true
		case *expr.Counter, *expr.Log, *expr.Bitwise, *expr.Immediate:
		case *expr.Limit, *expr.Connlimit, *expr.Range, *expr.Dynset, *expr.Quota:
			m.narrow = true
		case *expr.Payload:
			regs[e.DestRegister] = other
		case *expr.Ct:
			regs[e.Register] = other
		}
	}
	return m, nil
}

// named: a link's name as a rule has it is that of the link. Without its end it is the beginning of names.
func named(data []byte, link string) bool {
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return string(data[:i]) == link
	}
	return strings.HasPrefix(link, string(data))
}
