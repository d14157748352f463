package kv

import (
	"context"
	"strconv"

	"github.com/nats-io/nats.go"
)

const headerExpectSubject = "Nats-Expected-Last-Subject-Sequence-Subject"

// WriteFenced writes one key (val nil deletes it) if another key of the bucket, the fence, is still at rev. It is one
// message and one fsync where a batch of two costs six; the key itself is written whatever is there.
func (b *Bucket) WriteFenced(ctx context.Context, key string, val []byte, fence string, rev uint64) (uint64, error) {
	var m *nats.Msg
	if val == nil {
		m = b.deletion(key)
	} else {
		m = b.msg(key, val)
	}
	m.Header.Set(headerExpect, strconv.FormatUint(rev, 10))
	m.Header.Set(headerExpectSubject, b.name.Key(fence))
	return b.write(ctx, m)
}
