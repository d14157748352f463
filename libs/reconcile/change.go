package reconcile

// What a plan can do to one task.

func (t *Task) copyWith(f func(n *Task)) *Task {
	n := *t
	f(&n)
	return &n
}

func (p *planner) stop(t *Task, reason string) {
	p.unhave(t)
	p.change(Change{Old: t, Node: t.Node(), Verb: Stop, Reason: reason, New: t.copyWith(func(n *Task) {
		n.Desired, n.VerdictAt = Shutdown, p.now
	})})
}

// unhave: it no longer counts as a task of the service on its node.
func (p *planner) unhave(t *Task) {
	if n := t.Node(); n != nil && n.index >= 0 && t.wanted() {
		p.have.add(n.index, -1)
	}
}

func (p *planner) reject(t *Task) {
	p.unhave(t)
	p.change(Change{Old: t, Node: t.Node(), Verb: Judge, Reason: "assigned node no longer meets constraints", New: t.copyWith(func(n *Task) {
		n.Desired, n.Verdict, n.VerdictAt = Shutdown, Rejected, p.now
		m := n.edit()
		m.Message, m.Err = "task rejected by constraint enforcer", "assigned node no longer meets constraints"
	})})
}

func (p *planner) orphan(t *Task) {
	reason := "Task belonged to a node that has been deleted"
	if t.Node().Exists {
		reason = "its node has been down for 24 hours"
	}
	p.change(Change{Old: t, Node: t.Node(), Verb: Judge, Reason: reason, New: t.copyWith(func(n *Task) {
		if n.Desired <= Complete {
			n.Desired = Shutdown
		}
		n.Verdict, n.VerdictAt = Orphaned, p.now
		n.edit().Message = reason
	})})
}

// past sees to a task that was told to stop: it is lost for good when its node is.
func (p *planner) past(t *Task) {
	n := t.Node()
	if n == nil || t.State() > Running {
		return
	}
	switch {
	case !n.Exists:
		p.orphan(t)
	case n.lost() && n.Since > 0:
		if at := n.Since + orphanAfter; p.now >= at {
			p.orphan(t)
		} else {
			p.wake(at)
		}
	}
}

// remove stops and deletes; the record goes once nothing of the task is left. A node that is down cannot tell: its
// record goes at once, and when it returns its agent removes what its set does not name.
func (p *planner) remove(t *Task, reason string) {
	n := t.Node()
	switch {
	case n == nil, n.lost() && !(p.v.Exists && p.mayRun(t)), t.Verdict == Orphaned, t.quiet():
		p.change(Change{Old: t, Node: n, Verb: Forget, Reason: reason})
	case t.Desired != Remove:
		p.change(Change{Old: t, Node: n, Verb: Delete, Reason: reason, New: t.copyWith(func(n *Task) {
			n.Desired, n.VerdictAt = Remove, p.now
		})})
	}
}

func (p *planner) forget(u *unit, t *Task, reason string) {
	u.dropped++
	p.change(Change{Old: t, Node: t.Node(), Verb: Forget, Reason: reason})
}

const (
	// crowdedPage is the size from which a node's page keeps hardly any history, whatever a service or the cluster asks
	// for: one that outgrew a message could not be written any more, and every plan would fail with it.
	crowdedPage    = 512 << 10
	crowdedHistory = 2 // of a unit, then
)

// trim keeps the newest tasks of a unit's history.
func (p *planner) trim(u *unit) {
	limit := int(p.s.history)
	if p.v.restart.attempts > 0 {
		limit = p.v.restart.attempts + 1
	}
	excess := len(u.tasks) + u.created - u.dropped - max(limit, 0)
	if limit < 0 {
		excess = 0
	}
	for i, t := range u.tasks {
		n := t.Node()
		crowded := len(u.tasks)-i > crowdedHistory && n != nil && n.page.size > crowdedPage
		if excess <= 0 && !crowded {
			continue
		}
		if t.Desired != Shutdown || n == nil || n.Exists && !t.quiet() || t == u.tasks[len(u.tasks)-1] && u.created == 0 && u.fresh == nil {
			continue // alive, or all that tells why the unit is empty
		}
		if p.changed(t) {
			continue
		}
		u.dropped++
		excess--
		p.change(Change{Old: t, Node: n, Verb: Forget, Reason: "history"})
	}
}

// changed: this plan touches t already. Only the tail of the changes, the unit at hand, can hold it.
func (p *planner) changed(t *Task) bool {
	c := p.out.Changes
	for i := len(c) - 1; i >= 0 && i > len(c)-64; i-- {
		if c[i].Old == t {
			return true
		}
	}
	return false
}
