package state

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// eventStreams are read side by side; a page remembers where it is in each.
var eventStreams = []string{subject.EventStream, subject.NodeEventStream}

// eventPage reads a page's place in each stream: <sequence>.<sequence>, "" = the beginning.
func eventPage(after string) (out [2]uint64, err error) {
	if after == "" {
		return out, nil
	}
	a, b, _ := strings.Cut(after, ".")
	for i, v := range []string{a, b} {
		if out[i], err = strconv.ParseUint(v, 10, 64); err != nil {
			return out, fault.Invalid("invalid page %q: use the next of the page before", after)
		}
	}
	return out, nil
}

// eventReader goes through one stream up to what it held when it was opened. Without a consumer it is at its end.
type eventReader struct {
	s    *Service
	cons jetstream.Consumer
	last uint64 // sequence of the last message that was dealt with
	left uint64
	got  []eventAt
}

type eventAt struct {
	event *skepv1.Event // nil when it cannot be read
	seq   uint64
	at    time.Time
}

func (s *Service) openEvents(ctx context.Context, stream string, subjects []string, after uint64, r *skepv1.ListEventsRequest) (*eventReader, error) {
	cfg := jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: 30 * time.Second,
		DeliverPolicy: jetstream.DeliverAllPolicy, FilterSubjects: subjects,
	}
	switch {
	case after > 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, after+1
	case r.Since != nil:
		since := r.Since.AsTime()
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	cons, err := s.js.CreateConsumer(ctx, stream, cfg)
	if err != nil {
		return nil, fault.Unavailable("read the events: %v", err)
	}
	return &eventReader{s: s, cons: cons, last: after, left: cons.CachedInfo().NumPending}, nil
}

func (e *eventReader) close() {
	if e.cons == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	info := e.cons.CachedInfo()
	if err := e.s.js.DeleteConsumer(ctx, info.Stream, info.Name); err != nil {
		e.s.log.Debug("event reader left to expire", zap.Error(err))
	}
}

// next is the message to deal with next, nil at the end.
func (e *eventReader) next() (*eventAt, error) {
	if len(e.got) == 0 && e.left > 0 {
		got, err := e.cons.Fetch(int(min(e.left, 500)), jetstream.FetchMaxWait(2*time.Second))
		if err != nil {
			return nil, fault.Unavailable("read the events: %v", err)
		}
		for m := range got.Messages() {
			e.left--
			meta, err := m.Metadata()
			if err != nil {
				continue
			}
			at := eventAt{event: &skepv1.Event{}, seq: meta.Sequence.Stream, at: meta.Timestamp}
			if _, err := rpc.Decode(m.Data(), rpc.TypeJSON, at.event); err != nil {
				at.event = nil
			}
			e.got = append(e.got, at)
		}
		if err := got.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) {
			return nil, fault.Unavailable("read the events: %v", err)
		}
		if len(e.got) == 0 {
			e.left = 0
		}
	}
	if len(e.got) == 0 {
		return nil, nil
	}
	return &e.got[0], nil
}

func (e *eventReader) done() {
	e.last = e.got[0].seq
	e.got = e.got[1:]
}

// mergeEvents makes a page of both streams, in the order in which things happened.
func mergeEvents(in []*eventReader, fits func(*skepv1.Event) bool, r *skepv1.ListEventsRequest) (*skepv1.ListEventsReply, error) {
	out := &skepv1.ListEventsReply{}
	p := newPage(r.Page)
	for {
		var from *eventReader
		var first *eventAt
		for _, e := range in {
			m, err := e.next()
			if err != nil {
				return nil, err
			}
			if m != nil && (first == nil || m.at.Before(first.at)) {
				from, first = e, m
			}
		}
		if first == nil || r.Until != nil && first.at.After(r.Until.AsTime()) {
			return out, nil
		}
		if first.event != nil && fits(first.event) {
			if !p.takes(first.event) {
				out.Next = fmt.Sprintf("%d.%d", in[0].last, in[1].last)
				return out, nil
			}
			out.Events = append(out.Events, first.event)
		}
		from.done()
	}
}
