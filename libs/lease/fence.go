package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// ErrDeposed: a later leader has moved the fence.
var ErrDeposed = errors.New("another instance leads")

const (
	// writeFor bounds one write: a leader that waits longer is none any more.
	writeFor = 10 * time.Second
	// oneFor bounds a write of one key, which cannot be looked for when the store's leader died with it: Hold finds out.
	oneFor = 2500 * time.Millisecond
)

// Writer is how a leader writes to its bucket: every write is conditional on the fence, a key of the same bucket that each
// leader moves as it begins.
//
// Why nothing that a deposed leader wrote can land, however long it slept or its message was under way, and why its
// successor knows all that did:
//
//  1. A bucket is one stream, which takes messages one after the other. Moving the fence is one of them, so every other
//     write comes before it or after it.
//  2. Every write names the revision of the fence that it is valid at: one key by an expectation on the fence
//     (kv.Bucket.WriteFenced), several as an atomic batch that moves the fence itself. What comes after the fence was moved
//     by another is refused by the stream.
//  3. What came before has a smaller revision than the fence's new one. Hold returns only once the feed has come to that:
//     what is planned then is planned from all of it.
//  4. Epochs grow with every leadership (Lease), and the fence of a later epoch is not taken: the deposed stays deposed.
//  5. A write without an answer was carried out, or is still under way, or is lost. After any error the writer does not
//     hold its fence until Hold has moved it again: then that write is known (3) or will be refused (2).
//
// A Writer is one instance's and not safe for concurrent use.
type Writer struct {
	bucket      *kv.Bucket
	key, holder string
	epoch, rev  uint64 // no epoch: it does not lead
	held        bool
}

// NewWriter is a writer that does not lead. key is the fence, holder the instance's name in it.
func NewWriter(b *kv.Bucket, key, holder string) *Writer {
	return &Writer{bucket: b, key: key, holder: holder}
}

// Lead begins a leadership: nothing is held yet.
func (w *Writer) Lead(epoch uint64) { w.epoch, w.rev, w.held = epoch, 0, false }

// Resign ends it: nothing can be written any more.
func (w *Writer) Resign() { w.Lead(0) }

// Lose makes Hold move the fence again before the next Write, as an error does.
func (w *Writer) Lose() { w.held = false }

// Leads reports whether a leadership was begun and not ended.
func (w *Writer) Leads() bool { return w.epoch != 0 }

// Held reports whether Write may be called: the fence was taken, and no write has failed since.
func (w *Writer) Held() bool { return w.held }

// Hold sees to it that this instance may write and that feed, the bucket's, has told all that was written before. ErrDeposed
// ends the leadership; any other error may go by.
func (w *Writer) Hold(ctx context.Context, feed *kv.Feed) error {
	if w.held {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeFor)
	defer cancel()
	rev, err := w.take(ctx)
	if err == nil {
		err = feed.Wait(ctx, rev)
	}
	if err != nil {
		return fmt.Errorf("take the fence: %w", err)
	}
	w.rev, w.held = rev, true
	return nil
}

// take moves the fence and returns its revision.
func (w *Writer) take(ctx context.Context) (uint64, error) {
	if w.epoch == 0 {
		return 0, ErrDeposed
	}
	for {
		rev, err := w.move(ctx)
		if !errors.Is(err, kv.ErrConflict) || ctx.Err() != nil {
			return rev, err
		}
		// Somebody moved it meanwhile: look who.
	}
}

func (w *Writer) move(ctx context.Context) (uint64, error) {
	val, err := w.value()
	if err != nil {
		return 0, err
	}
	e, err := w.bucket.Get(ctx, w.key)
	if errors.Is(err, kv.ErrNotFound) {
		return w.bucket.Create(ctx, w.key, val)
	}
	if err != nil {
		return 0, err
	}
	var was skepv1.Fence
	if err := proto.Unmarshal(e.Value, &was); err == nil && was.GetEpoch() > w.epoch {
		return 0, fmt.Errorf("%w: %s, with epoch %d", ErrDeposed, was.GetHolder(), was.GetEpoch())
	}
	return w.bucket.Update(ctx, w.key, val, e.Revision)
}

func (w *Writer) value() ([]byte, error) {
	val, err := proto.Marshal(&skepv1.Fence{Holder: w.holder, Epoch: w.epoch})
	if err != nil {
		return nil, fmt.Errorf("encode fence %s: %w", w.key, err)
	}
	return val, nil
}

// Op is a write of one key.
type Op struct {
	Key   string
	Value []byte // nil deletes
	// Checked makes it conditional, in a batch, on the key's own revision too: Over, 0 for a key that is not there. The
	// fence is enough where the leader is the key's only writer.
	Checked bool
	Over    uint64
}

// MaxOps is how many Write takes at once: one message of a batch moves the fence.
const MaxOps = kv.MaxBatch - 1

// Write writes all of ops or none and returns their revisions: one key as a single message conditional on the fence, several
// as an atomic batch that moves it. After an error, whatever it is, Hold comes before the next Write.
func (w *Writer) Write(ctx context.Context, ops ...Op) (revs []uint64, err error) {
	if !w.held {
		return nil, fmt.Errorf("write under fence %s: it is not held", w.key)
	}
	within := writeFor
	if len(ops) == 1 {
		within = oneFor
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	w.held = false
	if len(ops) == 1 {
		rev, err := w.bucket.WriteFenced(ctx, ops[0].Key, ops[0].Value, w.key, w.rev)
		if err != nil {
			return nil, fmt.Errorf("write %s: %w", ops[0].Key, err)
		}
		w.held = true
		return []uint64{rev}, nil
	}
	val, err := w.value()
	if err != nil {
		return nil, err
	}
	b := w.bucket.Batch()
	b.Update(w.key, val, w.rev)
	for _, o := range ops {
		switch {
		case o.Value == nil:
			b.Delete(o.Key, o.Over)
		case !o.Checked:
			b.Put(o.Key, o.Value)
		case o.Over == 0:
			b.Create(o.Key, o.Value)
		default:
			b.Update(o.Key, o.Value, o.Over)
		}
	}
	if _, err := b.Commit(ctx); err != nil {
		return nil, err
	}
	w.rev, w.held = b.Revision(0), true
	revs = make([]uint64, len(ops))
	for i := range revs {
		revs[i] = b.Revision(i + 1)
	}
	return revs, nil
}
