package reconcile

import (
	"slices"

	"skep.dev/libs/place"
)

// place finds nodes for the service's tasks that need one. Pinned tasks go first, as in Swarm.
func (p *planner) place() {
	p.hold()
	p.wait()
	if len(p.wants) == 0 {
		return
	}
	if p.engine == nil {
		p.engine = p.s.engine()
	}
	var plain, credited, standing []*want
	for i := range p.wants {
		switch w, r := &p.wants[i], p.v.revisionOf(p.wants[i].task.Revision); {
		case r.bound():
			p.bound(w, r)
		case w.pin != nil:
			req := p.v.current.request
			if w.task.Revision == p.standing {
				req = p.v.request(p.standing)
			}
			p.pinned(w, w.pin, req)
		case w.task.Revision != p.v.revision && w.task.Revision == p.standing:
			standing = append(standing, w)
		case w.credit != nil:
			credited = append(credited, w)
		default:
			plain = append(plain, w)
		}
	}
	p.batch(plain, p.v.revision)
	p.batch(standing, p.standing)
	// What they replace makes way and should neither push them elsewhere nor count against a limit per node.
	for _, w := range credited {
		if n := w.credit.Node(); n.index >= 0 {
			p.have.add(n.index, -1)
		}
	}
	p.batch(credited, p.v.revision)
}

// batch places tasks of a revision that may go anywhere.
func (p *planner) batch(open []*want, revision uint64) {
	if len(open) == 0 {
		return
	}
	req := p.v.request(revision)
	got := p.engine.Place(make([]place.Placement, 0, len(open)), req, len(open), p.have.counts(), p.v.failuresOn(p.now, revision))
	for i := range got {
		p.assign(open[i], p.s.byID[got[i].Node], got[i].Assigned)
		p.have.add(got[i].Node, 1)
	}
	why := ""
	for _, w := range open[len(got):] {
		if w.credit != nil && w.credit.Node().accepts() {
			if at, _, ok := p.inPlaceOf(w.credit, req); ok {
				p.assign(w, w.credit.Node(), at.Assigned)
				p.have.add(at.Node, 1)
				continue
			}
		}
		if why == "" {
			why = p.engine.Why(req, p.have.counts())
		}
		if !p.instead(w, req, why) {
			p.unplaced(w, why)
		}
	}
}

// pinned places a global task on its node.
func (p *planner) pinned(w *want, n *Node, req *place.Request) {
	if n.index < 0 {
		p.unplaced(w, "no suitable node")
		return
	}
	at, filter, ok := p.engine.Pin(req, n.index, 0)
	if !ok && w.credit != nil {
		at, filter, ok = p.inPlaceOf(w.credit, req)
	}
	if ok {
		p.assign(w, n, at.Assigned)
		return
	}
	why := "no suitable node (" + filter.Text(1) + ")"
	if p.instead(w, req, why) {
		return
	}
	p.waitFor(w, n)
	p.unplaced(w, why)
}

// waitFor notes, in the record of a task that gets no node yet, which one it is meant for.
func (p *planner) waitFor(w *want, n *Node) {
	if w.task.more().WantsNode == n.ID {
		return
	}
	w.task = w.task.copyWith(func(t *Task) { t.edit().WantsNode = n.ID })
	if w.change >= 0 {
		p.out.Changes[w.change].New = w.task
	}
}

// inPlaceOf places a task where the one it replaces is, counting what that one holds as free: for this task alone. What
// the old one has beyond it is nobody else's as long as it runs.
func (p *planner) inPlaceOf(old *Task, req *place.Request) (place.Placement, place.Filter, bool) {
	i := old.Node().index
	p.engine.Return(i, old.request(), old.more().Assigned)
	at, filter, ok := p.engine.Pin(req, i, int(p.have.n[i]))
	if !ok {
		p.engine.Retake(i, old.request(), old.more().Assigned)
		return at, filter, false
	}
	was := old.request()
	rest := &place.Request{CPU: max(0, was.CPU-req.CPU), Memory: max(0, was.Memory-req.Memory)}
	for _, port := range was.Ports {
		if !slices.Contains(req.Ports, port) {
			rest.Ports = append(rest.Ports, port)
		}
	}
	p.engine.Withhold(i, rest, beyond(old.more().Assigned, at.Assigned))
	return at, filter, true
}

// assign writes a node into a task's record. w.change is then the change that does.
func (p *planner) assign(w *want, n *Node, assigned []place.Generic) {
	if w.change >= 0 {
		c := &p.out.Changes[w.change]
		c.Node = n
		if len(assigned) > 0 {
			c.New.edit().Assigned = assigned
		}
		if c.New.more().WantsNode != "" {
			c.New.edit().WantsNode = ""
		}
		return
	}
	p.change(Change{Old: w.task, Node: n, Verb: Place, New: w.task.copyWith(func(t *Task) {
		t.Verdict, t.VerdictAt = New, 0
		if t.More != nil || len(assigned) > 0 {
			m := t.edit()
			m.Message, m.Err, m.WantsNode, m.Assigned = "", "", "", assigned
		}
	})})
	w.change = len(p.out.Changes) - 1
}

// unplaced records why a task waits; a record that says so already is left alone.
func (p *planner) unplaced(w *want, why string) {
	pend := func(t *Task) {
		t.Verdict, t.VerdictAt = Pending, p.now
		m := t.edit()
		m.Message, m.Err = "pending task scheduling", why
	}
	switch {
	case w.change >= 0:
		c := &p.out.Changes[w.change]
		c.New = c.New.copyWith(pend)
		c.Reason = why
	case w.task.more().Err != why || w.task.Verdict != Pending:
		p.change(Change{Old: p.recorded(w.task), Verb: Hold, Reason: why, New: w.task.copyWith(pend)})
	}
	for _, t := range w.drained {
		p.stop(t, "its node is drained and no other can take it")
	}
}

// recorded is the task as it stands in the state.
func (p *planner) recorded(t *Task) *Task { return p.s.tasks[t.ID] }
