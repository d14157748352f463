package ingress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"skep.dev/services/ingress-mesh/internal/ruleset"
)

// The rules of the table in this file are those the nftables library cannot express: `ct original zone set` (it has no
// direction for zones) and a change of an address that keeps transport checksums right where the network header has
// none of its own. So they are written as netlink messages, and live in a table of their own.
//
// What the zone is for: one client may use the same source port towards two nodes, and both may pick the same backend.
// On the backend's node these are two connections with the same addresses and ports; the zone, the entry node's number,
// keeps them apart, and conntrack changes the source port of the second.

var zonesTable = &nftables.Table{Family: nftables.TableFamilyINet, Name: zonesTableName}

// rawChains are the chains of `inet skep_zones`. The first comes before connections are tracked, the second after the
// last translation.
func rawChains() []chain {
	return []chain{
		hook("zones", nftables.ChainHookPrerouting, nftables.ChainTypeFilter, -300+1,
			rule{"a zone for each entry node", exprs(iif(Link), []expr.Any{ // the last two bytes of the sender's MAC
				&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: 10, Len: 2},
				&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderNtoh, Len: 2, Size: 2},
				&expr.Ct{Key: expr.CtKeyZONE, SourceRegister: true, Register: reg}, // of the original direction: see rawExpr
			})},
			aliasIn()),
		hook("aliases", nftables.ChainHookPostrouting, nftables.ChainTypeFilter, 300, aliasOut()...),
	}
}

// rawExpr is what the library makes of an expression, and what it cannot make.
func rawExpr(e expr.Any) ([]byte, error) {
	switch e := e.(type) {
	case *expr.Ct:
		if e.Key == expr.CtKeyZONE {
			return attributes(text(unix.NFTA_EXPR_NAME, "ct"), nested(unix.NFTA_EXPR_DATA,
				number(unix.NFTA_CT_KEY, unix.NFT_CT_ZONE),
				number(unix.NFTA_CT_SREG, e.Register),
				netlink.Attribute{Type: unix.NFTA_CT_DIRECTION, Data: []byte{0}}))
		}
	case *expr.Payload:
		if e.CsumFlags != 0 && e.CsumType == expr.CsumTypeNone {
			return attributes(text(unix.NFTA_EXPR_NAME, "payload"), nested(unix.NFTA_EXPR_DATA,
				number(unix.NFTA_PAYLOAD_SREG, e.SourceRegister),
				number(unix.NFTA_PAYLOAD_BASE, uint32(e.Base)),
				number(unix.NFTA_PAYLOAD_OFFSET, e.Offset),
				number(unix.NFTA_PAYLOAD_LEN, e.Len),
				number(unix.NFTA_PAYLOAD_CSUM_TYPE, unix.NFT_PAYLOAD_CSUM_NONE),
				number(unix.NFTA_PAYLOAD_CSUM_OFFSET, 0),
				number(unix.NFTA_PAYLOAD_CSUM_FLAGS, e.CsumFlags)))
		}
	}
	return expr.Marshal(byte(zonesTable.Family), e)
}

// rawRule is a rule as the list of expressions a message holds.
func rawRule(r rule) ([]byte, error) {
	var list []byte
	for _, e := range r.exprs {
		b, err := rawExpr(e)
		if err == nil {
			b, err = attributes(netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: b})
		}
		if err != nil {
			return nil, fmt.Errorf("encode the rule %q: %w", r.text, err)
		}
		list = append(list, b...)
	}
	return list, nil
}

func attributes(a ...netlink.Attribute) ([]byte, error) { return netlink.MarshalAttributes(a) }

func nested(kind uint16, a ...netlink.Attribute) netlink.Attribute {
	b, err := attributes(a...)
	if err != nil {
		panic(fmt.Sprintf("ingress: attribute %d is too long: %v", kind, err)) // all are constants of this file
	}
	return netlink.Attribute{Type: unix.NLA_F_NESTED | kind, Data: b}
}

func number(kind uint16, v uint32) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: binary.BigEndian.AppendUint32(nil, v)}
}

func text(kind uint16, v string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: append([]byte(v), 0)}
}

func header(family nftables.TableFamily, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{byte(family), unix.NFNETLINK_V0}, resource)
}

func message(kind uint16, flags netlink.HeaderFlags, a ...netlink.Attribute) (netlink.Message, error) {
	b, err := attributes(a...)
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(header(zonesTable.Family, 0), b...),
	}, err
}

// writeZones makes the table anew in one transaction; with remove it only takes it away.
func writeZones(remove bool) error {
	table := text(unix.NFTA_TABLE_NAME, zonesTableName)
	batch := []netlink.Message{edge(unix.NFNL_MSG_BATCH_BEGIN)}
	add := func(kind uint16, flags netlink.HeaderFlags, a ...netlink.Attribute) error {
		m, err := message(kind, flags, a...)
		batch = append(batch, m)
		return err
	}
	err := errors.Join(add(unix.NFT_MSG_NEWTABLE, netlink.Create, table), add(unix.NFT_MSG_DELTABLE, 0, table))
	if !remove {
		err = errors.Join(err, add(unix.NFT_MSG_NEWTABLE, netlink.Create, table))
		for _, c := range rawChains() {
			err = errors.Join(err, add(unix.NFT_MSG_NEWCHAIN, netlink.Create,
				text(unix.NFTA_CHAIN_TABLE, zonesTableName), text(unix.NFTA_CHAIN_NAME, c.name),
				nested(unix.NFTA_CHAIN_HOOK, number(unix.NFTA_HOOK_HOOKNUM, uint32(*c.base.Hooknum)), number(unix.NFTA_HOOK_PRIORITY, uint32(*c.base.Priority))),
				number(unix.NFTA_CHAIN_POLICY, uint32(*c.base.Policy)), text(unix.NFTA_CHAIN_TYPE, string(c.base.Type))))
			for _, r := range c.rules {
				list, bad := rawRule(r)
				err = errors.Join(err, bad, add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append,
					text(unix.NFTA_RULE_TABLE, zonesTableName), text(unix.NFTA_RULE_CHAIN, c.name),
					netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: list},
					netlink.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: r.userData(zonesTable.Family)}))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("encode nftables table inet %s: %w", zonesTableName, err)
	}
	answers := len(batch) - 1
	return send(append(batch, edge(unix.NFNL_MSG_BATCH_END)), answers)
}

// zonesMade are the comments of the table's rules as they should be.
func zonesMade() (out []string) {
	for _, c := range rawChains() {
		for _, r := range c.rules {
			out = append(out, string(r.userData(zonesTable.Family)))
		}
	}
	return out
}

func zonesWrong(s snapshot) bool { return !slices.Equal(s.zones, zonesMade()) }

// readZones returns the comments of the table's rules. The library cannot read the rule either.
func readZones() (out []string, err error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	m, err := message(unix.NFT_MSG_GETRULE, netlink.Dump, text(unix.NFTA_RULE_TABLE, zonesTableName))
	if err != nil {
		return nil, fmt.Errorf("encode a question: %w", err)
	}
	replies, err := c.Execute(m)
	if err != nil {
		return nil, fmt.Errorf("list the rules of nftables table inet %s: %w", zonesTableName, err)
	}
	for _, m := range replies {
		ad, err := netlink.NewAttributeDecoder(m.Data[min(4, len(m.Data)):])
		if err != nil {
			return nil, fmt.Errorf("read the rules of nftables table inet %s: %w", zonesTableName, err)
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_RULE_USERDATA {
				out = append(out, string(ad.Bytes()))
			}
		}
	}
	return out, nil
}

func edge(kind uint16) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request},
		Data:   header(0, unix.NFNL_SUBSYS_NFTABLES),
	}
}

func send(batch []netlink.Message, answers int) (err error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if _, err := c.SendMessages(batch); err != nil {
		return fmt.Errorf("write nftables table inet %s: %w", zonesTableName, err)
	}
	for range answers {
		if _, err := c.Receive(); err != nil {
			return fmt.Errorf("write nftables table inet %s: %w", zonesTableName, err)
		}
	}
	return nil
}

// generation is the ruleset's version: it grows with every change anybody makes to nftables in this namespace. While
// it stands still, what was compared before need not be compared again.
func generation() (gen uint32, err error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return ruleset.Version(c)
}
