package state

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// stackID finds a stack by id, name or unique beginning of its id.
func (s *Service) stackID(ref string) (string, error) {
	if strings.TrimSpace(ref) == "" {
		return "", fault.Invalid("stack: give a name or an id")
	}
	if s.ix.Stack(ref) != nil {
		return ref, nil
	}
	if id, ok := s.ix.StackByName(ref); ok {
		return id, nil
	}
	return byPrefix("stack", ref, s.ix.Stacks())
}

// findStack is stackID, looking twice before it says no.
func (s *Service) findStack(ctx context.Context, ref string) (id string, err error) {
	err = s.lookTwice(ctx, func() (err error) { id, err = s.stackID(ref); return err }, subject.Spec)
	return id, err
}

// stackNamed is the stack of a name, nil when there is none.
func (s *Service) stackNamed(name string) *skepv1.Stack {
	id, ok := s.ix.StackByName(name)
	if !ok {
		return nil
	}
	return s.ix.Stack(id)
}

// newest is the revision a stack (nil: none) is at.
func (s *Service) newest(st *skepv1.Stack) *skepv1.StackRevision {
	if st == nil {
		return nil
	}
	return s.ix.StackRevision(st.Meta.Id, st.Revision)
}

func (s *Service) inspectStack(ctx context.Context, r *skepv1.Ref) (*skepv1.StackReply, error) {
	id, err := s.findStack(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	st := s.ix.Stack(id)
	if st == nil {
		return nil, noSuch("stack", r.Ref, nil)
	}
	if s.newest(st) == nil {
		catchUp(ctx, s.feeds.Of(subject.Rev)) // another instance stored it a moment ago
	}
	st.Spec = s.newest(st).GetSpec()
	return &skepv1.StackReply{Stack: st}, nil
}

func (s *Service) listStacks(_ context.Context, r *skepv1.ListStacksRequest) (*skepv1.ListStacksReply, error) {
	f, err := parseFilters(r.Filters, "id", "name")
	if err != nil {
		return nil, err
	}
	out := &skepv1.ListStacksReply{}
	p := newPage(r.Page)
	for _, n := range s.ix.Stacks() {
		lower := strings.ToLower(n.Name)
		if lower <= r.Page.GetAfter() || !f.prefix("id", n.ID) || !f.prefix("name", n.Name) {
			continue
		}
		st := s.ix.Stack(n.ID)
		if st == nil {
			continue
		}
		if !p.takes(st) {
			out.Next = strings.ToLower(out.Stacks[len(out.Stacks)-1].Name)
			break
		}
		out.Stacks = append(out.Stacks, st)
	}
	return out, nil
}

func (s *Service) listStackRevisions(ctx context.Context, r *skepv1.ListStackRevisionsRequest) (*skepv1.ListStackRevisionsReply, error) {
	id, err := s.findStack(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	st := s.ix.Stack(id)
	if st == nil {
		return nil, noSuch("stack", r.Ref, nil)
	}
	before, err := revisionsBefore(r.Page)
	if err != nil {
		return nil, err
	}
	out := &skepv1.ListStackRevisionsReply{}
	p := newPage(r.Page)
	kept := s.ix.StackRevisions(id)
	for i := len(kept) - 1; i >= 0; i-- {
		n := kept[i].Number
		if n >= before || n > st.Revision {
			continue
		}
		rev := s.ix.StackRevision(id, n)
		if rev == nil {
			continue
		}
		if r.Brief {
			rev.Spec = nil
		}
		if !p.takes(rev) {
			out.Next = strconv.FormatUint(out.Revisions[len(out.Revisions)-1].Number, 10)
			break
		}
		out.Revisions = append(out.Revisions, rev)
	}
	return out, nil
}

// nextStackRevision skips numbers that a crashed instance may have left behind.
func (s *Service) nextStackRevision(cur *skepv1.Stack) uint64 {
	n := cur.GetRevision()
	for _, r := range s.ix.StackRevisions(cur.GetMeta().GetId()) {
		n = max(n, r.Number)
	}
	return n + 1
}

// dropStackRevision removes a revision that no stack came to name. The sweep does the same later if this fails.
func (s *Service) dropStackRevision(id string, number uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), catchUpWait*8)
	defer cancel()
	if err := s.rev.Delete(ctx, keys.StackRevisionKey(id, number), 0); err != nil {
		s.log.Debug("unused revision left for the sweep", zap.String("stack", id), zap.Uint64("rev", number), zap.Error(err))
	}
}

// trimStackRevisions deletes the oldest revisions beyond the limit.
func (s *Service) trimStackRevisions(ctx context.Context, st *skepv1.Stack) error {
	kept := s.ix.StackRevisions(st.Meta.Id)
	over := len(kept) - s.cfg.KeepRevisions
	if over <= 0 {
		return nil
	}
	batch := s.rev.Batch()
	for _, r := range kept[:min(over, kv.MaxBatch)] {
		if r.Number < st.Revision {
			batch.Delete(keys.StackRevisionKey(st.Meta.Id, r.Number), r.KeyRevision)
		}
	}
	if batch.Len() == 0 {
		return nil
	}
	if _, err := batch.Commit(ctx); err != nil && !errors.Is(err, kv.ErrConflict) { // another instance trims too
		return err
	}
	return nil
}

// dropStackRevisions deletes everything kept of a stack that is gone.
func (s *Service) dropStackRevisions(ctx context.Context, id string) error {
	return s.dropAll(ctx, s.ix.StackRevisions(id), func(n uint64) string { return keys.StackRevisionKey(id, n) })
}
