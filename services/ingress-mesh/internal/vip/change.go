package vip

import (
	"errors"
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
	twin   bool // there is one still: somebody ended while the table was made anew
}

// change is what makes the kernel's table the wanted one.
type change struct {
	anew    bool // the table is missing or cannot be changed in place: make it anew
	chains  []chain
	unused  []string
	lay     map[string][]string // by set: keys of what is referred to from the turn on
	remove  map[string][]string // at the turn
	add     map[string][]string
	sweep   map[string][]string // what is not referred to any more
	to      *layout
	opened  [2][]string // by family: addresses that are translated from now on
	writing bool
}

// sound says that everything that does not depend on the services is as it should be, and nothing else is there.
func (k *kernelTable) sound() bool {
	if k == nil || k.flags != 0 || k.twin || len(k.sets) != len(sets(table)) {
		return false
	}
	for _, s := range sets(table) {
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
	d := change{to: to, lay: map[string][]string{}, remove: map[string][]string{}, add: map[string][]string{}, sweep: map[string][]string{}}
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
		is, lay, sweep := from.sets[set], d.add, d.remove
		switch set {
		case families[0].backends, families[1].backends:
			lay, sweep = d.lay, d.sweep
		case families[0].addresses, families[1].addresses:
			sweep = d.sweep
		}
		for k, e := range want {
			h, ok := is[k]
			if ok && h.same(e) {
				continue
			}
			d.writing = true
			if !ok {
				lay[set] = append(lay[set], k)
				continue
			}
			d.remove[set] = append(d.remove[set], k)
			d.add[set] = append(d.add[set], k)
		}
		for k := range is {
			if _, ok := want[k]; !ok {
				sweep[set] = append(sweep[set], k)
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

// write makes the change, and says how many transactions it took. Their order, and why it is that, is in order.go of the
// package ingress: what is referred to is laid, then what refers to it turns, then the rest is swept away; a table that
// exists and is made anew has a twin meanwhile. Here a packet that drew what is gone is looked up once more.
func (d change) write(c *nftables.Conn, exists bool) (transactions uint32, err error) {
	var stages []func() error
	switch {
	case d.anew && exists:
		stages = []func() error{
			func() error { return d.make(c, twin) },
			func() error { return d.make(c, table) },
			func() error { c.DelTable(twin); return nil },
		}
	case d.anew:
		stages = []func() error{func() error { return d.make(c, table) }}
	default:
		if len(d.chains)+len(d.lay) > 0 {
			stages = append(stages, func() error {
				addChains(c, table, d.chains)
				return d.addElements(c, table, d.lay)
			})
		}
		if len(d.remove)+len(d.add) > 0 {
			stages = append(stages, func() error {
				return errors.Join(removeElements(c, d.remove), d.addElements(c, table, d.add))
			})
		}
		if len(d.sweep)+len(d.unused) > 0 {
			stages = append(stages, func() error {
				for _, name := range d.unused {
					c.DelChain(&nftables.Chain{Table: table, Name: name})
				}
				return removeElements(c, d.sweep)
			})
		}
	}
	for _, stage := range stages {
		if err := stage(); err != nil {
			return transactions, err
		}
		if err := c.Flush(); err != nil {
			return transactions, err
		}
		transactions++
	}
	return transactions, nil
}

// make has all of the table in one transaction.
func (d change) make(c *nftables.Conn, t *nftables.Table) error {
	c.AddTable(t) // so that the removal succeeds when there is none
	c.DelTable(t)
	c.AddTable(t)
	for _, s := range sets(t) {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	addChains(c, t, d.chains) // before the rules of those that lead there
	addChains(c, t, fixed())
	return errors.Join(d.addElements(c, t, d.lay), d.addElements(c, t, d.add))
}

func addChains(c *nftables.Conn, table *nftables.Table, chains []chain) {
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

func removeElements(c *nftables.Conn, remove map[string][]string) error {
	for _, s := range sets(table) {
		for keys := range slices.Chunk(remove[s.Name], perMessage) {
			list := make([]nftables.SetElement, 0, len(keys))
			for _, k := range keys {
				list = append(list, nftables.SetElement{Key: []byte(k)})
			}
			if err := c.SetDeleteElements(s, list); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d change) addElements(c *nftables.Conn, t *nftables.Table, add map[string][]string) error {
	for _, s := range sets(t) {
		for keys := range slices.Chunk(add[s.Name], perMessage) {
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
