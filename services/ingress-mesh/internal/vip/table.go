package vip

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"skep.dev/services/ingress-mesh/internal/ruleset"
)

// tableName is the table's, of family inet.
const tableName = "skep_vip"

var (
	table = &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	// twin stands in for a table that is made anew.
	twin = &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName + "_twin"}
)

// Registers: 1 is the first of 16 bytes; 9 and 12 are the four bytes after an IPv4 and an IPv6 address in it.
const reg, regDraw4, regDraw6 = 1, 9, 12

// family is what differs between IPv4 and IPv6.
type family struct {
	is4       bool
	proto     byte
	services  string // map: virtual address → the chain that draws; counts connections
	backends  string // map: virtual address . number drawn → task
	addresses string // set: all virtual addresses; counts what was refused, and what the translation missed
	refused   string // set: those without tasks
	lost      string // set: addresses of tasks that are lost; counts what was answered for them
	draws     string // prefix of the drawing chains
	key       nftables.SetDatatype
	daddr     *expr.Payload
	regDraw   uint32
}

var families = []*family{
	{true, unix.NFPROTO_IPV4, "services", "backends", "addresses", "refused", "lost", "pick", nftables.TypeIPAddr, daddr(16, 4), regDraw4},
	{false, unix.NFPROTO_IPV6, "services6", "backends6", "addresses6", "refused6", "lost6", "pick6", nftables.TypeIP6Addr, daddr(24, 16), regDraw6},
}

func daddr(offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return families[0]
	}
	return families[1]
}

func (f *family) pick(n uint32) string { return fmt.Sprintf("%s-%d", f.draws, n) }

// packets are those of the family, with their destination loaded.
func (f *family) packets(then ...expr.Any) []expr.Any {
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{f.proto}},
		f.daddr,
	}, then...)
}

// rule is one rule as it should be.
type rule struct {
	text  string
	exprs []expr.Any
}

// tag is the rule's comment.
func (r rule) tag() string { return string(ruleset.Comment(table.Family, r.text, r.exprs)) }

// chain is one chain as it should be.
type chain struct {
	name  string
	base  *nftables.Chain // hook, priority and type; nil for one that is only jumped to
	rules []rule
}

func (c chain) tags() []string {
	out := make([]string, 0, len(c.rules))
	for _, r := range c.rules {
		out = append(out, r.tag())
	}
	return out
}

// sets are those of the table. The IDs are given here since the library would count them in a variable that all its
// users share without a lock. A counter is a part of a set that costs each element 16 bytes and is worth it where an
// operator would look.
func sets(table *nftables.Table) (out []*nftables.Set) {
	for i, f := range families {
		id := uint32(5 * i)
		out = append(out,
			&nftables.Set{Table: table, ID: id + 1, Name: f.services, IsMap: true, Counter: true, KeyType: f.key, DataType: nftables.TypeVerdict},
			&nftables.Set{Table: table, ID: id + 2, Name: f.backends, IsMap: true, Concatenation: true,
				KeyType: nftables.MustConcatSetType(f.key, nftables.TypeMark), DataType: f.key, KeyByteOrder: binaryutil.NativeEndian},
			&nftables.Set{Table: table, ID: id + 3, Name: f.addresses, Counter: true, KeyType: f.key},
			&nftables.Set{Table: table, ID: id + 4, Name: f.refused, KeyType: f.key},
			&nftables.Set{Table: table, ID: id + 5, Name: f.lost, Counter: true, KeyType: f.key},
		)
	}
	return out
}

const (
	chainRefuse = "refuse" // what is for a virtual address
	chainLost   = "lost"   // what is for a task that is lost, whether it was sent to its own address or to a virtual one
)

// fixed are the chains that do not depend on the services.
func fixed() []chain {
	prioNAT, prioFilter, accept := nftables.ChainPriority(-100), nftables.ChainPriority(0), nftables.ChainPolicyAccept
	translate := chain{name: "translate", base: &nftables.Chain{
		Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: &prioNAT, Policy: &accept,
	}}
	guard := chain{name: "guard", base: &nftables.Chain{
		Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: &prioFilter, Policy: &accept,
	}}
	for _, f := range families {
		guard.rules = append(guard.rules, rule{"tasks of nodes that are down", f.packets(
			&expr.Lookup{SourceRegister: reg, SetName: f.lost},
			&expr.Verdict{Kind: expr.VerdictGoto, Chain: chainLost},
		)})
	}
	for _, f := range families {
		for _, text := range []string{"virtual addresses", "virtual addresses that changed between the two lookups"} {
			translate.rules = append(translate.rules, rule{text, f.packets(
				&expr.Lookup{SourceRegister: reg, DestRegister: 0, IsDestRegSet: true, SetName: f.services},
			)})
		}
		guard.rules = append(guard.rules, rule{"virtual addresses still", f.packets(
			&expr.Lookup{SourceRegister: reg, SetName: f.addresses},
			&expr.Verdict{Kind: expr.VerdictGoto, Chain: chainRefuse},
		)})
	}
	// A stray segment of a translated connection is none that tracking knows, so it comes in under the task's own address, for
	// which there is no socket. The reset that the kernel answers would end the connection at the task.
	guard.rules = append(guard.rules, rule{"resets of what is not tracked", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{0x04}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{0}},
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitINVALID), Xor: []byte{0, 0, 0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{0, 0, 0, 0}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	// What has tasks and was not translated is dropped: it met a change, or is no part of a connection. TCP sends it again.
	var missed []rule
	for _, f := range families {
		missed = append(missed, rule{"with tasks, but not translated", f.packets(
			&expr.Lookup{SourceRegister: reg, SetName: f.refused, Invert: true},
			&expr.Verdict{Kind: expr.VerdictDrop},
		)})
	}
	reject := []rule{
		{"TCP", []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
		}},
		// Of all the errors there are, this one is told to every connected socket.
		{"others", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}},
	}
	refuse := chain{name: chainRefuse, rules: append(missed, reject...)}
	return []chain{refuse, {name: chainLost, rules: reject}, translate, guard, {name: version(translate, guard)}}
}

// version is the name of an empty chain that says by which version of the sets and hooks the table was made: these
// cannot be changed in place, so a table without that chain is made anew.
func version(base ...chain) string {
	h := sha256.New()
	for _, s := range sets(table) {
		fmt.Fprintln(h, s.Name, s.IsMap, s.Concatenation, s.Counter, s.KeyType.Name, s.DataType.Name)
	}
	for _, c := range base {
		fmt.Fprintln(h, c.name, c.base.Type, *c.base.Hooknum, *c.base.Priority)
	}
	return "layout-" + hex.EncodeToString(h.Sum(nil)[:6])
}

// drawing is the chain of that name that draws one of n tasks, false if the name is none of such a chain.
func drawing(name string) (chain, bool) {
	for _, f := range families {
		var n uint32
		if _, err := fmt.Sscanf(name, f.draws+"-%d", &n); err != nil || n == 0 || f.pick(n) != name {
			continue
		}
		return chain{name: name, rules: []rule{{fmt.Sprintf("one of %d", n), f.packets(
			&expr.Numgen{Register: f.regDraw, Modulus: n, Type: unix.NFT_NG_RANDOM},
			&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: f.backends},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg},
		)}}}, true
	}
	return chain{}, false
}
