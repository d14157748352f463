package vault

import (
	"context"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
)

// A new version is stored first, with a note that services are still to be given it; then state is asked to. The note goes
// when it has been done, so a vault that dies between leaves work that the next one finds.

// roll gives the newest version to the services that use an object, and returns their names.
func (s *Service) roll(ctx context.Context, o *object) ([]string, error) {
	v := o.version(o.Rolling)
	r, err := askState(ctx, s, api.FilesRoll, &skepv1.RollSecretRequest{
		Id: o.id(), Name: o.name(), Kind: o.Secret.Kind, Version: o.Rolling, Author: v.GetAuthor(), AuthorAddress: v.GetAuthorAddress(),
	})
	if err != nil {
		return nil, err
	}
	_, err = s.change(ctx, o.id(), func(cur *object) (*skepv1.SecretRecord, error) {
		if cur == nil || cur.Rolling != o.Rolling {
			return nil, fault.Conflict("there is a newer one")
		}
		next := proto.CloneOf(cur.SecretRecord)
		next.Rolling = 0
		return next, nil
	})
	if fault.Is(err, fault.CodeConflict) {
		err = nil
	}
	return r.Services, err
}

const (
	tendEvery = 5 * time.Second
	// rollAfter is how long who asked for a version has to see to it.
	rollAfter = 10 * time.Second
)

// tend finishes until ctx ends what requests left undone. Every instance does it: who comes second finds nothing to do.
func (s *Service) tend(ctx context.Context) {
	t := time.NewTicker(tendEvery)
	defer t.Stop()
	trimmed := map[string]uint64{} // by object: the version at which that was last done
	var leftOver map[string]uint64 // see sweep
	var swept time.Time
	for {
		s.rollLeft(ctx)
		s.settleRemoved(ctx)
		s.trim(ctx, trimmed)
		if time.Since(swept) > sweepEvery {
			var err error
			if leftOver, err = s.sweep(ctx, leftOver); err != nil && ctx.Err() == nil {
				s.log.Warn("values that no secret refers to are not removed yet; trying again", zap.Error(err))
			}
			s.left.note(leftOver)
			swept = time.Now()
		}
		s.dropRegistries(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (s *Service) rollLeft(ctx context.Context) {
	s.idx.mu.Lock()
	var left []*object
	for _, o := range s.idx.objects.byID {
		if o.Rolling != 0 && o.RemovedAt == nil && s.idx.objects.genuine(o) && s.cfg.Now().Sub(o.Secret.Meta.UpdatedAt.AsTime()) > rollAfter {
			left = append(left, o)
		}
	}
	s.idx.mu.Unlock()
	for _, o := range left {
		if _, err := s.roll(ctx, o); err != nil && ctx.Err() == nil {
			s.log.Warn("services are not given a new version yet; trying again", zap.String("kind", o.word()), zap.String("name", o.name()), zap.Error(err))
		}
	}
}
