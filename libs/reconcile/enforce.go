package reconcile

import (
	"slices"

	"skep.dev/libs/constraint"
	skepv1 "skep.dev/proto/skep/v1"
)

// violates: the constraints it was placed by no longer hold where it is, or its node has become too small.
func (p *planner) violates(t *Task) bool {
	n := t.Node()
	if n.Availability != skepv1.Availability_AVAILABILITY_ACTIVE {
		return false
	}
	if r := p.v.revs[t.Revision]; (r == nil || r.place == p.v.current.place) && len(p.v.limits) > 0 && !constraint.MatchAll(p.v.limits, &n.attrs) {
		return true
	}
	return p.overcommitted(t)
}

// overcommitted: t is one of those its node, shrunk, has no room for; the newest go first.
func (p *planner) overcommitted(t *Task) bool {
	n := t.Node()
	if !p.s.usage(n).over || n.Availability != skepv1.Availability_AVAILABILITY_ACTIVE {
		return false
	}
	if p.victims == nil {
		p.victims = map[*Node]map[*Task]bool{}
	}
	v := p.victims[n]
	if v == nil {
		v = map[*Task]bool{}
		p.victims[n] = v
		all := slices.Clone(n.page.Tasks)
		slices.SortFunc(all, func(a, b *Task) int {
			if a.Created != b.Created {
				return compare(a.Created, b.Created)
			}
			return compare(a.ID, b.ID)
		})
		cpu, mem := n.cpu, n.mem
		for _, x := range all {
			if !x.wanted() {
				continue
			}
			r := x.request()
			if r.CPU > 0 && r.CPU > cpu || r.Memory > 0 && r.Memory > mem {
				v[x] = true
				continue
			}
			cpu -= r.CPU
			mem -= r.Memory
		}
	}
	return v[t]
}
