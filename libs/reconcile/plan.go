package reconcile

import (
	"fmt"
	"slices"
	"time"

	"skep.dev/libs/place"
	skepv1 "skep.dev/proto/skep/v1"
)

// Verb says what a change does to a task.
type Verb uint8

// The verbs.
const (
	Create Verb = iota // a task that was not there, placed or not
	Place              // an unplaced task got its node
	Hold               // it stays unplaced, for another reason than before
	Start              // a prepared task may run
	Stop               // stop it and keep it for history
	Delete             // stop it and delete it
	Forget             // the record goes
	Judge              // the scheduler's own verdict: rejected, orphaned
)

var verbs = [...]string{"create", "place", "hold", "start", "stop", "remove", "forget", "judge"}

func (v Verb) String() string { return verbs[v] }

// Change is one step on one task. Old is the task as it is, nil when it is new; New what its record becomes, nil when
// it goes; Node where New stands, nil = unplaced.
type Change struct {
	Old, New *Task
	Node     *Node
	Verb     Verb
	Glue     bool          // in one batch with the next change
	Claims   []ClaimChange // in one batch with this change
	Reason   string
}

func (c *Change) task() *Task {
	if c.New != nil {
		return c.New
	}
	return c.Old
}

// String is the step in words.
func (c *Change) String() string {
	t := c.task()
	name := t.Service.Name
	if name == "" {
		name = t.Service.ID
	}
	if t.Slot > 0 {
		name = fmt.Sprintf("%s.%d", name, t.Slot)
	}
	text := c.Verb.String() + " " + name
	switch {
	case c.Node != nil && (c.Verb == Create || c.Verb == Place):
		text += " on " + c.Node.Hostname()
	case c.Node != nil && c.Node.ID != "":
		text += " (on " + c.Node.Hostname() + ")"
	case c.Verb == Create:
		text += ", unplaced"
	}
	if c.New != nil && c.Verb == Create && c.New.Desired == Ready {
		text += ", prepared and held"
	}
	if c.Reason != "" {
		text += ": " + c.Reason
	}
	return text
}

// Operation is the step for people and programs.
func (c *Change) Operation() *skepv1.Operation {
	t := c.task()
	o := &skepv1.Operation{Verb: c.Verb.String(), TaskId: t.ID, Slot: t.Slot, Reason: c.Reason, Text: c.String()}
	if c.Verb == Create && c.Node != nil {
		o.Verb = "place"
	}
	if c.Node != nil {
		o.NodeId, o.NodeHostname = c.Node.ID, c.Node.Hostname()
	}
	return o
}

// RolloutChange is a new rollout record; nil deletes it.
type RolloutChange struct {
	Service *Service
	Rollout *skepv1.Rollout
}

// Plan is what should be done now.
type Plan struct {
	Changes  []Change // glued ones first, then the others page by page
	Rollouts []RolloutChange
	Claims   []ClaimChange // that go with no change
	// Rollbacks are to be asked of state, whose revisions are; plans go on asking until it is done.
	Rollbacks []Rollback
	Runs      []RunChange      // asked of state too: it writes services
	Pages     []*Page          // empty ones of nodes that are gone, to be deleted
	Wakes     map[string]int64 // when a service must be looked at again although nothing changes, unix ms
}

// Empty: there is nothing to do.
func (p *Plan) Empty() bool {
	return len(p.Changes) == 0 && len(p.Rollouts) == 0 && len(p.Claims) == 0 && len(p.Pages) == 0
}

// NextWake is the earliest of Wakes, zero when there is none.
func (p *Plan) NextWake() time.Time {
	var at int64
	for _, w := range p.Wakes {
		if at == 0 || w < at {
			at = w
		}
	}
	if at == 0 {
		return time.Time{}
	}
	return time.UnixMilli(at)
}

// Plan looks at the named services, nil = all, and says what should change. It reads s and changes nothing in it.
func (s *State) Plan(now time.Time, ids *IDs, services []string) *Plan {
	p := &planner{s: s, now: now.UnixMilli(), ids: ids, out: &Plan{Wakes: map[string]int64{}}, have: tally{n: make([]int32, len(s.byID))}}
	if services == nil {
		services = s.Services()
	}
	p.review()
	for _, id := range services {
		if v := s.services[id]; v != nil {
			p.service(v)
		}
	}
	p.settleClaims()
	p.order()
	for page := range s.left {
		p.out.Pages = append(p.out.Pages, page)
	}
	return p.out
}

// planner is the working memory of one plan.
type planner struct {
	s       *State
	now     int64
	ids     *IDs
	out     *Plan
	engine  *place.Engine
	victims map[*Node]map[*Task]bool
	claims  map[string]*planned // what becomes of claims, by key
	taken   map[volumeID][]user // what this plan has placed, by their volumes

	// Of the service at hand:
	v        *Service
	wants    []want
	have     tally  // its tasks that are meant to run, by node
	run      uint64 // of a job: the iteration at hand
	closed   bool   // it is over: nodes that come later are not its
	standing uint64 // the revision of what is made anew where the rollout has not been
	dirty    []*unit
	behind   int // units out of date too while the rollout waits; once it goes on, one of the newest revision is made at once
	inflight int
	failed   failedUnits
	care     *triage // made when one of its tasks is unhealthy
	sorted   []*Task
	units    []unit
	removed  []*Task // those that were told to go, and have not stopped

	handovers    []handover // of units that the rollout has reached
	stoppedFirst uint32     // units that the update begins stop-first although it is to start first
	stoppedWhy   string
}

// want is a task that needs a node.
type want struct {
	change  int // of a new task: its place in Changes; -1 for one that is recorded already
	task    *Task
	pin     *Node   // it must run there
	credit  *Task   // it will take this one's place, which it may count as free
	beside  *Task   // it is to run beside this one, which it replaces, or take its place if it cannot
	drained []*Task // stop these when there is no place for it
	refused string  // the one before it was rejected, and why: it gets no node while its delay runs
}

// tally counts per node and forgets fast.
type tally struct {
	n       []int32
	touched []int32
}

func (t *tally) add(i, d int32) {
	if t.n[i] == 0 {
		t.touched = append(t.touched, i)
	}
	t.n[i] += d
}

func (t *tally) reset() {
	for _, i := range t.touched {
		t.n[i] = 0
	}
	t.touched = t.touched[:0]
}

// counts are the nodes with any, for the engine.
func (t *tally) counts() []place.Count {
	slices.Sort(t.touched)
	t.touched = slices.Compact(t.touched)
	out := make([]place.Count, 0, len(t.touched))
	for _, i := range t.touched {
		if t.n[i] > 0 {
			out = append(out, place.Count{Node: i, N: t.n[i]})
		}
	}
	return out
}

func (p *planner) change(c Change) { p.out.Changes = append(p.out.Changes, c) }

func (p *planner) wake(at int64) {
	if w := p.out.Wakes[p.v.ID]; w == 0 || at < w {
		p.out.Wakes[p.v.ID] = at
	}
}

func (p *planner) service(v *Service) {
	p.v = v
	p.wants, p.dirty, p.behind, p.inflight, p.failed, p.care, p.run, p.closed = p.wants[:0], nil, 0, 0, failedOf(v), nil, 0, false
	p.stoppedFirst, p.stoppedWhy, p.handovers = 0, "", p.handovers[:0]
	p.standing = p.s.standing(v)
	p.have.reset()
	if !v.Exists {
		p.gone(v)
		return
	}
	p.collect()
	switch v.mode {
	case global:
		p.group(p.sorted)
		p.global()
	case replicatedJob, globalJob:
		p.job()
	default:
		p.group(p.sorted)
		p.replicated()
	}
	if !v.job() {
		p.rollout()
		p.handOverAll()
		p.keepUp()
	}
	p.place()
	p.noteStopped()
}

// gone: the service was removed, so are its tasks.
func (p *planner) gone(v *Service) {
	for _, t := range v.tasks {
		p.remove(t, "the service was removed")
	}
	if v.rollout != nil {
		p.out.Rollouts = append(p.out.Rollouts, RolloutChange{Service: v})
	}
}

// collect gathers the service's tasks in p.sorted, after seeing to those being removed.
func (p *planner) collect() {
	p.sorted, p.removed = p.sorted[:0], p.removed[:0]
	for _, t := range p.v.tasks {
		switch {
		case t.Desired == Remove:
			p.remove(t, "")
			if !p.stopped(t) && !p.v.job() {
				p.removed = append(p.removed, t)
			}
		default:
			p.sorted = append(p.sorted, t)
			if n := t.Node(); n != nil && n.index >= 0 && t.wanted() {
				p.have.add(n.index, 1)
			}
		}
	}
}

// group sorts tasks into p.units, oldest first.
func (p *planner) group(tasks []*Task) {
	byNode := p.v.perNode()
	slices.SortFunc(tasks, func(a, b *Task) int {
		if byNode {
			if x, y := p.unitNode(a), p.unitNode(b); x != y {
				return compare(x.ID, y.ID)
			}
		} else if a.Slot != b.Slot {
			return compare(a.Slot, b.Slot)
		}
		if a.Created != b.Created {
			return compare(a.Created, b.Created)
		}
		return compare(a.ID, b.ID)
	})
	p.units = p.units[:0]
	for i := 0; i < len(tasks); {
		k := i + 1
		for k < len(tasks) && p.sameUnit(tasks[i], tasks[k], byNode) {
			k++
		}
		u := unit{slot: tasks[i].Slot, tasks: tasks[i:k:k]}
		if byNode {
			u.node = p.unitNode(tasks[i])
		}
		p.units = append(p.units, u)
		i = k
	}
}

func (p *planner) sameUnit(a, b *Task, byNode bool) bool {
	if byNode {
		return p.unitNode(a) == p.unitNode(b)
	}
	return a.Slot == b.Slot
}

var nowhere Node

// unitNode is the node a global task is for.
func (p *planner) unitNode(t *Task) *Node {
	if n := t.Node(); n != nil {
		return n
	}
	if n := p.s.nodes[t.more().WantsNode]; n != nil {
		return n
	}
	return &nowhere
}

func compare[T int64 | uint64 | string](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// order brings the changes into commit order: glued groups as they come, then single ones by page, so that each page is
// written once.
func (p *planner) order() {
	c := p.out.Changes
	glued := func(i int) bool { return c[i].Glue || i > 0 && c[i-1].Glue }
	singles := make([]Change, 0, len(c))
	kept := make([]Change, 0, 16)
	for i := range c {
		if glued(i) {
			kept = append(kept, c[i])
		} else {
			singles = append(singles, c[i])
		}
	}
	at := func(x *Change) int {
		n := x.Node
		if n == nil && x.Old != nil {
			n = x.Old.Node()
		}
		if n == nil {
			return -1
		}
		return int(n.index)
	}
	if len(kept) == 0 && len(singles) < 2 {
		return
	}
	buckets := make([]int, len(p.s.byID)+2)
	for i := range singles {
		buckets[at(&singles[i])+2]++ // -1 and nodes that are gone share the first
	}
	buckets[0] = 0
	for i := 1; i < len(buckets); i++ {
		buckets[i] += buckets[i-1]
	}
	out := make([]Change, len(kept)+len(singles))
	copy(out, kept)
	for i := range singles {
		b := at(&singles[i]) + 1
		out[len(kept)+buckets[b]] = singles[i]
		buckets[b]++
	}
	p.out.Changes = out
}
