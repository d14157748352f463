package ingress

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// wantedTable is a table of ours as it should be.
type wantedTable struct {
	table  *nftables.Table
	sets   []*nftables.Set
	chains []chain
	elems  map[string]elements
}

func wantedTables(c *Config, p plan) []wantedTable {
	elems := p.elements()
	host, fabric := hostChains(c, p.filtered), fabricChains()
	hostSets, fabricSets := setDefs(hostTable), setDefs(fabricTable)
	host = append(host, chain{name: layoutName(hostSets, host)})
	fabric = append(fabric, chain{name: layoutName(fabricSets, fabric)})
	for _, n := range p.v4.sizes() {
		host = append(host, inet4.pick(n))
	}
	for _, n := range p.v6.sizes() {
		host = append(host, inet6.pick(n))
	}
	return []wantedTable{
		{hostTable, hostSets, host, elems},
		{fabricTable, fabricSets, fabric, elems},
	}
}

// change is a difference between the kernel and what should be, and what undoes it in the transaction of its stage.
type change struct {
	at   stage
	what string // empty: part of another one
	do   func(*nftables.Conn) error
}

func (w wantedTable) layout() string {
	for _, c := range w.chains {
		if c.base == nil && len(c.rules) == 0 {
			return c.name
		}
	}
	return ""
}

// made is the table as reading it back would show it.
func (w wantedTable) made() *tableState {
	t := emptyTable()
	for _, c := range w.chains {
		t.chains[c.name] = &nftables.Chain{Name: c.name, Table: w.table}
		if c.base != nil {
			t.chains[c.name] = c.base
		}
		t.rules[c.name] = w.comments(c)
	}
	for _, s := range w.sets {
		t.sets[s.Name] = w.elems[s.Name]
	}
	return t
}

// comments are those the chain's rules have.
func (w wantedTable) comments(c chain) []string {
	out := []string{}
	for _, r := range c.rules {
		out = append(out, string(r.userData(w.table.Family)))
	}
	return out
}

func (w wantedTable) name() string {
	if w.table.Family == nftables.TableFamilyNetdev {
		return "nft table netdev " + w.table.Name
	}
	return "nft table inet " + w.table.Name
}

// changes are, within each stage, in the order the kernel takes them in: what is referred to before what refers to it,
// and the other way round for removals. A table that cannot be changed in place is made anew.
func (w wantedTable) changes(have *tableState) []change {
	why := w.beyondRepair(have)
	if why == "" {
		return w.differences(have)
	}
	out := []change{{turn, w.name() + " " + why, nil}}
	if have != nil {
		next := w.twin()
		out = append(append(out, next.anew(lay)...), change{sweep, "", next.drop})
	}
	return append(out, w.anew(turn)...)
}

// anew makes the whole table in one transaction.
func (w wantedTable) anew(at stage) []change {
	out := []change{{at, "", func(c *nftables.Conn) error {
		c.AddTable(w.table) // so that the removal below succeeds when there is none
		c.DelTable(w.table)
		c.AddTable(w.table)
		return nil
	}}}
	for _, ch := range w.differences(w.bare()) {
		out = append(out, change{at, "", ch.do})
	}
	return out
}

func (w wantedTable) drop(c *nftables.Conn) error {
	c.DelTable(w.table)
	return nil
}

// twin is the same table under another name.
func (w wantedTable) twin() wantedTable {
	w.table = twinOf(w.table)
	w.sets = setDefs(w.table)
	return w
}

func (w wantedTable) differences(have *tableState) []change {
	var out []change
	out = append(out, w.missingSets(have)...)
	chains, rules := w.chainChanges(have)
	out = append(out, chains...)
	out = append(out, w.elementChanges(have)...)
	out = append(out, rules...)
	return append(out, w.removals(have)...)
}

// bare is a table that has nothing but its layout: beyondRepair finds nothing, everything else is missing.
func (w wantedTable) bare() *tableState {
	t := emptyTable()
	t.chains[w.layout()] = nil
	return t
}

func (w wantedTable) beyondRepair(have *tableState) string {
	if have == nil {
		return "is missing"
	}
	ch, ok := have.chains[w.layout()]
	switch {
	case !ok:
		return "is of another version"
	case have.flags != 0:
		return "is switched off (flags dormant)"
	case ch == nil:
		return ""
	}
	for _, c := range w.chains {
		h := have.chains[c.name]
		if h != nil && c.base != nil && !sameHook(h, c.base) {
			return fmt.Sprintf("has chain %s at another place or with another policy", c.name)
		}
	}
	return ""
}

func sameHook(a, b *nftables.Chain) bool {
	return a.Hooknum != nil && a.Priority != nil && a.Policy != nil &&
		*a.Hooknum == *b.Hooknum && *a.Priority == *b.Priority && *a.Policy == *b.Policy && a.Type == b.Type
}

func (w wantedTable) missingSets(have *tableState) (out []change) {
	for _, s := range w.sets {
		if _, ok := have.sets[s.Name]; !ok {
			out = append(out, change{lay, fmt.Sprintf("%s: set %s is missing", w.name(), s.Name), func(c *nftables.Conn) error { return c.AddSet(s, nil) }})
		}
	}
	return out
}

// chainChanges makes and empties chains, and fills them again: between the two, elements may refer to them.
func (w wantedTable) chainChanges(have *tableState) (chains, rules []change) {
	for _, ch := range w.chains {
		n := &nftables.Chain{Name: ch.name, Table: w.table}
		if ch.base != nil {
			n.Type, n.Hooknum, n.Priority, n.Policy, n.Device = ch.base.Type, ch.base.Hooknum, ch.base.Priority, ch.base.Policy, ch.base.Device
		}
		want, at := w.comments(ch), turn
		if h, ok := have.chains[ch.name]; !ok || h == nil {
			if ch.base == nil {
				at = lay
			}
			chains = append(chains, change{at, fmt.Sprintf("%s: chain %s is missing", w.name(), ch.name), func(c *nftables.Conn) error { c.AddChain(n); return nil }})
		} else if slices.Equal(have.rules[ch.name], want) {
			continue
		} else {
			chains = append(chains, change{at, fmt.Sprintf("%s: the rules of chain %s are not as they should be", w.name(), ch.name), func(c *nftables.Conn) error { c.FlushChain(n); return nil }})
		}
		rules = append(rules, change{at, "", func(c *nftables.Conn) error {
			for i, r := range ch.rules {
				c.AddRule(&nftables.Rule{Table: w.table, Chain: n, Exprs: r.exprs, UserData: []byte(want[i])})
			}
			return nil
		}})
	}
	return chains, rules
}

// perMessage keeps a list of elements within the 64 KiB of one netlink attribute.
const perMessage = 200

func (w wantedTable) elementChanges(have *tableState) (out []change) {
	var removals, additions []change
	for _, s := range w.sets {
		want, is := w.elems[s.Name], have.sets[s.Name]
		var missing, wrong, extra []string
		for k, e := range want {
			if h, ok := is[k]; !ok {
				missing = append(missing, k)
			} else if !e.same(h) {
				wrong = append(wrong, k)
			}
		}
		for k := range is {
			if _, ok := want[k]; !ok {
				extra = append(extra, k)
			}
		}
		first, last := turn, turn
		if referred[s.Name] {
			first, last = lay, sweep
		}
		for what, keys := range map[string][]string{"lacks": missing, "is wrong about": wrong, "should not have": extra} {
			slices.Sort(keys)
			if len(keys) > 0 {
				removals = append(removals, change{turn, fmt.Sprintf("%s: set %s %s %s", w.name(), s.Name, what, describeKeys(s.Name, keys)), nil})
			}
		}
		remove := func(at stage, keys []string) {
			for batch := range slices.Chunk(keys, perMessage) {
				removals = append(removals, change{at, "", func(c *nftables.Conn) error { return c.SetDeleteElements(s, setElements(nil, batch)) }})
			}
		}
		add := func(at stage, keys []string) {
			for batch := range slices.Chunk(keys, perMessage) {
				additions = append(additions, change{at, "", func(c *nftables.Conn) error { return c.SetAddElements(s, setElements(want, batch)) }})
			}
		}
		remove(turn, wrong)
		remove(last, extra)
		add(first, missing)
		add(turn, wrong)
	}
	return append(removals, additions...)
}

// setElements are those of want, or with none the bare keys.
func setElements(want elements, keys []string) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(keys))
	for _, k := range keys {
		out = append(out, want[k].setElement(k, want == nil))
	}
	return out
}

func (w wantedTable) removals(have *tableState) (out []change) {
	keep := map[string]bool{}
	for _, c := range w.chains {
		keep[c.name] = true
	}
	for _, s := range w.sets {
		keep["set "+s.Name] = true
	}
	var gone []*nftables.Chain
	for _, name := range slices.Sorted(maps.Keys(have.chains)) {
		if !keep[name] {
			gone = append(gone, &nftables.Chain{Name: name, Table: w.table})
		}
	}
	for _, ch := range gone { // they may jump to one another
		out = append(out, change{sweep, fmt.Sprintf("%s: chain %s should not be there", w.name(), ch.Name), func(c *nftables.Conn) error { c.FlushChain(ch); return nil }})
	}
	for _, ch := range gone {
		out = append(out, change{sweep, "", func(c *nftables.Conn) error { c.DelChain(ch); return nil }})
	}
	for _, name := range slices.Sorted(maps.Keys(have.sets)) {
		if !keep["set "+name] {
			out = append(out, change{sweep, fmt.Sprintf("%s: set %s should not be there", w.name(), name), func(c *nftables.Conn) error {
				c.DelSet(&nftables.Set{Table: w.table, Name: name})
				return nil
			}})
		}
	}
	return out
}

// commit runs the changes, those of each stage in one transaction, and says how many transactions there were.
func commit(changes []change) (transactions uint32, err error) {
	for _, at := range []stage{lay, turn, sweep} {
		var now []change
		for _, ch := range changes {
			if ch.at == at && ch.do != nil {
				now = append(now, ch)
			}
		}
		if len(now) == 0 {
			continue
		}
		if err := transact(now); err != nil {
			return transactions, err
		}
		transactions++
	}
	return transactions, nil
}

func transact(changes []change) error {
	c, err := openNftables()
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseLasting() }()
	for _, ch := range changes {
		if err := ch.do(c); err != nil {
			return fmt.Errorf("encode nftables changes: %w", err)
		}
	}
	if err := c.Flush(); errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("write nftables (%d changes, none of them made; the egress hook of netdev tables needs Linux 5.16): %w", len(changes), err)
	} else if err != nil {
		return fmt.Errorf("write nftables (%d changes, none of them made): %w", len(changes), err)
	}
	return nil
}
