package state

import (
	"context"
	"errors"
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
	"skep.dev/services/state/internal/index"
)

// A stream with one replica stages every atomic batch on disk: 4 to 5 ms for two small writes, where two single ones
// cost 0.6. So a lone manager creates a service in two steps that are as safe: it claims the name, then writes the
// object on the condition that the claim stands. A claim whose object never came is released by a batch, on the
// conditions that it stands and that the object did not come: whichever of the two the stream takes first makes the
// other fail.

// claimStands is how long a claim without an object is left to its maker.
const claimStands = 2 * time.Second

// createByClaim is the two steps.
func (s *Service) createByClaim(ctx context.Context, id, name string, body []byte) error {
	key := keys.Name(keys.ServiceName, name)
	var claim uint64
	if k, ok := s.ix.Key(key); ok && k.Value == id {
		claim = k.Revision // of an attempt before this one
	} else {
		var err error
		claim, err = s.spec.Create(ctx, key, []byte(id))
		switch {
		case errors.Is(err, kv.ErrConflict):
			return err
		case err != nil:
			return fault.Unavailable("claim the name %s: %v", name, err)
		}
	}
	rev, err := s.spec.WriteFenced(ctx, keys.Service.Key(id), body, key, claim)
	switch {
	case err == nil:
		return seen(ctx, s.feeds.Of(subject.Spec), rev)
	case errors.Is(err, kv.ErrConflict):
		return err // the claim was released: we were too slow
	}
	// The claim is left to whoever wants the name next: the object may have been written.
	return fault.Unavailable("the service could not be stored, or its acknowledgement was lost: look, then try again (%v)", err)
}

// freeStaleClaim releases a name whose claimant, other than except, has not come back with its object.
func (s *Service) freeStaleClaim(ctx context.Context, name, except string) error {
	key := keys.Name(keys.ServiceName, name)
	k, ok := s.ix.Key(key)
	if !ok || k.Value == except || s.ix.Service(k.Value) != nil {
		return nil
	}
	if time.Since(k.Seen) < claimStands {
		return kv.ErrConflict
	}
	rev, err := s.release(ctx, key, k)
	if errors.Is(err, kv.ErrConflict) {
		return err
	}
	if err != nil {
		return fault.Unavailable("release the name %s: %v", name, err)
	}
	return seen(ctx, s.feeds.Of(subject.Spec), rev)
}

// release takes a claim back if it is the one that was seen, since another may have released it and a third claimed
// the name anew, and if its object did not come.
func (s *Service) release(ctx context.Context, key string, claim index.Key) (uint64, error) {
	batch := s.spec.Batch()
	batch.Bar(keys.Service.Key(claim.Value))
	batch.Delete(key, claim.Revision)
	return batch.Commit(ctx)
}

// lone reports whether the spec bucket has a single replica. Either way of creating is right at any number.
func (s *Service) lone(ctx context.Context) bool {
	if at := s.replicasAt.Load(); at != 0 && time.Since(time.UnixMilli(at)) < time.Minute {
		return s.replicas.Load() == 1
	}
	st, err := s.js.Stream(ctx, subject.Spec.Stream())
	if err != nil {
		return false
	}
	s.replicas.Store(int64(st.CachedInfo().Config.Replicas))
	s.replicasAt.Store(time.Now().UnixMilli())
	return s.replicas.Load() == 1
}
