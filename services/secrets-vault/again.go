package vault

import (
	"context"
	"errors"
	"fmt"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
)

// A change that is asked again, since its answer was lost, is known by what it left, as state knows its own: the id of what is
// created follows from the request, a record keeps the marks of its last changes, and what is removed is named by its id.

// errDone ends a try of a change that another try of the same request has made.
var errDone = errors.New("the change was made by another try of the request")

// made is what an earlier try of the creation in work has made, nil when it made nothing. What was removed since is not made
// again.
func (k kind) made(ctx context.Context, object string) (*skepv1.SecretReply, error) {
	if rpc.MarkOf(ctx) == nil {
		return nil, nil
	}
	if rpc.Again(ctx) {
		if err := k.feed.Current(ctx); err != nil {
			return nil, fault.Unavailable("look what became of the first try: %v", err)
		}
	}
	k.whole(ctx)
	defer k.idx.mu.Unlock()
	switch o := k.idx.objects.byID[object]; {
	case o == nil:
		return nil, nil
	case !k.idx.objects.genuine(o):
		return nil, fault.Denied("%v", errAltered(o))
	case o.RemovedAt != nil:
		return nil, fault.NotFound("the %s was created, and removed since by somebody else: look, then create it again if it is still wanted", k.word())
	default:
		return &skepv1.SecretReply{Secret: o.view()}, nil
	}
}

// changed is the answer to an update that was made before. Services that are still to get the version are given it.
func (k kind) changed(ctx context.Context, o *object, r *skepv1.UpdateSecretRequest) (*skepv1.SecretReply, error) {
	reply := &skepv1.SecretReply{Secret: o.view()}
	if r.Hold || o.Rolling == 0 {
		return reply, nil
	}
	var err error
	if reply.Rolled, err = k.roll(ctx, o); err != nil {
		reply.Warnings = append(reply.Warnings, fmt.Sprintf("version %d is stored, the services that use it are not changed yet: %v; the vault goes on with it", o.current(), err))
	}
	return reply, nil
}

// gone is the answer to a removal that is asked again.
func (k kind) gone(object string) *skepv1.RemoveSecretReply {
	k.idx.mu.Lock()
	defer k.idx.mu.Unlock()
	if o := k.idx.objects.byID[object]; o != nil && o.Secret.Kind == k.SecretKind {
		return &skepv1.RemoveSecretReply{Secret: o.view()} // it is kept for a while
	}
	return &skepv1.RemoveSecretReply{Secret: &skepv1.Secret{Meta: &skepv1.Meta{Id: object}, Kind: k.SecretKind}}
}
