package kv

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
)

// Read reads a key that is written once and never changed, from whichever replica answers: what it has is right. A replica
// that does not have it yet is no answer; then the stream's leader is asked. Unlike Get's, the value is not in JSON on its
// way, so it may be as large as a message.
func (b *Bucket) Read(ctx context.Context, key string) (Entry, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	m, err := b.js.Conn().RequestWithContext(ctx, "$JS.API.DIRECT.GET."+b.name.Stream()+"."+b.name.Key(key), nil)
	if err != nil {
		return Entry{}, fmt.Errorf("read %s/%s: %w", b.name, key, err)
	}
	if m.Header.Get("Status") != "" || isMarker(m.Header) {
		return b.Get(ctx, key)
	}
	if got := m.Header.Get(nats.JSSubject); got != b.name.Key(key) {
		return Entry{}, fmt.Errorf("read %s/%s: the answer is of %q", b.name, key, got)
	}
	return Entry{Key: key, Value: m.Data}, nil
}

// Keys lists the keys that have a value, each with its revision. It is no older than the call.
func (b *Bucket) Keys(ctx context.Context) (map[string]uint64, error) {
	st, err := b.js.Stream(ctx, b.name.Stream())
	if err != nil {
		return nil, fmt.Errorf("list the keys of %s: %w", b.name, err)
	}
	p, err := scan(ctx, st)
	if err != nil {
		return nil, fmt.Errorf("list the keys of %s: %w", b.name, err)
	}
	out := make(map[string]uint64, len(p.newest))
	for _, m := range p.newest {
		if !m.marker && m.key != CheckpointKey {
			out[m.key] = m.seq
		}
	}
	return out, nil
}
