package engine

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

// eventsWaiting is how many events may wait for a client that reads slowly. More end the stream: a gap that nobody is told of would
// be worse, and clients begin again with since.
const eventsWaiting = 8192

// eventFilters are the keys Docker knows; some name things of which skep tells nothing here, so that they match nothing.
var eventFilters = []string{"config", "container", "daemon", "event", "id", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume"}

func eventWanted(f wire.Filters, m *events.Message) bool {
	attrs := m.Actor.Attributes
	ok := f.Exact("type", string(m.Type)) && f.Exact("event", string(m.Action)) && f.Exact("scope", m.Scope) && f.Labels("label", attrs)
	for _, kind := range []string{"config", "container", "daemon", "image", "network", "node", "plugin", "secret", "service", "volume"} {
		if f.Has(kind) {
			ok = ok && string(m.Type) == kind && f.Prefix(kind, m.Actor.ID, attrs["name"])
		}
	}
	return ok && f.Prefix("id", m.Actor.ID)
}

// when reads a time of a query: seconds since 1970 with a fraction or without, or RFC 3339.
func when(text string) (*timestamppb.Timestamp, error) {
	if text == "" || text == "0" {
		return nil, nil
	}
	whole, frac, _ := strings.Cut(text, ".")
	if sec, err := strconv.ParseInt(whole, 10, 64); err == nil {
		nanos := int64(0)
		if frac != "" {
			if nanos, err = strconv.ParseInt((frac + "000000000")[:9], 10, 64); err != nil {
				return nil, wire.Invalid("invalid time '%s'", text)
			}
		}
		t := timestamppb.New(time.Unix(sec, nanos))
		if t.CheckValid() != nil {
			return nil, wire.Invalid("invalid time '%s'", text)
		}
		return t, nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return nil, wire.Invalid("invalid time '%s'", text)
	}
	return timestamppb.New(t), nil
}

var (
	errBehind = errors.New("the client reads slower than events come")
	errCut    = errors.New("the connection to the manager was lost")
)

// events tells of changes for as long as the client listens. Headers go out at once. What cannot be told without a gap ends the
// stream, and the client sees it end.
func (s *Service) events(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters(eventFilters...)
	if err != nil {
		return err
	}
	since, err := when(r.Query.Get("since"))
	if err != nil {
		return err
	}
	until, err := when(r.Query.Get("until"))
	if err != nil {
		return err
	}
	ctx, cancel := s.streaming(r)
	defer cancel()
	now := time.Now()
	over := until != nil && !until.AsTime().After(now)
	live := make(chan *skepv1.Event, eventsWaiting)
	behind := make(chan struct{}, 1)
	hear := func(e *skepv1.Event) {
		select {
		case live <- e:
		default:
			select {
			case behind <- struct{}{}:
			default:
			}
		}
	}
	// Listening begins before the past is read, so that nothing falls in between.
	var gone <-chan nats.Status
	n := s.nodeOf()
	if n != nil && !over {
		defer s.onNode.listen(n, hear)()
	}
	nc, err := s.cluster.conn()
	ofCluster := err == nil
	switch {
	case err != nil && (n == nil || !s.cluster.without()):
		return err // a manager that does not answer may be waited for; a worker has none
	case ofCluster && !over:
		lost := nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
		defer nc.RemoveStatusListener(lost)
		gone = lost
		sub, err := nc.Subscribe(subject.AllEvents, func(m *nats.Msg) {
			e := &skepv1.Event{}
			if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(m.Data, e) != nil || e.GetKind() == translate.KindContainer {
				return // not an event of ours
			}
			if _, has := translate.EventToDocker(e); has {
				hear(e)
			}
		})
		if err != nil {
			return wire.Unavailable("listen to events: %v", err)
		}
		defer func() { _ = sub.Unsubscribe() }() // the connection may be gone
		if err := flush(ctx, nc); err != nil {
			return wire.Unavailable("listen to events: %v", err)
		}
	}
	out := newEventWriter(w, f, r.Version)
	if since != nil || over {
		if err := s.pastEvents(ctx, n, ofCluster, since, until, out.once); err != nil {
			return err
		}
	}
	if err := out.flush(); err != nil || over {
		return ended(err)
	}
	var end <-chan time.Time
	if until != nil {
		t := time.NewTimer(time.Until(until.AsTime()))
		defer t.Stop()
		end = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-end:
			return nil
		case <-gone:
			return errCut
		case <-behind:
			return errBehind
		case e := <-live:
			err := out.tell(e)
			for more := true; more && err == nil; {
				select {
				case e := <-live:
					err = out.tell(e)
				default:
					more = false
				}
			}
			if err == nil {
				err = out.flush()
			}
			if err != nil {
				return ended(err)
			}
		}
	}
}

// ended: a client that does not listen any more is how a stream ends.
func ended(error) error { return nil }

func flush(ctx context.Context, nc *nats.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	return nc.FlushWithContext(ctx)
}

// streaming is the context of a request that stays open: it ends with the client, and with the service.
func (s *Service) streaming(r *wire.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(s.ends, cancel)
	return ctx, func() { stop(); cancel() }
}

// eventWriter writes each event once.
type eventWriter struct {
	w     http.ResponseWriter
	flush func() error
	f     wire.Filters
	v     wire.Version
	past  map[string]bool // what was told of the past
	last  time.Time       // of it
}

func newEventWriter(w http.ResponseWriter, f wire.Filters, v wire.Version) *eventWriter {
	w.Header().Set("Content-Type", "application/json")
	return &eventWriter{w: w, f: f, v: v, past: map[string]bool{}, flush: http.NewResponseController(w).Flush}
}

func eventKey(e *skepv1.Event) string {
	return e.Kind + "|" + e.Id + "|" + e.Verb + "|" + strconv.FormatInt(e.GetTime().AsTime().UnixNano(), 10)
}

// samePast is how old an event that is heard may be for it to have been among those that were read.
const samePast = time.Minute

// once is tell for the past.
func (o *eventWriter) once(e *skepv1.Event) error {
	if at := e.GetTime().AsTime(); at.After(o.last) {
		o.last = at
	}
	if time.Since(e.GetTime().AsTime()) < samePast {
		o.past[eventKey(e)] = true
	}
	return o.write(e)
}

// tell writes an event that was heard, unless it was read before.
func (o *eventWriter) tell(e *skepv1.Event) error {
	if len(o.past) > 0 {
		if o.past[eventKey(e)] {
			return nil
		}
		if time.Since(o.last) > samePast {
			clear(o.past)
		}
	}
	return o.write(e)
}

func (o *eventWriter) write(e *skepv1.Event) error {
	m, ok := translate.EventToDocker(e)
	if !ok || !eventWanted(o.f, &m) {
		return nil
	}
	b, err := json.Marshal(translate.EventFor(m, o.v))
	if err == nil {
		_, err = o.w.Write(append(b, '\n'))
	}
	return err
}
