package reconcile

import (
	"slices"

	"skep.dev/libs/place"
	skepv1 "skep.dev/proto/skep/v1"
)

// While a rollout waits for a word, nobody has said that its revision is good. What has to be made anew meanwhile (a
// scale, a node that died, a restart) is then of the last good revision, unless its unit was of the newest one already.
// Swarm makes all of it of the newest.

// standing is the revision of what is made anew in the units that v's rollout has not reached.
func (s *State) standing(v *Service) uint64 {
	if v.job() || v.back || !v.Exists {
		return v.revision
	}
	c, r, stable := &v.control, v.rollout.record(), uint64(0)
	waits := c.paused
	switch {
	case r.GetRevision() != v.revision: // it has not begun
		if waits {
			stable = v.stable()
		}
	case v.rollout.over():
		waits = false
	default:
		stable = r.GetStable()
		switch {
		case r.GetRollingBackTo() != 0:
			waits = true
		case r.GetStatus().GetState() == statePaused:
			waits = c.paused || c.resume <= r.GetResume()
		case r.GetStatus().GetState() == stateCanary:
			waits = c.paused || c.canary > 0
		}
	}
	if !waits || !s.canRun(v, stable) || v.revs[stable].same(v.current) {
		return v.revision
	}
	return stable
}

// stable is the last good revision, for a rollout that begins.
func (v *Service) stable() uint64 {
	was := v.rollout
	switch {
	case was == nil:
		return v.previous
	case !was.over():
		return was.GetStable() // what failed half-way is nothing to go back to
	}
	// Revisions since then that needed no new task (labels, ports) are as good, and newer.
	n := was.GetRevision()
	if a, b := v.revs[v.previous], v.revs[n]; v.previous > n && a != nil && b != nil && a.core == b.core {
		return v.previous
	}
	return n
}

// canRun: the revision is known and kept, and the networks that its tasks join are there.
func (s *State) canRun(v *Service, number uint64) bool {
	r := v.revs[number]
	return r != nil && !r.gone && !slices.ContainsFunc(r.networks, func(id string) bool { return !s.networks[id] })
}

// putNetwork notes that a network is there, and may be joined.
func (s *State) putNetwork(id string, o *skepv1.Network) {
	if is := o != nil && !o.GetRemoving(); is == s.networks[id] {
		return
	} else if is {
		s.networks[id] = true
	} else {
		delete(s.networks, id)
	}
	// Which revision can be run may be another now.
	for _, v := range s.services {
		if v.rollout != nil && !v.rollout.over() {
			s.mark(v)
		}
	}
}

// same: both ask for the same container, placed by the same rules.
func (r *revision) same(o *revision) bool {
	return r != nil && o != nil && r.core == o.core && r.place == o.place
}

// runs: it runs what a revision runs, wherever that is.
func (t *Task) runs(number uint64) bool {
	v := t.Service
	if t.Revision == number {
		return true
	}
	a, b := v.revs[t.Revision], v.revs[number]
	if number == v.revision {
		b = v.current
	}
	return a != nil && b != nil && a.core == b.core
}

// anew is the revision of a task that is made for a unit as it is, without an update.
func (p *planner) anew(u *unit) uint64 {
	if p.standing == p.v.revision || len(u.tasks) == 0 {
		return p.standing
	}
	if t := u.tasks[len(u.tasks)-1]; t.Revision == p.v.revision || p.v.revs[t.Revision].same(p.v.current) {
		return p.v.revision
	}
	return p.standing
}

// awaited: an unplaced task that its unit still wants.
func (p *planner) awaited(u *unit, t *Task) bool {
	if t.Revision != p.v.revision && t.Revision == p.standing {
		return len(u.stale) == 0
	}
	return t.sameCore() && (t.Revision == p.v.revision || t.upToDate())
}

// keepOne stops all but one of a unit's out-of-date tasks, while no newer one will take over: such as what took the place
// of one on a drained node that is drained no more. The one that is further stays, else the older.
func (p *planner) keepOne(u *unit) {
	for len(u.stale) > 1 {
		a, b := u.stale[0], u.stale[1]
		if b.State() > a.State() {
			a, b = b, a
		}
		p.stop(b, "a second task of one slot")
		u.stale = slices.Delete(u.stale, 0, 2)
		u.stale = slices.Insert(u.stale, 0, a)
	}
}

// request is what a task of a revision needs of its node.
func (v *Service) request(number uint64) *place.Request { return v.revisionOf(number).request }

func (v *Service) revisionOf(number uint64) *revision {
	if r := v.revs[number]; r != nil && number != v.revision {
		return r
	}
	return v.current
}
