package state

import (
	"context"
	"errors"
	"slices"
	"strings"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/printable"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// mostProblems bounds what a stack tells of.
const mostProblems = 20

// tellProblems writes down what keeps a stack from being as asked.
func (s *Service) tellProblems(ctx context.Context, a aimed, list []*skepv1.StackProblem) error {
	list = list[:min(len(list), mostProblems)]
	for _, p := range list {
		p.Text = printable.Cut(strings.ToValidUTF8(p.Text, "?"), maxText)
	}
	st, err := a.stack()
	same := func(x, y *skepv1.StackProblem) bool { return proto.Equal(x, y) }
	if err != nil || slices.EqualFunc(st.Problems, list, same) {
		return err
	}
	return a.edit(ctx, func(st *skepv1.Stack) { st.Problems = list })
}

// finish writes down that a stack is as asked, or removes one that has nothing left.
func (s *Service) finish(ctx context.Context, a aimed) error {
	st, err := a.stack()
	if err != nil {
		return err
	}
	ctx = rpc.WithActor(ctx, rpc.Actor{}) // nobody asks for an end
	if a.aim.State == skepv1.StackState_STACK_STATE_DEPLOYING {
		err := a.edit(ctx, func(st *skepv1.Stack) {
			st.State, st.Problems, st.Meta.UpdatedAt = skepv1.StackState_STACK_STATE_DEPLOYED, nil, timestamppb.Now()
		})
		if err == nil {
			s.events.send(ctx, stackEvent(st, "deployed"))
		}
		return err
	}
	batch := s.spec.Batch()
	batch.Delete(keys.Stack.Key(a.id), st.Meta.Version)
	name := keys.Name(keys.StackName, st.Name)
	if k, ok := s.ix.Key(name); ok && k.Value == a.id {
		batch.Delete(name, k.Revision)
	}
	err = s.commit(ctx, batch, func() bool { return s.ix.Stack(a.id) == nil })
	if errors.Is(err, kv.ErrConflict) {
		return errPlanAgain
	}
	if err != nil {
		return err
	}
	s.events.send(ctx, stackEvent(st, "removed"))
	if err := s.dropStackRevisions(ctx, a.id); err != nil {
		s.log.Warn("revisions of a removed stack left for the sweep", zap.String("stack", st.Name), zap.Error(err))
	}
	return nil
}
