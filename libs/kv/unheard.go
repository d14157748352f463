package kv

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/patience"
)

// whenLed does something again while nobody hears it, for as long as ctx has patience: a stream without a leader listens to
// nothing, so what was said to it was not done, not even in part. What was heard and not answered is not repeated here.
func whenLed[T any](ctx context.Context, do func() (T, error)) (T, error) {
	for {
		out, err := do()
		if err == nil || !unheard(err) || patience.Left(ctx) == 0 {
			return out, err
		}
		select {
		case <-ctx.Done():
			return out, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// unheard reports whether an error means that no leader took what was asked.
func unheard(err error) bool {
	if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) {
		return true
	}
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == codeNoLeader
}

// codeNoLeader: the JetStream system is temporarily unavailable, it has no leader.
const codeNoLeader = 10008

// ackWithin bounds the wait for one acknowledgement. A leader that hangs holds what it was sent; whoever waits longer than
// an election takes learns nothing more.
const ackWithin = 10 * time.Second
