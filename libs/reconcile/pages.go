package reconcile

import (
	"fmt"

	"skep.dev/libs/keys"
	"skep.dev/libs/place"
	"skep.dev/libs/record"
	skepv1 "skep.dev/proto/skep/v1"
)

// page finds or makes the page of a key; nil for a key that is none.
func (s *State) page(key string) *Page {
	if p := s.pages[key]; p != nil {
		return p
	}
	p := &Page{Key: key}
	switch node, service := keys.PageOwner(key); {
	case service != "":
		p.Service = s.service(service)
		p.Service.spare = append(p.Service.spare, p)
	case node != "":
		p.Node = s.node(key)
		p.Node.page = p
	default:
		return nil
	}
	s.pages[key] = p
	return p
}

// putPage replaces a page's records by what was read. Tasks that are known keep what the agent said of them.
func (s *State) putPage(p *Page, val []byte, rev uint64) error {
	was := p.Tasks
	p.Tasks = nil
	if p.Node != nil {
		p.Node.stale = true // all is read anyway
	}
	if p.Node != nil && p.Revision == 0 {
		p.Node.moved = rev // what left it before is not known
	}
	p.Revision, p.exists, p.size = rev, val != nil, len(val)
	err := decodePage(val, func(t *Task, service []byte) {
		if old := s.tasks[t.ID]; old != nil {
			if old.Page != nil {
				s.unlist(old)
			}
			desiredAt := old.DesiredAt
			if old.Desired != t.Desired || old.Page != p {
				desiredAt = rev
			}
			old.adopt(t)
			old.DesiredAt = desiredAt
			s.list(old, p)
			return
		}
		t.Service = s.service(string(service))
		t.DesiredAt = rev
		s.add(t, p)
	})
	kept := make(map[*Task]bool, len(p.Tasks))
	for _, t := range p.Tasks {
		kept[t] = true
	}
	for _, t := range was {
		if !kept[t] && t.Page == p {
			s.drop(t)
		}
	}
	s.pageChanged(p)
	if err != nil {
		return fmt.Errorf("read task/%s: %w", p.Key, err)
	}
	return nil
}

// adopt takes over the fields of a record, not what the agent said.
func (t *Task) adopt(r *Task) {
	t.Slot, t.Revision, t.Created, t.VerdictAt, t.NotBefore = r.Slot, r.Revision, r.Created, r.VerdictAt, r.NotBefore
	if r.Verdict == Failed && t.Verdict != Failed && t.Node() != nil {
		t.Service.failed(t.Node(), t.Revision, r.VerdictAt, 1) // as one that failed by itself counts
	}
	t.Desired, t.Verdict, t.More = r.Desired, r.Verdict, r.More
}

// add takes a task in that was not known.
func (s *State) add(t *Task, p *Page) {
	s.tasks[t.ID] = t
	t.inService = int32(len(t.Service.tasks))
	t.Service.tasks = append(t.Service.tasks, t)
	s.list(t, p)
}

// list puts a task on a page.
func (s *State) list(t *Task, p *Page) {
	t.Page = p
	p.Tasks = append(p.Tasks, t)
	s.mark(t.Service)
	if p.Node == nil {
		s.unplaced[t.Service]++
		return
	}
	s.noteUser(t, p)
	if st := p.Node.early[t.ID]; st != nil {
		delete(p.Node.early, t.ID)
		s.sense(t, st)
		s.refuse(t, st)
		t.see(st)
	}
	s.book(t)
}

// unlist takes it off its page's and its node's counts; the page's list is its owner's business.
func (s *State) unlist(t *Task) {
	s.unbook(t)
	s.noteUser(t, t.Page)
	if t.Page.Node == nil {
		if s.unplaced[t.Service]--; s.unplaced[t.Service] <= 0 {
			delete(s.unplaced, t.Service)
		}
	}
}

// drop forgets a task.
func (s *State) drop(t *Task) {
	s.unlist(t)
	delete(s.tasks, t.ID)
	delete(s.sick, t)
	delete(s.refused, t)
	delete(s.named, t)
	v := t.Service
	last := v.tasks[len(v.tasks)-1]
	v.tasks[t.inService], last.inService = last, t.inService
	v.tasks[len(v.tasks)-1] = nil
	v.tasks = v.tasks[:len(v.tasks)-1]
	s.mark(v)
	t.Page = nil
	s.forget(v)
}

func (s *State) pageChanged(p *Page) {
	if p.Node != nil {
		s.noteLeft(p)
	}
	if !p.exists && len(p.Tasks) == 0 && p.Service != nil {
		s.forget(p.Service)
	}
}

// noteLeft keeps account of the empty pages of nodes that are gone.
func (s *State) noteLeft(p *Page) {
	if p.left() {
		s.left[p] = struct{}{}
	} else {
		delete(s.left, p)
	}
}

func (p *Page) left() bool { return p.Node != nil && !p.Node.Exists && p.exists && len(p.Tasks) == 0 }

// observed is the state a report says for planning, of a task seen as was before: one that runs and has never served has
// not replaced anything.
func observed(r *skepv1.TaskStatus, was TaskState) TaskState {
	if record.ConditionOf(r).Begins() && was < Running {
		return Starting
	}
	return TaskState(r.GetState())
}

func (t *Task) see(st *skepv1.TaskStatus) {
	was, since := t.Seen, t.SeenAt
	t.Seen, t.SeenAt, t.Reported = observed(st, was), st.GetSinceUnixMs(), true
	t.remember(st, was, since)
	t.up, t.well = condition(st)
}

// putStatus takes in a node's whole report. A task that the report leaves out keeps its last state.
func (s *State) putStatus(n *Node, st *skepv1.NodeStatus, present bool, at int64) {
	changed := n.holdVolumes(st.GetVolumes()) || n.applied != st.GetAppliedGeneration()
	n.applied, n.hasStatus = st.GetAppliedGeneration(), present
	if changed && n.claims > 0 {
		defer s.touchClaims() // once the tasks are seen to
	}
	n.early = nil
	freed := false
	if n.page != nil {
		for _, t := range n.page.Tasks {
			t.Reported = false
		}
	}
	for _, r := range st.GetTasks() {
		t := s.tasks[r.GetTaskId()]
		if t == nil || t.Node() != n {
			if n.early == nil {
				n.early = map[string]*skepv1.TaskStatus{}
			}
			n.early[r.GetTaskId()] = r
			continue
		}
		was, up, well := t.Seen, t.up, t.well
		if s.sense(t, r) {
			s.mark(t.Service)
		}
		if observed(r, was) < was {
			t.Reported = true // states only grow: an older report came late
			continue
		}
		s.refuse(t, r)
		t.see(r)
		if t.up != up || t.well != well {
			s.markDependents(t.Service)
		}
		if t.Seen == was {
			continue
		}
		s.book(t)
		s.mark(t.Service)
		if t.Seen > Running && was <= Running {
			freed = true
			switch t.Seen {
			case Failed:
				t.Service.failed(n, t.Revision, at, 1)
			case Rejected: // what a node cannot prepare another may: it is the last to be asked again
				t.Service.failed(n, t.Revision, at, place.FailureLimit)
			}
		}
	}
	if n.page != nil {
		for _, t := range n.page.Tasks {
			if t.Desired <= Complete {
				continue
			}
			s.book(t)
			if !t.Reported {
				s.mark(t.Service) // perhaps it is gone
				freed = true
			}
		}
	}
	if freed {
		s.markUnplaced()
	}
}
