package kv

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/patience"
)

// unheardAgain is the pause before what nobody heard is said again.
const unheardAgain = 50 * time.Millisecond

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
		case <-time.After(unheardAgain):
		}
	}
}

// A question to a leader is put again after readAgain without an answer, then after twice as long, at most readEvery: a leader that
// died says nothing, and neither do servers that do not lead the stream. One that hands over drops what it had not come to.
const (
	readAgain = 200 * time.Millisecond
	readEvery = 500 * time.Millisecond
)

// askLed asks a stream's leader something that changes nothing, again and again until ctx ends, and takes the first answer to
// any of them: a leader that is only slow is not given up. That there is no leader is an error at once, unless ctx has patience.
func askLed[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		out T
		err error
	}
	answers := make(chan answer)
	wait := readAgain
	again := time.NewTimer(wait)
	defer again.Stop()
	for {
		go func() {
			out, err := whenLed(ctx, func() (T, error) { return ask(ctx) })
			select {
			case answers <- answer{out, err}:
			case <-ctx.Done():
			}
		}()
		select {
		case a := <-answers:
			return a.out, a.err
		case <-again.C:
			wait = min(2*wait, readEvery)
			again.Reset(wait)
		case <-ctx.Done():
			var none T
			return none, ctx.Err()
		}
	}
}

// unheard reports whether an error means that no leader took what was asked. One that hears the end of a batch and not its
// beginning, which was said to another, stores nothing of it.
func unheard(err error) bool {
	if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) {
		return true
	}
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == codeNoLeader || api.ErrorCode == codeIncompleteBatch)
}

// Error codes of the server.
const (
	codeNoLeader        = 10008 // JetStream system temporarily unavailable
	codeIncompleteBatch = 10176 // atomic publish batch is incomplete
)

const (
	// ackWithin bounds the wait for one acknowledgement. A leader that hangs holds what it was sent; whoever waits longer
	// than an election takes learns nothing more.
	ackWithin = 10 * time.Second
	// lookAfter is when a write that is not acknowledged looks what became of it. It is longer than a write takes on a slow
	// disk, and shorter than an election.
	lookAfter = 2 * time.Second
)

// bound is how long a write may take in all.
func bound(ctx context.Context) time.Duration {
	if left := patience.Left(ctx); left > 0 {
		return left + time.Second
	}
	return ackWithin
}

// lookWithin is how long a write waits for its acknowledgement before it looks, 0: as long as ctx.
func lookWithin(ctx context.Context, looks bool) time.Duration {
	if end, ok := ctx.Deadline(); !looks || ok && time.Until(end) <= lookAfter {
		return 0
	}
	return lookAfter
}

// errElected ends a write that cannot be looked for.
var errElected = errors.New("the store has a new leader: the old one may have stored it or not")

// send publishes one message, and again while nobody hears it.
func (b *Bucket) send(ctx context.Context, m *nats.Msg) (*jetstream.PubAck, error) {
	var opts []jetstream.PublishOpt
	if patience.Left(ctx) > 0 {
		opts = append(opts, jetstream.WithRetryAttempts(0)) // whenLed asks again sooner than the client library
	}
	return whenLed(ctx, func() (*jetstream.PubAck, error) { return b.js.PublishMsg(ctx, m, opts...) })
}

// publish writes a message that is conditional on its key's revision, or one that is not.
//
// The leader that it was sent to may have died or hang, or handed over to another, and may or may not have stored it. So the
// write looks, when there is a new leader or after a while: is the key at the revision that was expected, the message is sent
// again. The first one, should it still arrive, makes the second one conflict, or conflicts itself; so it is stored once, and a
// conflict is looked into: a newer revision with our value is our write, or somebody's who wrote the same. What cannot be
// looked for fails at the election.
func (b *Bucket) publish(ctx context.Context, key string, m *nats.Msg) (uint64, error) {
	began := time.Now()
	for sent := 0; ; sent++ {
		looks := conditional(m)
		try, cancel := b.underOneLeader(ctx, lookWithin(ctx, looks))
		ack, err := b.send(try, m)
		late := try.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			return ack.Sequence, nil
		case late && !looks:
			return 0, errElected
		case late: // try again, or it was stored
		case sent == 0 || !errors.Is(Classify(err), ErrConflict):
			return 0, Classify(err)
		}
		e, gerr := b.Get(ctx, key)
		stored, lerr := became(m, e, gerr, began)
		switch {
		case lerr != nil && errors.Is(lerr, ErrConflict):
			return 0, ErrConflict
		case lerr != nil:
			return 0, errors.Join(Classify(err), lerr)
		case stored:
			return e.Revision, nil
		}
	}
}

// conditional reports whether a message is stored only while its own key is at a revision, and leaves a value.
func conditional(m *nats.Msg) bool {
	_, err := strconv.ParseUint(m.Header.Get(headerExpect), 10, 64)
	return err == nil && m.Header.Get(headerExpectSubject) == "" && m.Header.Get(headerOp) == ""
}

// errRemoved: a key that was to be made is gone again.
var errRemoved = errors.New("it was stored, and removed by somebody since, or never stored")

// became tells from the newest entry of its key what became of a conditional message that was sent at began and not answered:
// stored; not stored, so that it may be sent again; or an error, ErrConflict when somebody else's stands there.
func became(m *nats.Msg, e Entry, gerr error, began time.Time) (stored bool, err error) {
	expect, err := strconv.ParseUint(m.Header.Get(headerExpect), 10, 64)
	switch {
	case err != nil:
		return false, err
	case gerr != nil && !errors.Is(gerr, ErrNotFound):
		return false, gerr
	case gerr == nil && e.Revision > expect && bytes.Equal(e.Value, m.Data):
		return true, nil
	case e.Revision == expect:
		return false, nil
	case expect == 0 && e.Deleted && e.Time.After(began.Add(-time.Second)):
		return false, errRemoved // a Create must not bring back what was removed
	}
	return false, ErrConflict
}
