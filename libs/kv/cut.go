package kv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"skep.dev/libs/subject"
)

// Cut is several buckets as they stood at one instant.
//
// # How it is one instant
//
// Buckets are streams of their own, and no question is answered by all of them at once. So a Cutter follows them and asks
// each for its last sequence, twice. When nobody has written to any of them between the two rounds, there was an instant
// between them at which all stood where both rounds found them. With several managers that holds as well, for no clock is in it.
//
// Where writes never pause that long (see quietTries), the cut is made by the messages' times: of each bucket what was
// written up to one time. With one manager that is one clock and as exact. With several it is as good as their clocks
// agree, which is why such a cut says so (Timed), and why whoever takes one looks whether what it holds fits together.
//
// Either way no atomic batch is divided: the broker writes into each of its messages which one it is of, and which is the last.
type Cut struct {
	Buckets   map[subject.Bucket][]Entry // what lives, in the order in which it was written
	Sequences map[subject.Bucket]uint64  // the last one that is in it
	Timed     bool
}

// Cutter follows buckets until it is closed; a cut may be taken again. It holds all that they hold.
type Cutter struct {
	tails []*tail
	quiet int // quietTries; tests have less
}

const (
	// quietTries is how often it looks for an instant without writes, before it goes by the messages' times.
	quietTries = 50
	// quietPause is the longest wait between two looks; they wait for different times, so that they do not keep step with somebody.
	quietPause = 20 * time.Millisecond
	// stampMargin is more than lies between a message's time and its place in the store.
	stampMargin = 5 * time.Millisecond
	// caughtWithin is how long a follower may take for what is there.
	caughtWithin = 30 * time.Second
)

// NewCutter begins to follow buckets.
func NewCutter(ctx context.Context, js jetstream.JetStream, buckets ...subject.Bucket) (*Cutter, error) {
	c := &Cutter{quiet: quietTries}
	for _, b := range buckets {
		t, err := follow(ctx, js, b)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("follow bucket %s: %w", b, err)
		}
		c.tails = append(c.tails, t)
	}
	return c, nil
}

// Close ends it.
func (c *Cutter) Close() {
	for _, t := range c.tails {
		t.close()
	}
}

// Take takes a cut. It tries until ctx ends.
func (c *Cutter) Take(ctx context.Context) (*Cut, error) {
	why := errors.New("there was no time")
	for try := 0; ctx.Err() == nil; try++ {
		cut, err := c.try(ctx, try >= c.quiet)
		if err == nil {
			return cut, nil
		}
		why = err
		if errors.Is(err, errBusy) && try < c.quiet {
			err = nil
		}
		pause := rand.N(quietPause)
		if err != nil {
			pause += quietPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil, fmt.Errorf("take all buckets at one instant: %w", why)
}

var errBusy = errors.New("somebody always writes")

func (c *Cutter) try(ctx context.Context, timed bool) (*Cut, error) {
	began := time.Now()
	first, err := c.ends(ctx)
	if err != nil {
		return nil, err
	}
	for i, t := range c.tails {
		if err := t.reach(ctx, first[i]); err != nil {
			return nil, err
		}
	}
	second, err := c.ends(ctx)
	if err != nil {
		return nil, err
	}
	quiet := slices.Equal(first, second)
	if !quiet && !timed {
		return nil, errBusy
	}
	cut := &Cut{Timed: !quiet, Buckets: map[subject.Bucket][]Entry{}, Sequences: map[subject.Bucket]uint64{}}
	for i, t := range c.tails {
		through := func(m tailMsg) bool { return m.Revision <= first[i].seq }
		if cut.Timed {
			through = func(m tailMsg) bool { return m.Time.Before(began.Add(-stampMargin)) }
		}
		if cut.Buckets[t.bucket], cut.Sequences[t.bucket], err = t.take(through, quiet); err != nil {
			return nil, fmt.Errorf("bucket %s: %w", t.bucket, err)
		}
	}
	return cut, nil
}

// end is where a stream ends, by its leader's word.
type end struct {
	seq   uint64
	empty bool
}

// ends asks all at once.
func (c *Cutter) ends(ctx context.Context) ([]end, error) {
	out, errs := make([]end, len(c.tails)), make([]error, len(c.tails))
	var wg sync.WaitGroup
	for i, t := range c.tails {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			info, err := t.stream.Info(ctx)
			if err != nil {
				errs[i] = fmt.Errorf("look where bucket %s ends: %w", t.bucket, err)
				return
			}
			out[i] = end{info.State.LastSeq, info.State.Msgs == 0}
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

// tail follows one bucket: a picture of it, and what came since.
type tail struct {
	bucket subject.Bucket
	stream jetstream.Stream
	iter   jetstream.MessagesContext
	done   chan struct{}

	mu      sync.Mutex
	err     error
	changed chan struct{}
	at      uint64 // the newest sequence that came
	queue   []tailMsg
	picture map[string]tailMsg
	taken   tailMsg // the newest of the picture
	whole   bool    // the picture is what the bucket held at taken
}

type tailMsg struct {
	Entry
	batch string // the atomic batch it is of, "" = none
	last  bool   // of it
	// next: it follows the one before without a gap. A gap is a message that was replaced before it came, or is one that was
	// replaced long ago.
	next bool
	// all: nothing else was in the stream when it was sent.
	all bool
}

func follow(ctx context.Context, js jetstream.JetStream, b subject.Bucket) (*tail, error) {
	st, err := js.Stream(ctx, b.Stream())
	if err != nil {
		return nil, err
	}
	cons, err := js.OrderedConsumer(ctx, b.Stream(), jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, FilterSubjects: []string{b.Key(">")}})
	if err != nil {
		return nil, err
	}
	iter, err := cons.Messages()
	if err != nil {
		return nil, err
	}
	t := &tail{bucket: b, stream: st, iter: iter, done: make(chan struct{}), changed: make(chan struct{}), picture: map[string]tailMsg{}}
	go t.run()
	return t, nil
}

func (t *tail) close() {
	t.iter.Stop()
	<-t.done
}

func (t *tail) run() {
	defer close(t.done)
	for {
		m, err := t.iter.Next()
		if err == nil {
			err = t.add(m)
		}
		if err != nil {
			t.mu.Lock()
			t.err = err
			t.tellLocked()
			t.mu.Unlock()
			return
		}
	}
}

func (t *tail) tellLocked() {
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *tail) add(m jetstream.Msg) error {
	md, err := m.Metadata()
	if err != nil {
		return err
	}
	h := m.Headers()
	seq := md.Sequence.Stream
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue = append(t.queue, tailMsg{
		Entry: Entry{Key: strings.TrimPrefix(m.Subject(), t.bucket.Key("")), Value: m.Data(), Revision: seq, Deleted: isMarker(h), Time: md.Timestamp},
		batch: h.Get(headerBatch), last: h.Get(headerBatchCommit) != "", next: seq == t.at+1, all: md.NumPending == 0,
	})
	t.at = seq
	t.tellLocked()
	return nil
}

const (
	headerBatch       = jetstreamext.BatchIDHeader
	headerBatchCommit = jetstreamext.BatchCommitHeader
)

// reach returns once everything up to where the stream ends has come.
func (t *tail) reach(ctx context.Context, e end) error {
	late := time.NewTimer(caughtWithin)
	defer late.Stop()
	for {
		t.mu.Lock()
		at, changed, err := t.at, t.changed, t.err
		t.mu.Unlock()
		switch {
		case err != nil:
			return fmt.Errorf("follow bucket %s: %w", t.bucket, err)
		case e.empty || at >= e.seq:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			return fmt.Errorf("follow bucket %s: message %d did not come, only %d", t.bucket, e.seq, at)
		}
	}
}

// take brings the picture forward, over what is through, and lists what lives in it. quiet: when that had come, the stream
// held nothing newer.
func (t *tail) take(through func(tailMsg) bool, quiet bool) ([]Entry, uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for n < len(t.queue) && through(t.queue[n]) {
		m := t.queue[n]
		// Where nothing else is in the stream, whatever was replaced meanwhile has come in its newer form.
		t.whole = m.all || t.whole && m.next
		t.picture[m.Key], t.taken = m, m
		n++
	}
	t.queue = slices.Delete(t.queue, 0, n)
	t.whole = t.whole || quiet
	switch {
	case t.taken.Revision == 0 && (quiet || t.at == 0):
		return nil, 0, nil // there was nothing yet
	case !t.whole:
		return nil, 0, errors.New("messages were replaced before they came")
	case t.taken.batch != "" && !t.taken.last:
		return nil, 0, errors.New("a batch is only half there")
	}
	var check checkpoint
	if c, ok := t.picture[CheckpointKey]; ok && !c.Deleted {
		var err error
		if check, err = decodeCheckpoint(c.Revision, c.Value); err != nil {
			return nil, 0, err
		}
	}
	var out []Entry
	for key, m := range t.picture {
		if m.Deleted {
			delete(t.picture, key) // it is as good as none, and never comes back by itself
		} else if key != CheckpointKey && !check.ghost(m.Revision) {
			out = append(out, m.Entry)
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return cmp.Compare(a.Revision, b.Revision) })
	return out, t.taken.Revision, nil
}
