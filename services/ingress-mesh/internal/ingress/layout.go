package ingress

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"skep.dev/libs/spec"
	"skep.dev/services/ingress-mesh/internal/ruleset"
)

const (
	tableName       = "skep"
	zonesTableName  = "skep_zones"
	fabricTableName = "skep_fabric"
)

var (
	hostTable   = &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	fabricTable = &nftables.Table{Family: nftables.TableFamilyNetdev, Name: fabricTableName}
)

// Sets and maps. `nft list map inet skep ports` and `… backends` are what an operator looks at.
const (
	setPorts    = "ports"    // protocol . port → chain that draws among the backends; counts connections
	setBackends = "backends" // protocol . port . number drawn → address . port; counts connections
	setRefused  = "refused"  // protocol . port of published ports without backends
	// The same for IPv6: a port is published in both, to those of its tasks that have an address of the kind.
	setPorts6, setBackends6, setRefused6 = "ports6", "backends6", "refused6"
	// protocol . port of all published ports: what the translation missed is dropped, see order.go
	setPublished, setPublished6 = "published", "published6"
	setHosts, setHosts6         = "hosts", "hosts6" // protocol . address of the host . port → address . port; counts connections

	setPeers   = "peers" // addresses VXLAN packets may come from
	setPeers6  = "peers6"
	setReturns = "returns" // source address . next hop that would send a node's own packet back to it
	setMarks   = "marks"   // a peer's MAC on the fabric → mark of connections it lets in
	setMacs    = "macs"    // and back (netdev)
)

var (
	typePort    = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	typeDraw    = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark)
	typeHost    = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeIPAddr, nftables.TypeInetService)
	typeHost6   = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeIP6Addr, nftables.TypeInetService)
	typeTarget  = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	typeTarget6 = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
	typeReturns = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
)

// setDefs are the sets of each table. The IDs are given here since the library would count them in a variable that
// all its users share without a lock.
func setDefs(t *nftables.Table) []*nftables.Set {
	if t.Family == fabricTable.Family {
		return []*nftables.Set{
			{Table: t, ID: 1, Name: setMacs, IsMap: true, KeyType: nftables.TypeMark, DataType: nftables.TypeEtherAddr},
		}
	}
	return []*nftables.Set{
		{Table: t, ID: 1, Name: setPorts, IsMap: true, Concatenation: true, Counter: true, KeyType: typePort, DataType: nftables.TypeVerdict},
		{Table: t, ID: 2, Name: setBackends, IsMap: true, Concatenation: true, Counter: true, KeyType: typeDraw, DataType: typeTarget},
		{Table: t, ID: 3, Name: setRefused, Concatenation: true, KeyType: typePort},
		{Table: t, ID: 4, Name: setPeers, KeyType: nftables.TypeIPAddr},
		{Table: t, ID: 5, Name: setPeers6, KeyType: nftables.TypeIP6Addr},
		{Table: t, ID: 6, Name: setReturns, Concatenation: true, KeyType: typeReturns},
		{Table: t, ID: 7, Name: setMarks, IsMap: true, KeyType: nftables.TypeEtherAddr, DataType: nftables.TypeMark},
		{Table: t, ID: 8, Name: setPorts6, IsMap: true, Concatenation: true, Counter: true, KeyType: typePort, DataType: nftables.TypeVerdict},
		{Table: t, ID: 9, Name: setBackends6, IsMap: true, Concatenation: true, Counter: true, KeyType: typeDraw, DataType: typeTarget6},
		{Table: t, ID: 10, Name: setRefused6, Concatenation: true, KeyType: typePort},
		{Table: t, ID: 11, Name: setPublished, Concatenation: true, KeyType: typePort},
		{Table: t, ID: 12, Name: setPublished6, Concatenation: true, KeyType: typePort},
		{Table: t, ID: 13, Name: setHosts, IsMap: true, Concatenation: true, Counter: true, KeyType: typeHost, DataType: typeTarget},
		{Table: t, ID: 14, Name: setHosts6, IsMap: true, Concatenation: true, Counter: true, KeyType: typeHost6, DataType: typeTarget6},
	}
}

// rule is one rule as it should be.
type rule struct {
	text  string // what it is for, shown as its comment
	exprs []expr.Any
}

// chain is one chain as it should be.
type chain struct {
	name  string
	base  *nftables.Chain // hook, priority, type and device; nil for one that is only jumped to
	rules []rule
}

// userData is the rule's comment.
func (r rule) userData(family nftables.TableFamily) []byte {
	return ruleset.Comment(family, r.text, r.exprs)
}

func hook(name string, h *nftables.ChainHook, kind nftables.ChainType, prio nftables.ChainPriority, rules ...rule) chain {
	accept := nftables.ChainPolicyAccept
	return chain{name, &nftables.Chain{Type: kind, Hooknum: h, Priority: &prio, Policy: &accept}, rules}
}

var (
	loopback   = netip.MustParsePrefix("127.0.0.0/8")
	loopback6  = netip.MustParsePrefix("::1/128")
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
)

// hostChains are the chains of `inet skep` but for those that draw among backends, on a host that filters bridged
// packets or not.
func hostChains(c *Config, filtered bool) []chain {
	vxlan := func(fam []expr.Any) []expr.Any { return exprs(fam, protocol(unix.IPPROTO_UDP), dport(c.Port)) }
	// Who asks at a link's own address has such an address too, and those are not routed.
	own := rule{"a link's own addresses are the host's own", exprs(ipv6(), addrIn(daddr6, linkLocal6), leave())}
	publish := []rule{
		inet4.oneAddress(),
		{"published ports", exprs(ipv4(), localDestination(), portKeyLoaded(), goTo(setPorts))},
		own,
		inet6.oneAddress(),
		{"published ports, IPv6", exprs(ipv6(), localDestination(), portKeyLoaded(), goTo(setPorts6))},
	}
	publishOut, untranslated := publish, []rule{inet4.missed(), own, inet6.missed()}
	if filtered {
		// The reply would be translated in the bridge already, and the kernel drops what has ::1 when it leaves that.
		own1 := []rule{{"::1 is the host's own where bridged packets are filtered", exprs(ipv6(), addrIn(daddr6, loopback6), leave())}}
		publishOut, untranslated = slices.Concat(own1, publish), slices.Concat(own1, untranslated)
	}
	// A task's packet leaves with this node's address, by which other nodes would take it for one of the fabric; and it
	// may know an address of theirs that this node does not, so here the port alone counts.
	tasks := func(rest ...[]expr.Any) []expr.Any {
		return exprs(append([][]expr.Any{protocol(unix.IPPROTO_UDP), iif(c.Bridge)}, rest...)...)
	}
	beyond := exprs(notOif(c.Bridge), notOif(Link))
	guard := []rule{
		{"tasks send no fabric packets", tasks(dport(c.Port), counter(), drop())},
		{"tasks send no encrypted ones", tasks(dportIn(spec.FirstEncryptedPort, spec.LastEncryptedPort), ctNew(), counter(), drop())},
		{"only nodes of the cluster send fabric packets", exprs(vxlan(ipv4()), []expr.Any{loadAddr(saddr4), notIn(setPeers)}, counter(), drop())},
		{"only nodes of the cluster send fabric packets, IPv6", exprs(vxlan(ipv6()), []expr.Any{loadAddr6(saddr6), notIn(setPeers6)}, counter(), drop())},
	}
	// A stray segment of a translated connection (out of its window, as a late duplicate is) is none that tracking knows, so
	// nothing translates it. From a task it would leave with the task's own address, which no client has a connection with;
	// and where the client is this host, its kernel would answer it with a reset, which ends the connection at the task. Only
	// our own links are looked at: what is routed here between others may well come back another way.
	strays := func(path string) (out []rule) {
		for _, link := range []string{c.Bridge, Link} {
			out = append(out, rule{"strays of translated connections, " + path, exprs(iif(link), ctInvalid(), counter(), drop())})
		}
		return out
	}
	guard = append(guard, strays("to the host")...)
	guard = append(guard, inet4.oneAddressStrays(), inet6.oneAddressStrays())
	// Tasks are reached by published ports here, and by their networks elsewhere. What comes by the fabric was let in by
	// the node that sent it.
	isolate := append(strays("through the host"), []rule{
		{"tasks send no fabric packets", tasks(beyond, dport(c.Port), counter(), drop())},
		// These are authentic or nothing, and other hosts may well have such a port.
		{"tasks send no encrypted ones", tasks(beyond, dportIn(spec.FirstEncryptedPort, spec.LastEncryptedPort), ctNew(), ipv4(), []expr.Any{loadAddr(daddr4), in(setPeers)}, counter(), drop())},
		{"tasks send no encrypted ones, IPv6", tasks(beyond, dportIn(spec.FirstEncryptedPort, spec.LastEncryptedPort), ctNew(), ipv6(), []expr.Any{loadAddr6(daddr6), in(setPeers6)}, counter(), drop())},
		{"tasks are reached by published ports alone", exprs(notIif(Link), oif(c.Bridge), ctNew(), ctNotDnat(), counter(), drop())},
		{"tasks are reached by published ports alone", exprs(notIif(Link), oif(Link), ctNew(), ctNotDnat(), counter(), drop())},
		// Replies of a connection that is not tracked any more: nothing translates them.
		{"the fabric leads to tasks alone", exprs(iif(Link), beyond, ctNew(), counter(), drop())},
	}...)
	// The source is changed only where the reply would not pass this node again. skep's sources are given as addresses:
	// masquerade forgets its connections when the link goes down.
	source4 := append(sources(ipv4(), saddr4, loopback, c.Subnet, c.Gateway, c.Bridge),
		// Back to the node whose address it has as its source: that node would take it for forged, and keep the reply.
		rule{"back to the node it came from", exprs(ipv4(), oif(Link), ctDnat(), []expr.Any{
			loadAddr(saddr4),
			&expr.Rt{Register: regPort, Key: expr.RtNexthop4},
			in(setReturns),
		}, snat(c.Gateway))})
	source6 := sources(ipv6(), saddr6, loopback6, c.subnet6(), c.gateway6(), c.Bridge)
	return []chain{
		hook("raw-in", nftables.ChainHookPrerouting, nftables.ChainTypeFilter, -300,
			// Every VXLAN packet would need a place in the connection table.
			rule{"fabric packets need no tracking", exprs(vxlan(ipv4()), localDestination(), []expr.Any{loadAddr(saddr4), in(setPeers)}, notrack())},
			rule{"fabric packets need no tracking, IPv6", exprs(vxlan(ipv6()), localDestination(), []expr.Any{loadAddr6(saddr6), in(setPeers6)}, notrack())},
			// route_localnet, which 127.0.0.1:port needs, would also let tasks reach what listens on the host's loopback.
			rule{"loopback is the host's own", exprs(iif(c.Bridge), ipv4(), addrIn(daddr4, loopback), drop())},
			rule{"loopback is the host's own", exprs(iif(c.Bridge), ipv4(), addrIn(saddr4, loopback), drop())},
			rule{"loopback is the host's own", exprs(iif(Link), ipv4(), addrIn(daddr4, loopback), drop())},
			rule{"loopback is the host's own", exprs(iif(Link), ipv4(), addrIn(saddr4, loopback), drop())},
			// The kernel drops ::1 from any link, but for bridged packets not before these chains.
			rule{"loopback is the host's own, IPv6", exprs(iif(c.Bridge), ipv6(), addrIn(daddr6, loopback6), drop())},
			rule{"loopback is the host's own, IPv6", exprs(iif(c.Bridge), ipv6(), addrIn(saddr6, loopback6), drop())},
		),
		hook("raw-out", nftables.ChainHookOutput, nftables.ChainTypeFilter, -300,
			rule{"fabric packets need no tracking", exprs(vxlan(ipv4()), []expr.Any{loadAddr(daddr4), in(setPeers)}, notrack())},
			rule{"fabric packets need no tracking, IPv6", exprs(vxlan(ipv6()), []expr.Any{loadAddr6(daddr6), in(setPeers6)}, notrack())},
		),
		hook("steer-in", nftables.ChainHookPrerouting, nftables.ChainTypeFilter, -150,
			rule{"remember the entry node", exprs(iif(Link), ctNew(), []expr.Any{
				&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
				from(setMarks),
				&expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: reg},
			})},
			rule{"replies go back to the entry node", exprs(iif(c.Bridge), ctReply(), ctMarked(), markFromConnection())},
		),
		// Errors the node itself answers with (no such host, packet too big) take the same way.
		hook("steer-out", nftables.ChainHookOutput, nftables.ChainTypeRoute, -150,
			rule{"replies go back to the entry node", exprs(ctReply(), ctMarked(), markFromConnection())},
			// A stray segment that is for a task's connection to the outside comes in for the host's address. The reset that it
			// would be answered with ends that connection at the other end. Resets that tracking knows go out as ever.
			rule{"resets of what is not tracked", exprs(protocol(unix.IPPROTO_TCP), tcpReset(), ctInvalid(), counter(), drop())},
		),
		hook("publish-in", nftables.ChainHookPrerouting, nftables.ChainTypeNAT, -100, slices.Concat([]rule{
			// What the host sends there is translated on its way out. Translated here, a neighbour's packet would be a martian no more.
			{"loopback is the host's own", exprs(ipv4(), addrIn(daddr4, loopback), leave())},
		}, publish)...),
		hook("publish-out", nftables.ChainHookOutput, nftables.ChainTypeNAT, -100, publishOut...),
		hook("guard", nftables.ChainHookInput, nftables.ChainTypeFilter, 0, slices.Concat(guard, inet4.refuse(), inet6.refuse(), untranslated)...),
		hook("isolate", nftables.ChainHookForward, nftables.ChainTypeFilter, 0, slices.Concat(isolate, noForeignAliases(c.Bridge))...),
		// Clients and tasks have the underlay's MTU; where ICMP is filtered on the way they would not learn of ours.
		hook("clamp", nftables.ChainHookPostrouting, nftables.ChainTypeFilter, -150,
			rule{"segments that fit the fabric", exprs(oif(Link), clampMSS())},
		),
		hook("source", nftables.ChainHookPostrouting, nftables.ChainTypeNAT, 100, slices.Concat(source4, source6, aliasSources(c))...),
	}
}

// sources are the rules that give packets of one family another source.
func sources(family []expr.Any, saddr uint32, loopback, subnet netip.Prefix, gateway netip.Addr, bridge string) []rule {
	return []rule{
		// Where the host has no route to the outside, there is nothing for this rule to do.
		{"egress of tasks", exprs(family, addrIn(saddr, subnet), notOif(bridge), notOif(Link), []expr.Any{&expr.Masq{}})},
		{"a task asks for its own node's port", exprs(family, oif(bridge), addrIn(saddr, subnet), ctDnat(), snat(gateway))},
		{"the loopback's port", exprs(family, oif(bridge), addrIn(saddr, loopback), snat(gateway))},
		{"the loopback's port", exprs(family, oif(Link), addrIn(saddr, loopback), snat(gateway))},
		{"came through the fabric and leaves by it", exprs(family, oif(Link), ctDnat(), ctMarked(), snat(gateway))},
	}
}

// dummyMAC is the next hop of all replies; the map at the device's egress puts the entry node's in its place.
var dummyMAC = fabricMAC(0xffff)

func fabricMAC(number uint16) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x53, 0x4b, 0x45, byte(number >> 8), byte(number)}
}

func fabricChains() []chain {
	c := hook("egress", nftables.ChainHookEgress, nftables.ChainTypeFilter, 0,
		rule{"replies: the entry node's MAC", []expr.Any{
			&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
			is(dummyMAC),
			&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
			from(setMacs),
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
		}},
		// VXLAN looks its outer route up with the packet's mark: with it, the outer packet would go into skin0 again.
		rule{"the mark ends here", []expr.Any{
			&expr.Immediate{Register: reg, Data: native(0)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg},
		}},
	)
	c.base.Device = Link
	return []chain{c}
}

// layoutName is the name of an empty chain that says by which version of the sets and hooks the table was made: these
// cannot be changed in place, so a table without that chain is made anew.
func layoutName(sets []*nftables.Set, chains []chain) string {
	h := sha256.New()
	for _, s := range sets {
		fmt.Fprintln(h, s.Name, s.IsMap, s.Concatenation, s.Counter, s.KeyType.Name, s.DataType.Name)
	}
	for _, c := range chains {
		if c.base != nil {
			fmt.Fprintln(h, c.name, c.base.Type, *c.base.Hooknum, *c.base.Priority, c.base.Device)
		}
	}
	return "layout-" + hex.EncodeToString(h.Sum(nil)[:6])
}
