// Package antispoof lets a task send as itself alone: on a bridge of tasks, a packet is taken from a task's link only
// with the MAC and the IPv4 or IPv6 address of that task as its source, also in ARP and neighbour discovery. Everything
// else that comes in there is dropped: other protocols, VLAN tags, router advertisements, requests for an address.
// With a port to other nodes, nobody behind that says who has an address, either.
//
// It owns the nftables table `bridge skep_ports` of one network namespace: one chain for all tasks, and a set of port, MAC and
// address for each address family, so that what a packet costs does not grow with the number of tasks. It looks only at
// ports whose names begin with "sk", those of tasks; of these, one that is in no set may send nothing.
//
// Failure story: the kernel goes on by itself. Who removes the table opens the bridge until the next Apply. On a kernel
// without nftables for bridges tasks run unguarded, and Verify says so.
package antispoof

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"skep.dev/services/ingress-mesh/internal/ruleset"
)

// Port is a task's link on a bridge.
type Port struct {
	Link  string     // the bridge's end
	Addr  netip.Addr // IPv4; the MAC is the one that goes with it (ipam.MAC)
	Addr6 netip.Addr // invalid: the task has no IPv6 there
}

// Table is the rules of one namespace. Its methods may be called from any goroutine.
type Table struct {
	ns     netns.NsHandle
	fabric string

	mu         sync.Mutex
	nft        *nftables.Conn // nil while not open
	nl         *netlink.Conn  // beneath it
	have       map[string]map[string]bool
	generation uint32 // of the ruleset when it held have; 0: unknown
	lacks      string // what the kernel cannot do; then nothing is ever written

	writes atomic.Uint32
}

// New changes nothing. ns is the namespace, which stays the caller's; fabric is the bridge's port to other nodes, "" if
// it has none.
func New(ns netns.NsHandle, fabric string) *Table { return &Table{ns: ns, fabric: fabric} }

// Close frees what the process holds; the rules stay. The Table may be used again.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reset()
}

// reset drops a connection of which it is not known what it will answer next.
func (t *Table) reset() {
	if t.nft != nil {
		_ = t.nft.CloseLasting()
	}
	t.nft, t.nl, t.have, t.generation = nil, nil, nil, 0
}

// Writes is how many transactions it has made: by so much the generation of the namespace's ruleset has grown through it.
func (t *Table) Writes() uint32 { return t.writes.Load() }

// Apply lets these ports send as themselves, and no others. It writes differences only, in one transaction, and says
// what somebody else had changed, or that this kernel cannot do it, "" for nothing. When nobody did and the ports are the same, it costs one question to
// the kernel.
func (t *Table) Apply(ports []Port) (found string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lacks != "" {
		return "", nil
	}
	knew := t.generation != 0
	missing, err := t.look()
	if err != nil {
		return "", err
	}
	want := elements(byLink(ports))
	var do []func()
	switch {
	case missing != "":
		do = t.rebuild(want)
		if knew {
			found = missing
		}
	default:
		do = t.difference(want)
	}
	if len(do) == 0 {
		return found, nil
	}
	for _, f := range do {
		f()
	}
	if err := t.nft.Flush(); err != nil {
		t.reset()
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			t.lacks = fmt.Sprintf("tasks of this node can send in one another's name: its kernel has no nftables for bridges (load module nf_tables_bridge, or build NF_TABLES_BRIDGE, and start skep again): %v", err)
			return t.lacks, nil
		}
		return "", fmt.Errorf("write nftables table bridge %s: %w", tableName, err)
	}
	t.writes.Add(1)
	t.have = want
	t.generation++ // if somebody else wrote meanwhile, this is wrong, and the next Apply looks
	return found, nil
}

// Unchanged reports, by one question to the kernel, whether nobody has written any nftables in the namespace since the
// last Apply.
func (t *Table) Unchanged() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nft == nil || t.have == nil {
		return t.lacks != ""
	}
	err := t.open() // a new deadline
	if err == nil {
		var gen uint32
		if gen, err = ruleset.Version(t.nl); err == nil {
			return gen == t.generation
		}
	}
	t.reset()
	return false
}

// Verify says how the kernel differs from what Apply would make of it, and changes nothing.
func (t *Table) Verify(ports []Port) (findings []string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lacks != "" {
		return []string{t.lacks}, nil
	}
	missing, err := t.look()
	if err != nil || missing != "" {
		return []string{missing}[:min(1, len(missing))], err
	}
	want := elements(byLink(ports))
	for _, s := range sets {
		if !maps.Equal(t.have[s.Name], want[s.Name]) {
			findings = append(findings, fmt.Sprintf("nft table bridge %s: set %s has other links than those of tasks", tableName, s.Name))
		}
	}
	return findings, nil
}

// Remove takes the table away.
func (t *Table) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.reset()
	if err := t.open(); err != nil {
		return err
	}
	have, err := t.nft.ListTableOfFamily(tableName, table.Family)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("look up nftables table bridge %s: %w", tableName, err)
	}
	if err != nil || have == nil {
		return nil
	}
	t.nft.DelTable(table)
	if err := t.nft.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table bridge %s: %w", tableName, err)
	}
	t.writes.Add(1)
	return nil
}

func byLink(ports []Port) map[string]Port {
	out := make(map[string]Port, len(ports))
	for _, p := range ports {
		out[p.Link] = p
	}
	return out
}

// look makes have what the kernel has, and says why the table must be made anew, "" if it need not.
func (t *Table) look() (missing string, err error) {
	if err := t.open(); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			t.reset()
		}
	}()
	gen, err := ruleset.Version(t.nl)
	if err != nil || gen == t.generation && t.have != nil {
		return "", err
	}
	for range 10 {
		if missing, err = t.read(); err != nil {
			return "", err
		}
		after, err := ruleset.Version(t.nl)
		if err != nil {
			return "", err
		}
		if after == gen {
			t.generation = gen
			return missing, nil
		}
		gen = after
	}
	return "", fmt.Errorf("read nftables table bridge %s: the ruleset changes all the time (see `nft monitor`)", tableName)
}

func (t *Table) read() (missing string, err error) {
	t.have = nil
	wrong := func(why string) (string, error) { return "nft table bridge " + tableName + " " + why, nil }
	is, err := t.nft.ListTableOfFamily(tableName, table.Family)
	switch {
	case errors.Is(err, unix.ENOENT), err == nil && is == nil:
		return wrong("is missing")
	case err != nil:
		return "", fmt.Errorf("look up nftables table bridge %s: %w", tableName, err)
	case is.Flags != 0:
		return wrong("is switched off (flags dormant)")
	}
	chains, err := t.nft.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return "", fmt.Errorf("list the nftables chains of bridges: %w", err)
	}
	there := func(name string) bool {
		return slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name == tableName && c.Name == name })
	}
	if !there(others.Name) || !slices.ContainsFunc(chains, inPlace) {
		return wrong("has no chain " + chainName + " where it should be")
	}
	want := rules(t.fabric)
	for _, c := range []*nftables.Chain{chain, others} {
		list, err := t.nft.GetRules(table, c)
		if err != nil {
			return "", fmt.Errorf("list the rules of nftables table bridge %s: %w", tableName, err)
		}
		if !slices.EqualFunc(list, want[c], func(a *nftables.Rule, b rule) bool { return string(a.UserData) == string(b.userData()) }) {
			return wrong("has other rules")
		}
	}
	have := map[string]map[string]bool{}
	for _, s := range sets {
		elems, err := t.nft.GetSetElements(s)
		if errors.Is(err, unix.ENOENT) {
			return wrong("has no set " + s.Name)
		}
		if err != nil {
			return "", fmt.Errorf("list set %s of nftables table bridge %s: %w", s.Name, tableName, err)
		}
		have[s.Name] = make(map[string]bool, len(elems))
		for _, e := range elems {
			have[s.Name][string(e.Key)] = true
		}
	}
	t.have = have
	return "", nil
}

// inPlace: it is our chain, and at its hook.
func inPlace(c *nftables.Chain) bool {
	return c.Table.Name == tableName && c.Name == chainName && c.Hooknum != nil && *c.Hooknum == *chain.Hooknum &&
		c.Priority != nil && *c.Priority == chainPriority && c.Policy != nil && *c.Policy == chainPolicy
}

// rebuild is the whole table, in place of whatever has its name.
func (t *Table) rebuild(want map[string]map[string]bool) []func() {
	t.have = map[string]map[string]bool{}
	out := []func(){func() {
		t.nft.AddTable(table) // so that the removal succeeds when there is none
		t.nft.DelTable(table)
		t.nft.AddTable(table)
		for _, s := range sets {
			_ = t.nft.AddSet(s, nil) // fails for elements that cannot be encoded, and there are none
		}
		t.nft.AddChain(others)
		t.nft.AddChain(chain)
		for c, list := range rules(t.fabric) {
			for _, r := range list {
				t.nft.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: r.exprs, UserData: r.userData()})
			}
		}
	}}
	return append(out, t.difference(want)...)
}

// perMessage keeps a list of elements within the 64 KiB of one netlink attribute.
const perMessage = 200

func (t *Table) difference(want map[string]map[string]bool) (out []func()) {
	for _, s := range sets {
		write := func(from, to map[string]bool, f func(*nftables.Set, []nftables.SetElement) error) {
			var list []nftables.SetElement
			for key := range to {
				if !from[key] {
					list = append(list, nftables.SetElement{Key: []byte(key)})
				}
			}
			for batch := range slices.Chunk(list, perMessage) {
				out = append(out, func() { _ = f(s, batch) }) // fails for elements that cannot be encoded: these can
			}
		}
		write(want[s.Name], t.have[s.Name], t.nft.SetDeleteElements)
		write(t.have[s.Name], want[s.Name], t.nft.SetAddElements)
	}
	return out
}

// patience is for an answer that never comes, rather than for a slow one.
const patience = time.Minute

func (t *Table) open() error {
	if t.nft != nil {
		return t.nl.SetDeadline(time.Now().Add(patience))
	}
	options := func(nl *netlink.Conn) error {
		t.nl = nl
		return errors.Join(nl.SetReadBuffer(4<<20), nl.SetWriteBuffer(4<<20), nl.SetDeadline(time.Now().Add(patience)))
	}
	nft, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(t.ns)), nftables.WithSockOptions(options))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t.nft = nft
	return nil
}
