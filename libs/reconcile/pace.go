package reconcile

import (
	"fmt"
	"slices"
)

// pace starts the next units of a rollout that goes on, or ends it.
func (p *planner) pace(r *Rollout) {
	open := slices.ContainsFunc(p.dirty, func(u *unit) bool { return !p.failed.has(u) })
	n := int(p.v.control.canary)
	if p.v.back {
		n = 0
	}
	if !open && p.inflight == 0 {
		if n > 0 && len(p.units) == 0 { // scaled to nothing: there is no task that speaks for the revision
			p.sayCanary(r)
			return
		}
		if p.waited(r, p.v.update.monitor) {
			p.conclude(r)
		}
		return
	}
	// Those that failed wait until nothing better is to be done.
	slices.SortStableFunc(p.dirty, func(a, b *unit) int { return b2i(p.failed.has(a)) - b2i(p.failed.has(b)) })
	free := p.free(len(p.dirty))
	if n > 0 {
		left := n - int(p.reached())
		if left <= 0 && p.inflight == 0 {
			if p.waited(r, p.v.update.monitor) {
				p.sayCanary(r)
			}
			return
		}
		free = min(free, left)
	}
	if free <= 0 || len(p.dirty) == 0 {
		return
	}
	// A new batch, and the first one needs no delay before it.
	if p.v.update.delay > 0 && p.started() {
		if p.inflight > 0 || !p.waited(r, p.v.update.delay) {
			return
		}
	}
	r.LastBatchUnixMs = 0
	p.startNext(free)
}

func (p *planner) sayCanary(r *Rollout) {
	p.say(r, stateCanary, fmt.Sprintf("%d of %d tasks run revision %d: skep service promote or abort", p.reached(), p.wantedUnits(), p.v.revision))
}

// started: the rollout made a task already.
func (p *planner) started() bool {
	for i := range p.units {
		for _, t := range p.units[i].tasks {
			if t.Revision == p.v.revision {
				return true
			}
		}
	}
	return false
}

// waited: so long ago, in ms, the last batch came up. It notes that it has.
func (p *planner) waited(r *Rollout, long int64) bool {
	if long <= 0 || !p.started() {
		return true
	}
	if r.LastBatchUnixMs == 0 {
		r.LastBatchUnixMs = p.now
	}
	left := r.LastBatchUnixMs + long - p.now
	if left <= 0 || left > long { // a time to come was noted by a clock that has been put back since
		return true
	}
	p.wake(p.now + left)
	return false
}

// free is how many units may be started beside those that are under way.
func (p *planner) free(most int) int {
	if n := p.v.update.parallelism; n > 0 {
		return min(most, n-p.inflight)
	}
	return most
}

// startNext begins the update of the next n units.
func (p *planner) startNext(n int) {
	for i := 0; i < n && i < len(p.dirty); i++ {
		p.start(p.dirty[i])
	}
}

// keepUp goes on with the out-of-date units whose turn has not come: one that waits to be restarted is, as it was.
func (p *planner) keepUp() {
	for _, u := range p.dirty {
		if u.begun || len(u.stale) != 1 || u.stale[0].Desired != Ready {
			continue
		}
		u.fresh, u.stale = u.stale[0], nil
		p.advance(u, false)
	}
}

// reached is how many units have come to, or are on their way to, the newest revision.
func (p *planner) reached() uint64 { return uint64(len(p.units) - len(p.dirty) - p.behind) }

// wantedUnits is how many units the service has.
func (p *planner) wantedUnits() int {
	if p.v.perNode() {
		return len(p.units)
	}
	return int(p.v.replicas)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
