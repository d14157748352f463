package reconcile

import (
	"slices"

	"skep.dev/libs/constraint"
)

func (p *planner) replicated() {
	n := int(p.v.replicas)
	if len(p.units) > n {
		p.scaleDown(n)
	}
	for i := range p.units {
		p.settle(&p.units[i], false)
	}
	p.fill(n - len(p.units))
}

// fill creates n tasks in the lowest free slots.
func (p *planner) fill(n int) {
	slot, next := uint64(1), 0
	for ; n > 0; slot++ {
		for next < len(p.units) && p.units[next].slot < slot {
			next++
		}
		if next < len(p.units) && p.units[next].slot == slot {
			continue
		}
		u := &unit{slot: slot}
		p.create(u, p.standing, nil, p.goalAfter(u, 0), 0, "")
		n--
	}
}

// scaleDown removes slots, in Swarm's order but stable: running ones are kept before others and low slots before high,
// then nodes are levelled (the n-th copy on its node goes before the n-1st); those without a node, or in the middle of
// an update, go first.
func (p *planner) scaleDown(keep int) {
	type candidate struct {
		u       int
		running bool
		nth     int
		single  *Task
	}
	all := make([]candidate, len(p.units))
	for i := range p.units {
		c := candidate{u: i, nth: -1}
		wanted := 0
		for _, t := range p.units[i].tasks {
			if t.wanted() {
				wanted++
				c.single = t
				c.running = c.running || t.State() == Running
			}
		}
		if wanted != 1 || c.single.Node() == nil {
			c.single = nil
		}
		all[i] = c
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		switch {
		case a.running != b.running && a.running:
			return -1
		case a.running != b.running:
			return 1
		}
		return compare(p.units[a.u].slot, p.units[b.u].slot)
	})
	copies := map[*Node]int{}
	for i := range all {
		if t := all[i].single; t != nil {
			all[i].nth = copies[t.Node()]
			copies[t.Node()]++
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		if (a.nth < 0) != (b.nth < 0) {
			if a.nth < 0 {
				return 1
			}
			return -1
		}
		return a.nth - b.nth
	})
	gone := make([]bool, len(p.units))
	for _, c := range all[keep:] {
		gone[c.u] = true
		for _, t := range p.units[c.u].tasks {
			p.unhave(t)
			p.remove(t, "scaled down")
		}
	}
	kept := p.units[:0]
	for i := range p.units {
		if !gone[i] {
			kept = append(kept, p.units[i])
		}
	}
	p.units = kept
}

// global keeps one task on every node that is available and meets the constraints.
func (p *planner) global() {
	v := p.v
	has := make(map[*Node]bool, len(p.units))
	for i := range p.units {
		u := &p.units[i]
		n := u.node
		has[n] = true
		if !n.Exists {
			for _, t := range u.tasks {
				p.remove(t, "its node was removed")
			}
			continue
		}
		if n.drained() || v.never || !constraint.MatchAll(v.limits, &n.attrs) {
			for _, t := range u.tasks {
				switch {
				case t.Node() == nil:
					p.forget(u, t, "not meant for this node any more")
				case t.Desired <= Complete && !(v.job() && t.State() == Complete):
					p.stop(t, "not meant for this node any more")
				default:
					p.past(t)
				}
			}
			p.trim(u)
			continue
		}
		p.settle(u, !n.accepts())
	}
	if p.closed {
		return
	}
	for _, n := range p.s.byID {
		if has[n] || !n.accepts() || v.never || !constraint.MatchAll(v.limits, &n.attrs) || !p.platform(n) {
			continue
		}
		u := &unit{node: n}
		p.create(u, p.standing, nil, p.goalAfter(u, 0), 0, "")
	}
}

// platform: a global service makes no task for a node its image does not run on.
func (p *planner) platform(n *Node) bool { return p.v.request(p.standing).RunsOn(&n.attrs) }
