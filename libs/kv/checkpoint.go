package kv

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// CheckpointKey is the key of a bucket's checkpoint, in the bucket itself. Feeds do not show it.
//
// # Why deletions need a checkpoint
//
// A deletion is a message without a value, a marker, and must not stay for ever: ids are never used twice, so markers would
// outgrow what lives. But the server writes no record of the values that its limit of one message per subject drops. Once
// the marker over such a value has gone, a server that ended without its index (kill -9, power) reads its blocks again and
// takes the value for the newest message of its key: what was deleted is back (nats-io/nats-server#8505).
//
// So a marker goes only after a checkpoint (S, L) is stored: the sequences L of all values that were live at sequence S.
//
//  1. No message above S is ever removed, other than by a newer one of its key.
//  2. So if the newest message that a key ever had is above S, it is on disk and is what a server finds, whatever else it
//     finds. Otherwise that message is at or below S, and was the key's value exactly if it is in L.
//  3. What a server finds at or below S and outside L is therefore a ghost: a key that is gone. It is refused by whoever
//     reads (Feed, Bucket.Get, Create) and removed by the Compactor. Nothing else is.
//
// The checkpoint is itself such a message, above S, and never removed. So it survives with whatever rests on it, it travels
// with the stream to new replicas and into backups, and a stream's last sequence does not go back: the last message is
// never one that is removed.
const CheckpointKey = "checkpoint"

// maxCheckpoint bounds a checkpoint's size in bytes; 1 to 3 bytes a key. A bucket with more keys keeps its markers.
const maxCheckpoint = MaxValue - 4<<10

// checkpoint is a stored checkpoint; revision 0 stands for none, and refuses nothing.
type checkpoint struct {
	revision uint64
	through  uint64
	live     []uint64 // ascending
}

// ghost reports whether a value found at seq is one that was deleted.
func (c checkpoint) ghost(seq uint64) bool {
	if seq > c.through {
		return false
	}
	_, live := slices.BinarySearch(c.live, seq)
	return !live
}

// encode fails when there are more keys than one message can name.
func (c checkpoint) encode() ([]byte, error) {
	m := &skepv1.Checkpoint{Through: c.through, Live: make([]uint64, len(c.live))}
	var last uint64
	for i, seq := range c.live {
		m.Live[i], last = seq-last, seq
	}
	val, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode a checkpoint: %w", err)
	}
	if len(val) > maxCheckpoint {
		return nil, fmt.Errorf("%d keys are more than a checkpoint can name (%d of %d bytes)", len(c.live), len(val), maxCheckpoint)
	}
	return val, nil
}

func decodeCheckpoint(revision uint64, val []byte) (checkpoint, error) {
	var m skepv1.Checkpoint
	if err := proto.Unmarshal(val, &m); err != nil {
		return checkpoint{}, fmt.Errorf("decode the checkpoint of revision %d: %w", revision, err)
	}
	c := checkpoint{revision: revision, through: m.GetThrough(), live: m.GetLive()}
	var last uint64
	for i, gap := range c.live {
		if last += gap; gap == 0 || last > c.through {
			return checkpoint{}, fmt.Errorf("decode the checkpoint of revision %d: entry %d (%d) does not fit sequence %d", revision, i, last, c.through)
		}
		c.live[i] = last
	}
	return c, nil
}

// checkpoint asks the stream's leader for the bucket's checkpoint.
func (b *Bucket) checkpoint(ctx context.Context) (checkpoint, error) {
	m, err := b.last(ctx, CheckpointKey)
	if err != nil || m == nil {
		return checkpoint{}, err
	}
	c, err := decodeCheckpoint(m.Sequence, m.Data)
	if err != nil {
		return checkpoint{}, fmt.Errorf("bucket %s: %w", b.name, err)
	}
	return c, nil
}
