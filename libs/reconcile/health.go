package reconcile

import (
	"fmt"
	"slices"
	"strings"

	"skep.dev/libs/constraint"
	skepv1 "skep.dev/proto/skep/v1"
)

// A task that is reported as unhealthy is out of traffic already. It is ended and replaced by the restart policy, as
// one that failed, but under a budget: when what all of them depend on breaks, replacing all of them at once would
// only add to the trouble. A unit is down for its health from the verdict until one of its tasks serves again; records
// say so (TaskRecord.for_health) even when history has forgotten the verdict.

const (
	// unhealthyErr begins the error of a task that was ended for its health.
	unhealthyErr = "unhealthy container"
	// maxOutput bytes of the probe's last line are kept.
	maxOutput = 256
)

// sense notes whether a report calls the task unhealthy, and tells whether that is news.
func (s *State) sense(t *Task, r *skepv1.TaskStatus) bool {
	said, was := s.sick[t]
	st := TaskState(r.GetState())
	if r.GetHealth() != skepv1.HealthState_HEALTH_STATE_UNHEALTHY || st < Starting || st > Running || t.Seen > Running {
		delete(s.sick, t)
		return was
	}
	if line := lastLine(r.GetHealthOutput()); !was || line != said {
		s.sick[t] = line
	}
	return !was
}

// lastLine is the last line of a text that says something.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	text = strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:])
	if len(text) > maxOutput {
		text = text[:maxOutput]
	}
	return strings.Clone(strings.ToValidUTF8(text, "")) // not the whole report with it
}

// endedForHealth: the scheduler's verdict on it is that it was unhealthy.
func (t *Task) endedForHealth() bool {
	return t.Verdict == Failed && strings.HasPrefix(t.more().Err, unhealthyErr)
}

// downForHealth: one of the unit's tasks was ended for its health, and none has served since.
func (s *State) downForHealth(unit []*Task) bool {
	for _, t := range unit {
		if _, sick := s.sick[t]; t.wanted() && t.Seen == Running && !sick {
			return false
		}
	}
	var served int64 // when the newest was made that served once
	// after are those that one replaced which served: an update makes it before the verdict on the task it replaces.
	var after []string
	for _, t := range unit {
		if t.served && !t.endedForHealth() {
			served = max(served, t.Created)
			after = append(after, t.more().Replaces)
		}
	}
	return slices.ContainsFunc(unit, func(t *Task) bool {
		return t.endedForHealth() && max(t.VerdictAt, t.Created) > served && !slices.Contains(after, t.ID) ||
			t.more().ForHealth && t.Created > served
	})
}

// triage is whose turn it is among a service's unhealthy tasks.
type triage struct {
	budget, down int
	end          map[*Task]bool
}

// triage counts the units that are down for their health and takes as many unhealthy tasks as the budget has left, the
// oldest first, so that each has its turn. What is in a unit that is down already costs nothing more.
func (p *planner) triage() *triage {
	if p.care != nil {
		return p.care
	}
	c := &triage{budget: p.healthBudget(), end: map[*Task]bool{}}
	p.care = c
	type patient struct {
		t    *Task
		unit int
	}
	var wait []patient
	for i := range p.units {
		u := &p.units[i]
		if u.node != nil && !p.meantFor(u.node) {
			continue
		}
		down := p.s.downForHealth(u.tasks)
		if down {
			c.down++
		}
		for _, t := range u.tasks {
			switch {
			case !p.ails(t):
			case down:
				c.end[t] = true
			default:
				wait = append(wait, patient{t, i})
			}
		}
	}
	slices.SortFunc(wait, func(a, b patient) int {
		if a.t.Created != b.t.Created {
			return compare(a.t.Created, b.t.Created)
		}
		return compare(a.t.ID, b.t.ID)
	})
	taken := map[int]bool{}
	for _, w := range wait {
		if !taken[w.unit] {
			if c.down >= c.budget {
				continue
			}
			taken[w.unit] = true
			c.down++
		}
		c.end[w.t] = true
	}
	return c
}

// healthBudget is how many units of the service may be down for their health at once.
func (p *planner) healthBudget() int {
	if p.v.budget > 0 {
		return int(min(p.v.budget, 1<<31))
	}
	n := 0
	switch p.v.mode {
	case global, globalJob:
		for _, x := range p.s.byID {
			if p.meantFor(x) && p.platform(x) {
				n++
			}
		}
	case replicatedJob:
		n = int(min(p.v.parallel, p.v.replicas))
	default:
		n = int(p.v.replicas)
	}
	return max(1, n/4)
}

// meantFor: a global service has a task there.
func (p *planner) meantFor(n *Node) bool {
	return n.Exists && !n.drained() && !p.v.never && constraint.MatchAll(p.v.limits, &n.attrs)
}

// ails: it is unhealthy by its node's word, which is not an old one.
func (p *planner) ails(t *Task) bool {
	if _, sick := p.s.sick[t]; !sick {
		return false
	}
	n := t.Node()
	return t.wanted() && t.Desired != Ready && n != nil && n.Exists && n.State == skepv1.NodeState_NODE_STATE_READY && !n.drained()
}

// endUnhealthy ends an unhealthy task if it is its turn; otherwise its record says what it waits for.
func (p *planner) endUnhealthy(t *Task) bool {
	if len(p.s.sick) == 0 || !p.ails(t) {
		return false
	}
	c := p.triage()
	if !c.end[t] {
		why := fmt.Sprintf("unhealthy, not replaced: %d of at most %d replaced for health now", c.down, c.budget)
		if t.more().Err != why {
			p.change(Change{Old: t, Node: t.Node(), Verb: Hold, Reason: why, New: t.copyWith(func(n *Task) { n.edit().Err = why })})
		}
		return false
	}
	why := unhealthyErr
	if line := p.s.sick[t]; line != "" {
		why += ": " + line
	}
	p.unhave(t)
	p.change(Change{Old: t, Node: t.Node(), Verb: Judge, Reason: why, New: t.copyWith(func(n *Task) {
		n.Desired, n.Verdict, n.VerdictAt = Shutdown, Failed, p.now
		m := n.edit()
		m.Message, m.Err = "ended for its health", why
	})})
	return true
}
