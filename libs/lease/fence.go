package lease

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// ErrDeposed: a later leader has moved the fence.
var ErrDeposed = errors.New("another instance leads")

// MoveFence writes a leader's fence to a key and returns its revision: every write that is conditional on an earlier one
// fails from then on, and those that were carried out are older than it. It refuses with ErrDeposed when the fence is that
// of a later epoch. kv.ErrConflict means that somebody else moved it meanwhile.
func MoveFence(ctx context.Context, b *kv.Bucket, key, holder string, epoch uint64) (uint64, error) {
	val, err := proto.Marshal(&skepv1.Fence{Holder: holder, Epoch: epoch})
	if err != nil {
		return 0, fmt.Errorf("encode fence %s: %w", key, err)
	}
	e, err := b.Get(ctx, key)
	if errors.Is(err, kv.ErrNotFound) {
		return b.Create(ctx, key, val)
	}
	if err != nil {
		return 0, err
	}
	var was skepv1.Fence
	if err := proto.Unmarshal(e.Value, &was); err == nil && was.GetEpoch() > epoch {
		return 0, fmt.Errorf("%w: %s, with epoch %d", ErrDeposed, was.GetHolder(), was.GetEpoch())
	}
	return b.Update(ctx, key, val, e.Revision)
}
