package kv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// message is the newest message of a key, without its value.
type message struct {
	key    string
	seq    uint64
	marker bool // a deletion
}

// picture is the newest message of every key at sequence through, in the order of the stream. It may lack keys that have
// one above through.
type picture struct {
	through uint64
	newest  []message
}

const (
	scanBatch  = 4096             // messages asked for at once
	scanIdle   = 30 * time.Second // after which the server forgets a reader that was left behind
	scanAnswer = 2 * time.Second  // for making a reader
	scanWithin = time.Minute      // for all of it
)

var errElsewhere = errors.New("the server put it on another replica than the leader's")

// scan reads a stream from the store of its leader.
func scan(ctx context.Context, st jetstream.Stream) (picture, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, scanWithin)
		defer cancel()
	}
	// The server places a reader on any replica. There are five at most, and only the leader's store is to be read.
	const tries = 20
	for range tries {
		p, err := scanOnce(ctx, st)
		if !errors.Is(err, errElsewhere) {
			return p, err
		}
	}
	return picture{}, fmt.Errorf("asked %d times for a reader: %w", tries, errElsewhere)
}

func scanOnce(ctx context.Context, st jetstream.Stream) (picture, error) {
	info, err := st.Info(ctx)
	if err != nil {
		return picture{}, fmt.Errorf("look at the stream: %w", err)
	}
	// What the store has now is read, or was replaced meanwhile by something newer.
	p := picture{through: info.State.LastSeq}
	making, made := context.WithTimeout(ctx, scanAnswer)
	cons, err := st.CreateConsumer(making, jetstream.ConsumerConfig{
		FilterSubject: info.Config.Subjects[0], DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, AckPolicy: jetstream.AckNonePolicy, HeadersOnly: true,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: scanIdle,
	})
	unanswered := making.Err() != nil && ctx.Err() == nil
	made()
	if err != nil && unanswered {
		return picture{}, errElsewhere // on a replica that is dead, and is not known to be
	}
	if err != nil {
		return picture{}, fmt.Errorf("make a reader: %w", err)
	}
	defer func() {
		ctx, cancel := withDefaultTimeout(context.WithoutCancel(ctx))
		defer cancel()
		_ = st.DeleteConsumer(ctx, cons.CachedInfo().Name) // else it ends by itself
	}()
	at := cons.CachedInfo()
	if info.Config.Replicas > 1 && (at.Cluster == nil || at.Cluster.Leader != info.Cluster.Leader) {
		return picture{}, errElsewhere
	}
	prefix := strings.TrimSuffix(info.Config.Subjects[0], ">")
	place := map[string]int{}
	for read, pending := uint64(0), at.NumPending; pending > 0; {
		batch, err := cons.FetchNoWait(int(min(pending, scanBatch)))
		if err != nil {
			return picture{}, fmt.Errorf("read the stream: %w", err)
		}
		got := false
		for m := range batch.Messages() {
			md, err := m.Metadata()
			if err != nil {
				return picture{}, fmt.Errorf("read the stream: %w", err)
			}
			if read++; md.Sequence.Consumer != read {
				return picture{}, fmt.Errorf("read the stream: message %d came as number %d", md.Sequence.Consumer, read)
			}
			got, pending = true, md.NumPending
			key := strings.Clone(strings.TrimPrefix(m.Subject(), prefix))
			newest := message{key: key, seq: md.Sequence.Stream, marker: isMarker(m.Headers())}
			p.through = max(p.through, newest.seq)
			if i, ok := place[key]; ok { // written again while it was read
				p.newest[i].key = ""
			}
			place[key] = len(p.newest)
			p.newest = append(p.newest, newest)
		}
		if err := batch.Error(); err != nil {
			return picture{}, fmt.Errorf("read the stream: %w", err)
		}
		if !got {
			// Everything that was left has been replaced: what replaced it is above through.
			at, err := cons.Info(ctx)
			if err != nil {
				return picture{}, fmt.Errorf("look how much is left to read: %w", err)
			}
			if pending = at.NumPending; pending > 0 && ctx.Err() != nil {
				return picture{}, fmt.Errorf("read the stream: %w", ctx.Err())
			}
		}
	}
	kept := p.newest[:0]
	for _, m := range p.newest {
		if m.key != "" {
			kept = append(kept, m)
		}
	}
	p.newest = kept
	return p, nil
}

// isMarker reports whether a message says that its key is gone: by a client's word, or by the server's own at the end of a
// key's time to live.
func isMarker(h nats.Header) bool { return h.Get(headerOp) != "" || h.Get("Nats-Marker-Reason") != "" }
