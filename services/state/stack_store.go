package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/printable"
	"skep.dev/libs/rpc"
	"skep.dev/libs/stack"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// storeStack stores the next revision: first the revision, then the stack that names it.
func (s *Service) storeStack(ctx context.Context, cur *skepv1.Stack, d deployment, self, summary string) (*skepv1.Stack, error) {
	now := timestamppb.Now()
	next := proto.CloneOf(cur)
	if next == nil {
		next = &skepv1.Stack{Meta: &skepv1.Meta{Id: self, CreatedAt: now}, Name: d.want.Name}
	}
	sid := next.Meta.Id
	next.Meta.UpdatedAt = now
	next.Revision, next.State, next.Problems, next.Prune = s.nextStackRevision(cur), skepv1.StackState_STACK_STATE_DEPLOYING, nil, d.prune
	next.Author, next.AuthorAddress = rpc.Asker(ctx), rpc.AskerAddress(ctx)
	for _, l := range []struct {
		kind  string
		files []*skepv1.StackFile
	}{{stack.Secret, d.want.Secrets}, {stack.Config, d.want.Configs}} {
		for _, f := range l.files {
			setMember(next, &skepv1.StackMember{Kind: l.kind, Id: f.Id, Name: f.Name})
		}
	}
	body, err := proto.Marshal(&skepv1.StackRevision{
		StackId: sid, Number: next.Revision, Spec: d.want, CreatedAt: now, Author: next.Author, AuthorAddress: next.AuthorAddress, Summary: summary,
		RollbackTo: d.rollbackTo, Prune: d.prune,
	})
	if err != nil {
		return nil, fmt.Errorf("encode revision %d of stack %s: %w", next.Revision, next.Name, err)
	}
	rev, err := s.rev.Create(ctx, keys.StackRevisionKey(sid, next.Revision), body)
	switch {
	case errors.Is(err, kv.ErrConflict):
		return nil, err
	case err != nil:
		return nil, fault.Unavailable("store revision %d of stack %s: %v", next.Revision, next.Name, err)
	}
	if err := seen(ctx, s.feeds.Of(subject.Rev), rev); err != nil {
		return nil, err
	}
	batch := s.spec.Batch()
	if err := putStack(batch, next, cur.GetMeta().GetVersion()); err != nil {
		return nil, err
	}
	if cur == nil {
		batch.Create(keys.Name(keys.StackName, next.Name), []byte(sid))
	}
	err = s.commit(ctx, batch, func() bool {
		st := s.ix.Stack(sid)
		return st != nil && st.Revision == next.Revision
	})
	if err != nil {
		if errors.Is(err, kv.ErrConflict) {
			s.dropStackRevision(sid, next.Revision)
		}
		return nil, err
	}
	verb := "deploy"
	if d.rollbackTo != 0 {
		verb = "rollback"
	}
	s.events.send(ctx, stackEvent(next, verb))
	if err := s.trimStackRevisions(ctx, next); err != nil {
		s.log.Warn("old revisions of a stack left for the next deploy", zap.String("stack", next.Name), zap.Error(err))
	}
	return next, nil
}

func stackEvent(st *skepv1.Stack, verb string) *skepv1.Event {
	return &skepv1.Event{Kind: "stack", Id: st.Meta.Id, Name: st.Name, Verb: verb, Attributes: map[string]string{"name": st.Name, "revision": fmt.Sprint(st.Revision)}}
}

// putStack adds a stack to a batch, over the version that was read, 0 = it is new.
func putStack(b *kv.Batch, st *skepv1.Stack, over uint64) error {
	c := proto.CloneOf(st)
	c.Meta.Version, c.Spec = 0, nil
	body, err := proto.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode stack %s: %w", st.Name, err)
	}
	if over == 0 {
		b.Create(keys.Stack.Key(st.Meta.Id), body)
	} else {
		b.Update(keys.Stack.Key(st.Meta.Id), body, over)
	}
	return nil
}

// setMember makes an object a member, in the place of one of the same name that is gone.
func setMember(st *skepv1.Stack, m *skepv1.StackMember) {
	dropMember(st, m.Kind, m.Name)
	st.Members = append(st.Members, m)
	slices.SortFunc(st.Members, func(a, b *skepv1.StackMember) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
}

func dropMember(st *skepv1.Stack, kind, name string) {
	st.Members = slices.DeleteFunc(st.Members, func(m *skepv1.StackMember) bool { return m.Kind == kind && strings.EqualFold(m.Name, name) })
}

// summary says what a deploy changes, in words.
func summary(d deployment, ops []*stack.Op) string {
	var parts []string
	if d.rollbackTo != 0 {
		parts = append(parts, fmt.Sprintf("rollback to revision %d", d.rollbackTo))
	}
	for _, o := range ops {
		word := map[skepv1.StackChange_Verb]string{
			skepv1.StackChange_VERB_CREATE: "create", skepv1.StackChange_VERB_CHANGE: "change", skepv1.StackChange_VERB_REMOVE: "remove",
		}[o.Verb]
		if word == "" || o.Gone {
			continue
		}
		text := word + " " + o.Kind + " " + o.Name
		if len(o.Fields) > 0 {
			text += " (" + strings.Join(o.Fields, "; ") + ")"
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return "nothing changed"
	}
	return printable.Cut(strings.Join(parts, ", "), maxText)
}
