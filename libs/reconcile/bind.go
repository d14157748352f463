package reconcile

import (
	"fmt"
	"slices"

	"skep.dev/libs/fault"
	"skep.dev/libs/place"
	skepv1 "skep.dev/proto/skep/v1"
)

// tie is where its volumes let a task go.
type tie struct {
	uses   []use
	only   *Node // nil = anywhere
	by     use   // the volume that is there, none when it is for volume-pin's sake
	reason string
	why    string // it goes nowhere for now
}

func (p *planner) tie(w *want, r *revision) (t tie) {
	if t.uses, t.why = p.s.uses(w.task, r, w.pin); t.why != "" {
		return t
	}
	switch {
	case len(t.uses) > maxVolumes:
		t.why = fmt.Sprintf("it mounts %d volumes with one writer, and a task may mount %d", len(t.uses), maxVolumes)
	case len(t.uses) > 0 && p.s.held+len(p.claims) >= maxClaims:
		t.why = fmt.Sprintf("the cluster holds %d volumes with one writer, as many as it may", p.s.held)
	default:
		t.only, t.by, t.why = p.bonds(w, t.uses)
	}
	if t.why != "" {
		return t
	}
	t.reason = "volume " + t.by.String() + " is held by"
	home := p.home(w, r)
	switch {
	case home == nil:
	case t.only == nil:
		t.only, t.reason = home, "volume-pin: its local volumes are on"
		p.waitFor(w, home)
	case t.only != home:
		t.why = fmt.Sprintf("volume %s is held by node %s, and by volume-pin its local volumes are on node %s", t.by, t.only.Hostname(), home.Hostname())
	}
	return t
}

// bound places a task that its volumes may bind to a node.
func (p *planner) bound(w *want, r *revision) {
	if w.credit != nil && w.credit.Node().index >= 0 {
		p.have.add(w.credit.Node().index, -1)
	}
	if w.pin != nil {
		p.waitFor(w, w.pin)
	}
	t := p.tie(w, r)
	if t.why != "" {
		p.unplaced(w, t.why)
		return
	}
	only, by, uses, why := t.only, t.by, t.uses, ""
	if w.pin != nil {
		if only != nil && only != w.pin {
			p.unplaced(w, t.reason+" node "+only.Hostname()+p.remedy(only, by.name != "", by.volumeID))
			return
		}
		only = w.pin
	}
	if o := p.before(w, only); o != nil {
		why = fmt.Sprintf("the task before it has not stopped yet on node %s, and they would share its volumes", only.Hostname())
		if o != w.beside || !p.instead(w, r.request, "they would share the volumes of node "+only.Hostname()) {
			p.unplaced(w, why)
		}
		return
	}
	n, assigned := p.find(w, r, only)
	if n == nil {
		if only == nil {
			why = p.engine.Why(r.request, p.have.counts())
		} else {
			why = p.refused(w, r, only, t.reason, by)
		}
		if w.beside == nil || only != nil && only != w.beside.Node() || !p.instead(w, r.request, why) {
			p.unplaced(w, why)
		}
		return
	}
	if slices.ContainsFunc(r.mounts, func(m mount) bool { return m.ofNode }) && w.pin == nil {
		// Now that its node is known, so are all its volumes.
		uses, _ = p.s.uses(w.task, r, n)
		if at, _, why := p.bonds(w, uses); why != "" || at != nil && at != n {
			if why == "" {
				why = "a volume it would use on node " + n.Hostname() + " is held by node " + at.Hostname()
			}
			p.unplaced(w, why)
			return
		}
	}
	p.assign(w, n, assigned)
	c := &p.out.Changes[w.change]
	p.carry(c, uses)
	p.have.add(n.index, 1)
}

// before is a task of the wanted one's unit that may still run on the node that its volumes leave it, such as one that was told to
// stop while its node was away. One that is held until then (Ready) may be placed beside it.
func (p *planner) before(w *want, n *Node) *Task {
	if n == nil || !n.accepts() || w.task.Desired == Ready || p.v.perNode() {
		return nil
	}
	at, ok := p.unitOf(w.task.Slot)
	if !ok {
		return nil
	}
	for _, o := range p.units[at].tasks {
		if o.ID != w.task.ID && o.Node() == n && o.held() {
			return o
		}
	}
	return nil
}

func (p *planner) unitOf(slot uint64) (int, bool) {
	return slices.BinarySearchFunc(p.units, slot, func(u unit, slot uint64) int { return compare(u.slot, slot) })
}

// find is a node for a task, only that one if there is one.
func (p *planner) find(w *want, r *revision, only *Node) (*Node, []place.Generic) {
	if only == nil {
		got := p.engine.Place(nil, r.request, 1, p.have.counts(), p.v.failuresOn(p.now, w.task.Revision))
		if len(got) == 1 {
			return p.s.byID[got[0].Node], got[0].Assigned
		}
		if w.credit == nil || !w.credit.Node().accepts() {
			return nil, nil
		}
		only = w.credit.Node()
	}
	if only.index < 0 {
		return nil, nil
	}
	at, _, ok := p.engine.Pin(r.request, only.index, int(p.have.n[only.index]))
	if !ok && w.credit != nil && w.credit.Node() == only {
		at, _, ok = p.inPlaceOf(w.credit, r.request)
	}
	if !ok {
		return nil, nil
	}
	return only, at.Assigned
}

// refused says why a task cannot have the one node it may go to. One that is to replace another there, and could run
// elsewhere, has that one stopped: until then the volume stays where it is.
func (p *planner) refused(w *want, r *revision, n *Node, reason string, by use) string {
	why := reason + " node " + n.Hostname()
	if !n.accepts() || by.name == "" {
		if w.pin == n && by.name == "" && n.accepts() {
			why = "no suitable node"
			_, f, _ := p.engine.Pin(r.request, n.index, 0)
			return why + " (" + f.Text(1) + ")"
		}
		return why + p.remedy(n, by.name != "", by.volumeID)
	}
	_, f, _ := p.engine.Pin(r.request, n.index, int(p.have.n[n.index]))
	why += ", which cannot take the task (" + f.Text(1) + ")"
	if w.credit == nil || w.credit.Node() != n || w.pin != nil {
		return why
	}
	if got := p.engine.Place(nil, r.request, 1, p.have.counts(), nil); len(got) == 1 {
		p.stop(w.credit, fmt.Sprintf("its replacement cannot run here (%s), and volume %s has one writer", f.Text(1), by))
	}
	return why
}

// remedy says what is the matter with a node that a task must wait for, and what to do about it.
func (p *planner) remedy(n *Node, claimed bool, id volumeID) string {
	name := n.Hostname()
	switch {
	case !n.Exists && claimed:
		return ", which was removed: skep volume release " + id.command() + " once that machine is certainly off"
	case n.lost() && claimed:
		return fmt.Sprintf(", which is down: skep node fence %s once it is certainly off, or give the cluster a fencing command", name)
	case n.lost():
		return ", which is down"
	case n.State != skepv1.NodeState_NODE_STATE_READY && claimed:
		return fmt.Sprintf(", which is not heard: skep node fence %s once it is certainly off", name)
	case n.State != skepv1.NodeState_NODE_STATE_READY:
		return ", which is not heard"
	case claimed && !p.occupied(n, id):
		return ", which has not said yet that it is unmounted"
	case n.drained():
		return ", which is drained"
	case !n.accepts():
		return ", which takes no new tasks"
	case claimed:
		return ", and a task of it runs there"
	}
	return ", which cannot take the task"
}

// occupied: a task on the node may have the volume.
func (p *planner) occupied(n *Node, id volumeID) bool {
	return slices.ContainsFunc(p.s.users()[id], func(t user) bool { return t.Node() == n && t.occupies() })
}

// command is the volume as an argument of `skep volume release`.
func (v volumeID) command() string {
	if v.String() == v.name {
		return v.name
	}
	return "--driver " + v.driver + " " + v.name
}

// home is the node where volume-pin keeps the wanted task: that of the newest of its unit that had one, as long as it is
// part of the cluster.
func (p *planner) home(w *want, r *revision) *Node {
	if !r.pin || p.v.perNode() || !slices.ContainsFunc(r.local, func(d string) bool { return p.s.global[d] == 0 }) {
		return nil
	}
	at, ok := p.unitOf(w.task.Slot)
	if !ok {
		return nil
	}
	for _, t := range slices.Backward(p.units[at].tasks) {
		n := t.Node()
		if n == nil {
			n = p.s.nodes[t.more().WantsNode]
		}
		if n != nil && n.Exists {
			return n
		}
		if n != nil {
			return nil // it was removed, and the data with it
		}
	}
	return nil
}

// tied is where its volumes let a service's next task go: that which waits, else one more.
func (s *State) tied(v *Service, number uint64, now int64) tie {
	r := v.revisionOf(number)
	if !v.Exists || !r.bound() || v.perNode() {
		return tie{}
	}
	p := &planner{s: s, now: now, v: v, out: &Plan{}}
	p.review()
	tasks := slices.DeleteFunc(slices.Clone(v.tasks), func(t *Task) bool { return t.Desired == Remove })
	p.group(tasks)
	w := want{change: -1, task: &Task{Service: v, Slot: uint64(len(p.units) + 1), Revision: number, Desired: p.goal()}}
	for _, t := range tasks {
		if t.Node() == nil && t.Desired <= Complete {
			w.task = t
			break
		}
	}
	return p.tie(&w, r)
}

// tell puts what a tie says into the answer to where a task could go.
func (s *State) tell(t tie, out *skepv1.Placing) {
	if t.why != "" {
		out.Summary = t.why + "; else " + out.Summary
	}
	if t.only == nil {
		return
	}
	text := t.reason + " node " + t.only.Hostname()
	if !t.only.accepts() {
		text += (&planner{s: s}).remedy(t.only, t.by.name != "", t.by.volumeID)
	}
	if t.why == "" {
		out.Summary = text + "; " + out.Summary
	}
	f := &skepv1.FilterResult{Filter: "volumes", Text: text}
	out.Candidates = slices.DeleteFunc(out.Candidates, func(c *skepv1.ScoredNode) bool {
		if c.NodeId == t.only.ID {
			return false
		}
		f.Removed = append(f.Removed, &skepv1.RemovedNode{NodeId: c.NodeId, Hostname: c.Hostname, Reason: text})
		return true
	})
	out.Filters = append(out.Filters, f)
}

// single says why a unit's old task must have stopped before its new one starts, "" when it need not: a volume of either
// has one writer.
func (p *planner) single(old *Task) string {
	v := p.s.single(p.v.current)
	if v == "" && old != nil {
		v = p.s.single(p.v.revs[old.Revision])
	}
	if v == "" {
		return ""
	}
	return "volume " + v + " has one writer"
}

// startFirst: the update starts new tasks before it stops old ones.
func (p *planner) startFirst() bool { return p.v.update.startFirst && p.mustStopFirst() == "" }

// mustStopFirst says why no two tasks of a unit may run at once, whatever the order that was asked for; "" = they may.
func (p *planner) mustStopFirst() string {
	if p.v.alone(p.v.revision) {
		return "its tasks have an address of their own"
	}
	return p.single(nil)
}

func noClaim(driver, name string) error {
	return fault.NotFound("no node holds a volume %s: skep volume claims shows all that are held", newVolumeID(driver, name))
}

func severalClaims(name string, found []*claim) error {
	var drivers []string
	for _, c := range found {
		drivers = append(drivers, c.GetDriver())
	}
	slices.Sort(drivers)
	return fault.Conflict("several drivers have a volume %s: say which with --driver (%v)", name, drivers)
}
