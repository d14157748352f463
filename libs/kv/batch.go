package kv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"skep.dev/libs/subject"
)

// MaxBatch is the server's limit of messages in one atomic batch.
const MaxBatch = 1000

// Batch is a set of writes to one bucket that all happen or none does, each under its own condition.
// A key may appear once.
type Batch struct {
	b       *Bucket
	ops     []op
	keys    map[string]bool
	bytes   int
	lastSeq uint64
	err     error
}

type op struct {
	key    string
	msg    *nats.Msg
	create bool
}

// Batch begins an empty batch.
func (b *Bucket) Batch() *Batch { return &Batch{b: b, keys: map[string]bool{}} }

// Of is the bucket it is for.
func (t *Batch) Of() subject.Bucket { return t.b.name }

// Len is the number of writes so far.
func (t *Batch) Len() int { return len(t.ops) }

// Bytes is the size of the values so far.
func (t *Batch) Bytes() int { return t.bytes }

// Put writes whatever is there.
func (t *Batch) Put(key string, val []byte) { t.add(key, t.b.msg(key, val), "", false) }

// Update writes if the key is still at rev.
func (t *Batch) Update(key string, val []byte, rev uint64) {
	t.add(key, t.b.msg(key, val), strconv.FormatUint(rev, 10), false)
}

// Create writes if the key does not exist.
func (t *Batch) Create(key string, val []byte) { t.add(key, t.b.msg(key, val), "0", true) }

// Delete leaves a tombstone if the key is still at rev; rev 0 = whatever is there.
func (t *Batch) Delete(key string, rev uint64) {
	expect := ""
	if rev != 0 {
		expect = strconv.FormatUint(rev, 10)
	}
	t.add(key, t.b.deletion(key), expect, false)
}

// Bar leaves a tombstone where no key ever was: whoever writes it on the condition that it was never there comes too
// late. It conflicts with a key that exists, and with a tombstone.
func (t *Batch) Bar(key string) { t.add(key, t.b.deletion(key), "0", false) }

func (t *Batch) add(key string, m *nats.Msg, expect string, create bool) {
	if t.keys[key] {
		t.err = errors.Join(t.err, fmt.Errorf("key %s stands twice in one batch", key))
		return
	}
	t.keys[key] = true
	if expect != "" {
		m.Header.Set(headerExpect, expect)
	}
	t.ops = append(t.ops, op{key: key, msg: m, create: create})
	t.bytes += len(m.Data)
}

// Revision is the revision the i-th write got, after Commit.
func (t *Batch) Revision(i int) uint64 { return t.lastSeq - uint64(len(t.ops)-1-i) }

// Commit writes everything atomically and returns the revision of the last write. ErrConflict means nothing was
// written. Any other error may mean that everything was, with the answer lost: wait for the feed and look.
func (t *Batch) Commit(ctx context.Context) (uint64, error) {
	switch {
	case t.err != nil:
		return 0, t.err
	case len(t.ops) == 0:
		return 0, errors.New("commit: the batch is empty")
	case len(t.ops) > MaxBatch:
		return 0, fmt.Errorf("commit %d writes to %s: at most %d fit into one batch", len(t.ops), t.b.name, MaxBatch)
	}
	seq, err := t.publish(ctx)
	if errors.Is(err, ErrConflict) {
		// A Create over a tombstone conflicts too: name the tombstones and try once more.
		retry, terr := t.overTombstones(ctx)
		if terr != nil {
			return 0, terr
		}
		if retry {
			seq, err = t.publish(ctx)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("commit %d writes to %s (%s): %w", len(t.ops), t.b.name, t.describe(), err)
	}
	t.lastSeq = seq
	return seq, nil
}

// publish sends the batch. One that is not acknowledged looks what became of it, as a single write does (publish in
// unheard.go), at the key that can tell: all of the batch was stored, or nothing.
func (t *Batch) publish(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, bound(ctx))
	defer cancel()
	tells := t.telling()
	began := time.Now()
	for sent := 0; ; sent++ {
		try, cancel := t.b.underOneLeader(ctx, lookWithin(ctx, tells >= 0))
		seq, err := t.send(try)
		late := try.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			return seq, nil
		case late && tells < 0:
			return 0, errElected
		case late: // try again, or it was stored
		case sent == 0 || !errors.Is(Classify(err), ErrConflict):
			return 0, Classify(err)
		}
		o := t.ops[tells]
		e, gerr := t.b.Get(ctx, o.key)
		stored, lerr := became(o.msg, e, gerr, began)
		switch {
		case lerr != nil:
			return 0, errors.Join(Classify(err), lerr)
		case stored:
			return e.Revision + uint64(len(t.ops)-1-tells), nil
		}
	}
}

// telling is the first write whose key tells whether the batch was stored: one with a value, on the condition of its own key's
// revision. -1: none does.
func (t *Batch) telling() int {
	return slices.IndexFunc(t.ops, func(o op) bool { return len(o.msg.Data) > 0 && conditional(o.msg) })
}

// send publishes it once, and again while there is no leader.
func (t *Batch) send(ctx context.Context) (uint64, error) {
	if len(t.ops) == 1 {
		ack, err := t.b.send(ctx, t.ops[0].msg)
		if err != nil {
			return 0, err
		}
		return ack.Sequence, nil
	}
	msgs := make([]*nats.Msg, len(t.ops))
	for i, o := range t.ops {
		msgs[i] = o.msg
		msgs[i].Reply = ""
	}
	// Nothing is gained by waiting for a word on the first message, and it would be waited for beyond ctx.
	flow := jetstreamext.BatchFlowControl{AckFirst: false}
	ack, err := whenLed(ctx, func() (*jetstreamext.BatchAck, error) {
		return jetstreamext.PublishMsgBatch(ctx, t.b.js, msgs, flow)
	})
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

func (t *Batch) overTombstones(ctx context.Context) (changed bool, err error) {
	for _, o := range t.ops {
		if !o.create {
			continue
		}
		seq, err := t.b.tombstone(ctx, o.key)
		if err != nil {
			return false, err
		}
		want := strconv.FormatUint(seq, 10)
		if seq != 0 && o.msg.Header.Get(headerExpect) != want {
			o.msg.Header.Set(headerExpect, want)
			changed = true
		}
	}
	return changed, nil
}

func (t *Batch) describe() string {
	const most = 4
	var keys []string
	for i, o := range t.ops {
		if i == most {
			keys = append(keys, fmt.Sprintf("and %d more", len(t.ops)-most))
			break
		}
		keys = append(keys, o.key)
	}
	return strings.Join(keys, ", ")
}
