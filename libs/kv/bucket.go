package kv

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/subject"
)

// ErrConflict: somebody else wrote the key since the revision that was named (or it exists, for Create).
var ErrConflict = errors.New("the key was changed meanwhile")

// ErrNotFound: the key does not exist or was deleted.
var ErrNotFound = errors.New("no such key")

const (
	headerExpect = "Nats-Expected-Last-Subject-Sequence"
	headerOp     = "KV-Operation"
	opDelete     = "DEL"
)

// Entry is one key as it stood at Revision, the sequence of its last write.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
	Deleted  bool
	Time     time.Time
}

// Stored is the value as a picture takes it: nil for a deletion and never nil otherwise, since an empty value is one too.
func (e Entry) Stored() []byte {
	switch {
	case e.Deleted:
		return nil
	case e.Value == nil:
		return []byte{}
	}
	return e.Value
}

// Store is JetStream over a service's connection; the error names the service.
func Store(nc *nats.Conn, service string) (jetstream.JetStream, error) {
	if nc == nil {
		return nil, fmt.Errorf("%s: a connection to the broker is needed", service)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("%s: use the store: %w", service, err)
	}
	return js, nil
}

// Bucket writes to one bucket. Reads for decisions come from a Feed.
type Bucket struct {
	js        jetstream.JetStream
	name      subject.Bucket
	elections elections
}

// Open names a bucket; nothing is contacted.
func Open(js jetstream.JetStream, name subject.Bucket) *Bucket { return &Bucket{js: js, name: name} }

// Name is the bucket's name.
func (b *Bucket) Name() subject.Bucket { return b.name }

// Put writes whatever is there and returns the new revision.
func (b *Bucket) Put(ctx context.Context, key string, val []byte) (uint64, error) {
	return b.write(ctx, b.msg(key, val))
}

// Update writes if the key is still at rev (0 = does not exist and was never deleted; use Create).
func (b *Bucket) Update(ctx context.Context, key string, val []byte, rev uint64) (uint64, error) {
	m := b.msg(key, val)
	m.Header.Set(headerExpect, strconv.FormatUint(rev, 10))
	return b.write(ctx, m)
}

// Create writes if the key does not exist; over a tombstone too.
func (b *Bucket) Create(ctx context.Context, key string, val []byte) (uint64, error) {
	rev, err := b.Update(ctx, key, val, 0)
	if !errors.Is(err, ErrConflict) {
		return rev, err
	}
	last, terr := b.tombstone(ctx, key)
	if terr != nil {
		return 0, terr
	}
	if last == 0 {
		return 0, err
	}
	return b.Update(ctx, key, val, last)
}

// Set writes a key on the condition that it is as it was at a revision; 0: that it is not there.
func (b *Bucket) Set(ctx context.Context, key string, val []byte, rev uint64) (uint64, error) {
	if rev == 0 {
		return b.Create(ctx, key, val)
	}
	return b.Update(ctx, key, val, rev)
}

// Delete leaves a tombstone if the key is still at rev; rev 0 deletes whatever is there.
func (b *Bucket) Delete(ctx context.Context, key string, rev uint64) error {
	m := b.deletion(key)
	if rev != 0 {
		m.Header.Set(headerExpect, strconv.FormatUint(rev, 10))
	}
	_, err := b.write(ctx, m)
	return err
}

// Get reads a key from the stream's leader: linearizable, but for the moment in which a leader that hung wakes and does not know
// yet that there is another; so a write still names its revision. For start-up and tests, not for hot paths. With ErrNotFound
// the entry's Revision is what a write over the deletion must name, 0 when there is no trace of one.
func (b *Bucket) Get(ctx context.Context, key string) (Entry, error) {
	m, gone, err := b.newest(ctx, key)
	switch {
	case err != nil:
		return Entry{}, err
	case m == nil:
		return Entry{}, fmt.Errorf("read %s/%s: %w", b.name, key, ErrNotFound)
	case gone:
		return Entry{Key: key, Revision: m.Sequence, Deleted: true, Time: m.Time}, fmt.Errorf("read %s/%s: %w", b.name, key, ErrNotFound)
	}
	return Entry{Key: key, Value: m.Data, Revision: m.Sequence, Time: m.Time}, nil
}

func (b *Bucket) msg(key string, val []byte) *nats.Msg {
	m := nats.NewMsg(b.name.Key(key))
	m.Data = val
	return m
}

func (b *Bucket) deletion(key string) *nats.Msg {
	m := b.msg(key, nil)
	m.Header.Set(headerOp, opDelete)
	return m
}

func (b *Bucket) write(ctx context.Context, m *nats.Msg) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, bound(ctx))
	defer cancel()
	rev, err := b.publish(ctx, strings.TrimPrefix(m.Subject, b.name.Key("")), m)
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", m.Subject, err)
	}
	return rev, nil
}

// tombstone returns the sequence of what stands in the way of a Create although the key is gone: the deletion's marker, or
// a ghost. 0 when the key lives, or nothing stands there.
func (b *Bucket) tombstone(ctx context.Context, key string) (uint64, error) {
	m, gone, err := b.newest(ctx, key)
	if err != nil || m == nil || !gone {
		return 0, err
	}
	return m.Sequence, nil
}

// newest is the key's newest message at the stream's leader (nil: there is none), and whether it means that the key is gone.
func (b *Bucket) newest(ctx context.Context, key string) (m *leaderMsg, gone bool, err error) {
	for suspect := uint64(0); ; suspect = m.Sequence {
		m, err = b.last(ctx, key)
		if err != nil || m == nil || isMarker(m.Header) {
			return m, true, err
		}
		if !compacted(b.name) {
			return m, false, nil
		}
		// Read after the message: else the checkpoint that outlived the deletion might not be the one that is seen.
		c, err := b.checkpoint(ctx)
		if err != nil {
			return nil, false, err
		}
		if !c.ghost(m.Sequence) {
			return m, false, nil
		}
		// A ghost, or it was replaced between the two looks.
		if m.Sequence == suspect {
			return m, true, nil
		}
	}
}

// last asks the stream's leader for the key's newest message, nil when there is none.
func (b *Bucket) last(ctx context.Context, key string) (*leaderMsg, error) {
	return leaderGet(ctx, b.js, b.name.Stream(), b.name.Key(key))
}

// Classify turns the server's two codes for a failed expectation into ErrConflict (10164 is what R>1 says).
func Classify(err error) error {
	var api *jetstream.APIError
	var coded interface{ APIError() *jetstream.APIError }
	if !errors.As(err, &api) && errors.As(err, &coded) {
		api = coded.APIError()
	}
	if api != nil && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == 10164) {
		return fmt.Errorf("%w (%s)", ErrConflict, api.Description)
	}
	return err
}
