package reconcile

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
)

// spareRecords is how many unplaced tasks one page holds.
const spareRecords = 1000

// Write is one key's new content.
type Write struct {
	Key    string
	Value  []byte
	Delete bool
}

// Batch is writes that belong into one atomic commit, and what they mean.
type Batch struct {
	Writes   []Write
	Bytes    int
	edits    []*edit
	claims   []ClaimChange
	rollouts []RolloutChange
	Changes  []Change
}

// edit is what a batch does to one page.
type edit struct {
	page    *Page
	changes map[*Task]*Change // of records that stand there
	adds    []*Task
	size    int
}

// Batches cuts a plan into commits. A batch is computed from the state as the batch before left it, so Next must be
// called after Applied, and nothing else may have written records meanwhile: the fence sees to that.
type Batches struct {
	s        *State
	p        *Plan
	at       int
	pages    int
	claims   int
	rollouts int
}

// Batches begins at the first change.
func (s *State) Batches(p *Plan) *Batches { return &Batches{s: s, p: p} }

// Next is the next batch within the limits (a group that exceeds them alone is a batch of its own), nil at the end.
func (b *Batches) Next(maxWrites, maxBytes int) *Batch {
	out := &Batch{}
	pages := map[*Page]*edit{}
	size := 0
	begin := b.at
	for b.at < len(b.p.Changes) {
		end := b.at + 1
		for end < len(b.p.Changes) && b.p.Changes[end-1].Glue {
			end++
		}
		more, bytes := b.cost(pages, b.p.Changes[b.at:end])
		if b.at > begin && (len(pages)+len(out.claims)+more > maxWrites || size+bytes > maxBytes) {
			break
		}
		for i := b.at; i < end; i++ {
			b.take(pages, out, &b.p.Changes[i])
		}
		size += bytes
		b.at = end
	}
	out.Changes = b.p.Changes[begin:b.at]
	for b.at == len(b.p.Changes) && b.pages < len(b.p.Pages) && len(out.edits)+len(out.claims) < maxWrites {
		if p := b.p.Pages[b.pages]; p.left() {
			b.edit(pages, out, p)
		}
		b.pages++
	}
	for _, e := range out.edits {
		w := e.write()
		out.Bytes += len(w.Value)
		out.Writes = append(out.Writes, w)
	}
	for b.at == len(b.p.Changes) && b.claims < len(b.p.Claims) && len(out.edits)+len(out.claims) < maxWrites {
		out.claim(b.p.Claims[b.claims])
		b.claims++
	}
	for _, c := range out.claims {
		w := Write{Key: c.Key, Delete: c.Claim == nil}
		if c.Claim != nil {
			w.Value, _ = proto.Marshal(c.Claim)
		}
		out.Bytes += len(w.Value)
		out.Writes = append(out.Writes, w)
	}
	for b.at == len(b.p.Changes) && b.rollouts < len(b.p.Rollouts) && len(out.Writes) < maxWrites {
		r := b.p.Rollouts[b.rollouts]
		w := Write{Key: keys.Rollout.Key(r.Service.ID), Delete: r.Rollout == nil}
		if r.Rollout != nil {
			w.Value, _ = proto.Marshal(r.Rollout)
		}
		out.Bytes += len(w.Value)
		out.Writes = append(out.Writes, w)
		out.rollouts = append(out.rollouts, r)
		b.rollouts++
	}
	if len(out.Writes) == 0 {
		return nil
	}
	return out
}

const (
	recordSize = 96  // of a record without texts, about
	claimSize  = 512 // of a claim
)

// cost is how many pages and bytes a group adds to a batch, about.
func (b *Batches) cost(pages map[*Page]*edit, group []Change) (more, bytes int) {
	var seen [4]*Page
	k := 0
	page := func(p *Page) {
		if p == nil || pages[p] != nil {
			return
		}
		for _, s := range seen[:k] {
			if s == p {
				return
			}
		}
		if k < len(seen) {
			seen[k] = p
			k++
		}
		more++
		bytes += p.size
	}
	for i := range group {
		c := &group[i]
		if c.Old != nil {
			page(c.Old.Page)
		}
		more += len(c.Claims)
		bytes += len(c.Claims) * claimSize
		if c.New != nil {
			m := c.New.more()
			bytes += recordSize + len(m.Message) + len(m.Err)
			if c.Node != nil {
				if c.Node.page == nil {
					more++
				} else {
					page(c.Node.page)
				}
			}
		}
	}
	return more, bytes
}

func (b *Batches) edit(pages map[*Page]*edit, out *Batch, p *Page) *edit {
	e := pages[p]
	if e == nil {
		e = &edit{page: p}
		pages[p] = e
		out.edits = append(out.edits, e)
	}
	return e
}

// claim adds the write of a claim, which several tasks of a batch may need.
func (b *Batch) claim(c ClaimChange) {
	if !slices.ContainsFunc(b.claims, func(x ClaimChange) bool { return x.Key == c.Key }) {
		b.claims = append(b.claims, c)
	}
}

func (b *Batches) take(pages map[*Page]*edit, out *Batch, c *Change) {
	if c.Old != nil && c.Old.Page == nil {
		return // somebody else took the record away: what is left of this batch meets the fence
	}
	for _, x := range c.Claims {
		out.claim(x)
	}
	var target *Page
	switch {
	case c.New == nil:
	case c.Node != nil:
		target = b.s.page(c.Node.ID)
	case c.Old != nil && c.Old.Page.Node == nil:
		target = c.Old.Page
	default:
		target = b.spare(pages, c.New.Service)
	}
	if c.Old != nil {
		e := b.edit(pages, out, c.Old.Page)
		if e.changes == nil {
			e.changes = map[*Task]*Change{}
		}
		e.changes[c.Old] = c
		if target == c.Old.Page {
			return
		}
	}
	if target != nil {
		e := b.edit(pages, out, target)
		e.adds = append(e.adds, c.New)
	}
}

// spare is a page of the service's unplaced tasks with room.
func (b *Batches) spare(pages map[*Page]*edit, v *Service) *Page {
	for n := 0; ; n++ {
		p := b.s.page(keys.UnplacedKey(v.ID, n))
		used := len(p.Tasks)
		if e := pages[p]; e != nil {
			used += len(e.adds)
		}
		if used < spareRecords {
			return p
		}
	}
}

// stays: the record remains on the page, changed perhaps.
func (e *edit) stays(c *Change) bool {
	return c.New != nil && (c.Node == e.page.Node && (c.Node != nil || c.Old.Page == e.page))
}

func (e *edit) write() Write {
	p := e.page
	b := make([]byte, 0, p.size+(len(e.adds)+len(e.changes))*recordSize+64)
	for _, t := range p.Tasks {
		if c := e.changes[t]; c != nil {
			if e.stays(c) {
				b = appendTask(b, c.New, t.Service.ID)
			}
			continue
		}
		b = appendTask(b, t, t.Service.ID)
	}
	for _, t := range e.adds {
		b = appendTask(b, t, t.Service.ID)
	}
	e.size = len(b)
	// A living node's empty set is a value, which its agent is told like any other; other empty pages go.
	if len(b) == 0 && (p.Node == nil || !p.Node.Exists) {
		return Write{Key: p.Key, Delete: true}
	}
	return Write{Key: p.Key, Value: b}
}

// Applied takes a committed batch into the state; revs are the revisions of its writes, in order.
func (s *State) Applied(b *Batch, revs []uint64) {
	for i, e := range b.edits {
		s.applyEdit(e, revs[i], b.Writes[i].Delete)
	}
	for i, c := range b.claims {
		s.setClaim(c.Key, c.Claim, revs[len(b.edits)+i], false)
	}
	for i, r := range b.rollouts {
		v, rev := s.service(r.Service.ID), revs[len(b.edits)+len(b.claims)+i]
		s.mark(v)
		if r.Rollout == nil {
			v.rollout = nil
			s.forget(v)
		} else {
			v.rollout = &Rollout{Rollout: r.Rollout, key: rev}
		}
	}
}

func (s *State) applyEdit(e *edit, rev uint64, deleted bool) {
	p := e.page
	if rev <= p.Revision {
		return // the feed was faster
	}
	kept := p.Tasks[:0]
	var gone []*Task
	for _, t := range p.Tasks {
		c := e.changes[t]
		switch {
		case c == nil:
			kept = append(kept, t)
		case e.stays(c):
			if t.Desired != c.New.Desired {
				t.DesiredAt = rev
			}
			s.unbook(t)
			t.adopt(c.New)
			s.book(t)
			s.mark(t.Service)
			kept = append(kept, t)
		case t.Page == p:
			gone = append(gone, t)
		}
	}
	clear(p.Tasks[len(kept):])
	p.Tasks = kept
	p.Revision, p.exists, p.size = rev, !deleted, e.size
	for _, t := range gone {
		s.drop(t)
	}
	for _, n := range e.adds {
		n.DesiredAt = rev
		if old := s.tasks[n.ID]; old != nil { // it moves here and its old page was not seen to yet
			s.unlist(old)
			old.adopt(n)
			old.DesiredAt = rev
			s.list(old, p)
			continue
		}
		n.Reported, n.Seen, n.served, n.ran = false, New, false, 0
		n.Service = s.service(n.Service.ID) // removed and forgotten since the plan, it must be known again to lose its tasks
		s.add(n, p)
	}
	s.pageChanged(p)
}
