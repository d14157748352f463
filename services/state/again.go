package state

import (
	"context"
	"errors"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// A change that is asked again, since its answer was lost, is known by what it left, which is stored with the change or not at
// all. So it does not matter which instance is asked, whether the first try still goes on, and who was started meanwhile.
//
//	create  the id of the object follows from the request: the object is there, or was, and left the marker of its deletion.
//	change  the object keeps the marks of its last changes (rpc.Mark), in the write that makes the change.
//	remove  the object is named by its id, which no other ever has: it is gone.
//
// Two tries that go on at once are like two people: one of them meets a conflict, looks again, and finds what the other left.

// earlier finds what an earlier try to create the object of that id has made, as view shows it. The object may also be gone by
// now: then it must not be made a second time.
func earlier[O any](ctx context.Context, s *Service, k *keys.Family, id, what string, view func(id string) *O) (*O, error) {
	if !rpc.Again(ctx) {
		return nil, nil
	}
	if err := caughtUp(ctx, s.feeds.Of(subject.Spec)); err != nil {
		return nil, err
	}
	if o := view(id); o != nil {
		return o, nil
	}
	return nil, s.notGone(ctx, k, id, what)
}

// notGone refuses to make again what was made and removed.
func (s *Service) notGone(ctx context.Context, k *keys.Family, id, what string) error {
	e, err := s.spec.Get(ctx, k.Key(id))
	switch {
	case err == nil:
		return nil // it is there; the picture will show it
	case !errors.Is(err, kv.ErrNotFound):
		return fault.Unavailable("look what became of the first try: %v", err)
	case e.Revision != 0:
		return fault.NotFound("the %s was created, and removed since by somebody else: look, then create it again if it is still wanted", what)
	}
	return nil
}

// done reports whether the change in work under ctx was made of a service before.
func done(ctx context.Context, svc *skepv1.Service) bool {
	return rpc.MarkOf(ctx).In(svc.GetAsked())
}

// again is the answer with the service that an earlier try of the change in work has changed, nil when none has. An error means
// that nobody knows yet.
func (s *Service) again(ctx context.Context, id string) (*skepv1.ServiceReply, error) {
	if !rpc.Again(ctx) {
		return nil, nil
	}
	if err := caughtUp(ctx, s.feeds.Of(subject.Spec)); err != nil {
		return nil, err
	}
	if done(ctx, s.ix.Service(id)) {
		if svc := s.viewService(id); svc != nil {
			return &skepv1.ServiceReply{Service: svc}, nil
		}
	}
	return nil, nil
}
