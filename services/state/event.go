package state

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/event"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// eventWriter publishes behind the back of whoever made the change: an event never holds up a write.
type eventWriter struct {
	nc  *nats.Conn
	log *zap.Logger
	ch  chan *skepv1.Event

	// Steps on the way to running are told only while there are few of them.
	tokens float64
	filled time.Time
	tasks  chan taskStep
}

type taskStep struct {
	e    *skepv1.Event
	step bool
}

const (
	eventBacklog  = 8192
	stepsPerSec   = 200
	stepsAtOnce   = 1000
	eventsLastFor = 2 * time.Second // for what is queued when the service stops
)

func newEventWriter(nc *nats.Conn, log *zap.Logger) *eventWriter {
	return &eventWriter{nc: nc, log: log, ch: make(chan *skepv1.Event, eventBacklog), tasks: make(chan taskStep, eventBacklog), tokens: stepsAtOnce, filled: time.Now()}
}

func (w *eventWriter) send(e *skepv1.Event) {
	select {
	case w.ch <- e:
	default:
		w.log.Warn("event dropped, too many are waiting", zap.String("kind", e.Kind), zap.String("verb", e.Verb))
	}
}

// sendTask is send for the change of one task's state.
func (w *eventWriter) sendTask(e *skepv1.Event, state skepv1.TaskState) {
	select {
	case w.tasks <- taskStep{e, state < skepv1.TaskState_TASK_STATE_RUNNING}:
	default:
		w.log.Debug("task event dropped, too many are waiting", zap.String("task", e.Id), zap.String("verb", e.Verb))
	}
}

func (w *eventWriter) run(ctx context.Context) {
	for {
		select {
		case e := <-w.ch:
			w.publish(e)
		case t := <-w.tasks:
			w.publishTask(t)
		case <-ctx.Done():
			end := time.Now().Add(eventsLastFor)
			for time.Now().Before(end) {
				select {
				case e := <-w.ch:
					w.publish(e)
				case t := <-w.tasks:
					w.publishTask(t)
				default:
					return
				}
			}
			return
		}
	}
}

func (w *eventWriter) publishTask(t taskStep) {
	now := time.Now()
	w.tokens = min(stepsAtOnce, w.tokens+now.Sub(w.filled).Seconds()*stepsPerSec)
	w.filled = now
	if t.step {
		if w.tokens < 1 {
			return
		}
		w.tokens--
	}
	w.publish(t.e)
}

func (w *eventWriter) publish(e *skepv1.Event) {
	if err := event.Publish(w.nc, e); err != nil {
		w.log.Warn("event not published", zap.String("kind", e.Kind), zap.String("verb", e.Verb), zap.Error(err))
	}
}

// listEvents reads the stream of events, oldest first.
func (s *Service) listEvents(ctx context.Context, r *skepv1.ListEventsRequest) (*skepv1.ListEventsReply, error) {
	f, err := parseFilters(r.Filters, "kind", "type", "id", "name", "verb", "event", "service", "node", "label")
	if err != nil {
		return nil, err
	}
	for alias, key := range map[string]string{"type": "kind", "event": "verb"} {
		if v, ok := f[alias]; ok {
			f[key] = append(f[key], v...)
			delete(f, alias)
		}
	}
	cfg := jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: 30 * time.Second,
		DeliverPolicy: jetstream.DeliverAllPolicy,
	}
	if kinds := f["kind"]; len(kinds) == 1 {
		if !token(kinds[0]) {
			return nil, fault.Invalid("invalid value '%s' of filter 'kind': use service, node, task, cluster, network, secret, config or image", kinds[0])
		}
		cfg.FilterSubject = subject.Event(kinds[0], "*", "*")
	}
	if a := r.Page.GetAfter(); a != "" {
		seq, err := strconv.ParseUint(a, 10, 64)
		if err != nil {
			return nil, fault.Invalid("invalid page %q: use the next of the page before", a)
		}
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, seq+1
	} else if r.Since != nil {
		since := r.Since.AsTime()
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	return s.readEvents(ctx, cfg, f, r)
}

func token(v string) bool {
	for _, c := range v {
		if (c < 'a' || c > 'z') && c != '-' {
			return false
		}
	}
	return v != ""
}

func (s *Service) readEvents(ctx context.Context, cfg jetstream.ConsumerConfig, f filters, r *skepv1.ListEventsRequest) (*skepv1.ListEventsReply, error) {
	cons, err := s.js.CreateConsumer(ctx, subject.EventStream, cfg)
	if err != nil {
		return nil, fault.Unavailable("read the events: %v", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := s.js.DeleteConsumer(ctx, subject.EventStream, cons.CachedInfo().Name); err != nil {
			s.log.Debug("event reader left to expire", zap.Error(err))
		}
	}()
	out := &skepv1.ListEventsReply{}
	p := newPage(r.Page)
	var last uint64
	for left := cons.CachedInfo().NumPending; left > 0; {
		got, err := cons.Fetch(int(min(left, 500)), jetstream.FetchMaxWait(2*time.Second))
		if err != nil {
			return nil, fault.Unavailable("read the events: %v", err)
		}
		n := uint64(0)
		for m := range got.Messages() {
			n++
			meta, err := m.Metadata()
			if err != nil {
				continue
			}
			if r.Until != nil && meta.Timestamp.After(r.Until.AsTime()) {
				return out, nil
			}
			e := &skepv1.Event{}
			if _, err := rpc.Decode(m.Data(), rpc.TypeJSON, e); err != nil || !f.event(e) {
				last = max(last, meta.Sequence.Stream)
				continue
			}
			if !p.takes(e) {
				out.Next = strconv.FormatUint(last, 10)
				return out, nil
			}
			out.Events = append(out.Events, e)
			last = meta.Sequence.Stream
		}
		if err := got.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) {
			return nil, fault.Unavailable("read the events: %v", err)
		}
		if n == 0 {
			break
		}
		left -= min(n, left)
	}
	return out, nil
}

// event applies the filters of an event listing.
func (f filters) event(e *skepv1.Event) bool {
	if !f.exact("kind", e.Kind) || !f.exact("verb", e.Verb) || !f.prefix("id", e.Id) || !f.prefix("name", e.Name) || !f.labels("label", e.Attributes) {
		return false
	}
	service := []string{e.Attributes["service"], e.Attributes["service.id"]}
	if e.Kind == "service" {
		service = []string{e.Id, e.Name}
	}
	node := []string{e.Attributes["node"], e.Attributes["node.id"]}
	if e.Kind == "node" {
		node = []string{e.Id, e.Name}
	}
	return f.exact("service", service...) && f.exact("node", node...)
}
