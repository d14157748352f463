package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
	pb "skep.dev/proto/skep/v1"
)

// First is the first sequence of a restored store's streams.
//
// Nodes take the record of a higher sequence for the newer one, leaders are told apart by sequences of their lease, and
// clients change what they saw at a sequence. So a restored store must begin above every sequence that anybody saw of the
// one before, which went on after the backup nobody knows how far; and above those of another restore of the same backup.
// Time gives that: a million messages a second, from the epoch of Unix on, are more than a stream ever takes. The number
// stays below 2^53, where numbers of JSON end, until the year 2242.
func First(h *pb.BackupHeader, now time.Time) uint64 {
	first := uint64(max(now.Unix(), 0)) << 20
	for _, seq := range h.GetSequences() { // a clock that is years slow
		first = max(first, (seq>>20+1)<<20)
	}
	return first
}

// Epoch is the epoch of a restored group of managers: above the backup's, and above that of an earlier restore of it.
func Epoch(h *pb.BackupHeader, now time.Time) uint64 {
	return max(h.GetEpoch()+1, uint64(max(now.Unix(), 0)))
}

// Loader fills a store that holds nothing.
type Loader struct {
	ctx     context.Context
	js      jetstream.JetStream
	batch   *kv.Batch
	entries map[subject.Bucket]uint64
}

const (
	loadMessages = 500
	loadBytes    = 2 << 20
)

// NewLoader makes the cluster's streams, which begin at a sequence. It refuses a store that has some.
func NewLoader(ctx context.Context, js jetstream.JetStream, first uint64) (*Loader, error) {
	for _, c := range kv.Streams(1) {
		if _, err := js.Stream(ctx, c.Name); !errors.Is(err, jetstream.ErrStreamNotFound) {
			if err == nil {
				err = errors.New("it exists: the store is of a cluster that lives")
			}
			return nil, fmt.Errorf("make stream %s: %w", c.Name, err)
		}
	}
	for _, c := range kv.Streams(1) {
		for _, b := range subject.Buckets {
			if b.Stream() == c.Name {
				c.FirstSeq = first
			}
		}
		if _, err := js.CreateStream(ctx, c); err != nil {
			return nil, fmt.Errorf("make stream %s: %w", c.Name, err)
		}
	}
	return &Loader{ctx: ctx, js: js, entries: map[subject.Bucket]uint64{}}, nil
}

// Put writes an entry after those of its bucket that came before.
func (l *Loader) Put(b subject.Bucket, e kv.Entry) error {
	if l.batch != nil && (l.batch.Of() != b || l.batch.Len() >= loadMessages || l.batch.Bytes()+len(e.Value) > loadBytes) {
		if err := l.flush(); err != nil {
			return err
		}
	}
	if l.batch == nil {
		l.batch = kv.Open(l.js, b).Batch()
	}
	l.batch.Create(e.Key, e.Value)
	l.entries[b]++
	return nil
}

func (l *Loader) flush() error {
	if l.batch == nil {
		return nil
	}
	_, err := l.batch.Commit(l.ctx)
	l.batch = nil
	if err != nil {
		return fmt.Errorf("restore the store: %w", err)
	}
	return nil
}

// Close writes what is left, gives every bucket its checkpoint, and looks whether all is there.
func (l *Loader) Close(log *zap.Logger) error {
	if err := l.flush(); err != nil {
		return err
	}
	kv.NewCompactor(l.js, log, 0).Begin(l.ctx)
	for _, b := range subject.Buckets {
		want := l.entries[b]
		if Kept(b) {
			want++ // the checkpoint
		}
		st, err := l.js.Stream(l.ctx, b.Stream())
		if err != nil {
			return fmt.Errorf("look at restored bucket %s: %w", b, err)
		}
		if have := st.CachedInfo().State.Msgs; have != want {
			return fmt.Errorf("restore bucket %s: it holds %d messages instead of %d", b, have, want)
		}
	}
	return nil
}
