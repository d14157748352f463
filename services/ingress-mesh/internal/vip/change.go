package vip

import (
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// kernelTable is the table as the kernel has it.
type kernelTable struct {
	flags  uint32
	chains map[string]*nftables.Chain
	tags   map[string][]string // by chain: the rules' comments
	sets   map[string]elements
}

// change is what makes the kernel's table the wanted one.
type change struct {
	anew    bool // the table is missing or cannot be changed in place: make it anew
	chains  []chain
	unused  []string
	remove  map[string][]string // by set: keys
	add     map[string][]string
	to      *layout
	opened  [2][]string // by family: addresses that are translated from now on
	writing bool
}

// sound says that everything that does not depend on the services is as it should be, and nothing else is there.
func (k *kernelTable) sound() bool {
	if k == nil || k.flags != 0 || len(k.sets) != len(sets()) {
		return false
	}
	for _, s := range sets() {
		if _, ok := k.sets[s.Name]; !ok {
			return false
		}
	}
	left := maps.Clone(k.chains)
	for _, c := range fixed() {
		h := left[c.name]
		if h == nil || c.base != nil && !sameHook(h, c.base) || !slices.Equal(k.tags[c.name], c.tags()) {
			return false
		}
		delete(left, c.name)
	}
	for name := range left {
		if c, ok := drawing(name); !ok || !slices.Equal(k.tags[name], c.tags()) {
			return false
		}
	}
	return true
}

func sameHook(a, b *nftables.Chain) bool {
	return a.Hooknum != nil && a.Priority != nil && a.Policy != nil &&
		*a.Hooknum == *b.Hooknum && *a.Priority == *b.Priority && *a.Policy == *b.Policy && a.Type == b.Type
}

// layout is the part of a sound table that depends on the services.
func (k *kernelTable) layout() *layout {
	l := &layout{sets: k.sets, chains: map[string]bool{}}
	for name := range k.chains {
		if _, ok := drawing(name); ok {
			l.chains[name] = true
		}
	}
	return l
}

// difference leads from one layout to another; from nil, a table is made anew.
func difference(from, to *layout) change {
	d := change{to: to, remove: map[string][]string{}, add: map[string][]string{}}
	if from == nil {
		d.anew, d.writing = true, true
		from = &layout{}
	}
	for _, name := range slices.Sorted(maps.Keys(to.chains)) {
		if !from.chains[name] {
			c, _ := drawing(name)
			d.chains = append(d.chains, c)
		}
	}
	for name := range from.chains {
		if !to.chains[name] {
			d.unused = append(d.unused, name)
		}
	}
	slices.Sort(d.unused)
	d.writing = d.writing || len(d.chains)+len(d.unused) > 0
	for set, want := range to.sets {
		is := from.sets[set]
		for k, e := range want {
			h, ok := is[k]
			if ok && h.same(e) {
				continue
			}
			if ok {
				d.remove[set] = append(d.remove[set], k)
			}
			d.add[set] = append(d.add[set], k)
			d.writing = true
		}
		for k := range is {
			if _, ok := want[k]; !ok {
				d.remove[set] = append(d.remove[set], k)
				d.writing = true
			}
		}
	}
	for i, f := range families {
		for _, k := range d.add[f.services] {
			if _, ok := from.sets[f.services][k]; !ok {
				d.opened[i] = append(d.opened[i], k)
			}
		}
	}
	return d
}

// perMessage keeps a list of elements within the 64 KiB of one netlink attribute.
const perMessage = 200

// write makes the change, and says how many transactions it took: one, and another before it when chains are added to
// a table in use. A packet goes through the rules as they were when it entered, but through the maps as they are, so it
// could be sent to a new chain that is still empty in its eyes; a chain that was there before is not.
func (d change) write(c *nftables.Conn) (transactions uint32, err error) {
	if d.anew {
		c.AddTable(table) // so that the removal succeeds when there is none
		c.DelTable(table)
		c.AddTable(table)
		for _, s := range sets() {
			if err := c.AddSet(s, nil); err != nil {
				return 0, err
			}
		}
		addChains(c, d.chains) // before the rules of those that lead there
		addChains(c, fixed())
	} else if len(d.chains) > 0 {
		addChains(c, d.chains)
		if err := c.Flush(); err != nil {
			return 0, err
		}
		transactions++
	}
	if err := d.writeElements(c); err != nil {
		return transactions, err
	}
	for _, name := range d.unused {
		c.DelChain(&nftables.Chain{Table: table, Name: name})
	}
	if err := c.Flush(); err != nil {
		return transactions, err
	}
	return transactions + 1, nil
}

func addChains(c *nftables.Conn, chains []chain) {
	for _, ch := range chains {
		n := &nftables.Chain{Table: table, Name: ch.name}
		if ch.base != nil {
			n.Type, n.Hooknum, n.Priority, n.Policy = ch.base.Type, ch.base.Hooknum, ch.base.Priority, ch.base.Policy
		}
		c.AddChain(n)
		for i, tag := range ch.tags() {
			c.AddRule(&nftables.Rule{Table: table, Chain: n, Exprs: ch.rules[i].exprs, UserData: []byte(tag)})
		}
	}
}

func (d change) writeElements(c *nftables.Conn) error {
	for _, s := range sets() {
		for keys := range slices.Chunk(d.remove[s.Name], perMessage) {
			list := make([]nftables.SetElement, 0, len(keys))
			for _, k := range keys {
				list = append(list, nftables.SetElement{Key: []byte(k)})
			}
			if err := c.SetDeleteElements(s, list); err != nil {
				return err
			}
		}
		for keys := range slices.Chunk(d.add[s.Name], perMessage) {
			list := make([]nftables.SetElement, 0, len(keys))
			for _, k := range keys {
				e := d.to.sets[s.Name][k]
				n := nftables.SetElement{Key: []byte(k), Comment: e.comment}
				switch {
				case s.DataType == nftables.TypeVerdict:
					n.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: e.val}
				case s.IsMap:
					n.Val = []byte(e.val)
				}
				list = append(list, n)
			}
			if err := c.SetAddElements(s, list); err != nil {
				return err
			}
		}
	}
	return nil
}
