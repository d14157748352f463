package state

import (
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"skep.dev/libs/event"
	"skep.dev/libs/limit"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// eventWriter publishes behind the back of whoever made the change: an event never holds up a write.
type eventWriter struct {
	nc  *nats.Conn
	log *zap.Logger
	ch  chan *skepv1.Event

	// Steps on the way to running are told only while there are few of them.
	steps *rate.Limiter
	tasks chan taskStep

	nodes *limit.PerKey // what a node causes
	told  *limit.PerKey // what a node tells of people's requests
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
	return &eventWriter{nc: nc, log: log, ch: make(chan *skepv1.Event, eventBacklog), tasks: make(chan taskStep, eventBacklog), steps: rate.NewLimiter(stepsPerSec, stepsAtOnce),
		nodes: limit.New(nodeEventsPerSec, nodeEventsAtOnce), told: limit.New(toldPerSec, toldAtOnce)}
}

// send tells of a change that was asked for under ctx.
func (w *eventWriter) send(ctx context.Context, e *skepv1.Event) {
	event.By(ctx, e)
	select {
	case w.ch <- e:
	default:
		w.log.Warn("event dropped, too many are waiting", zap.String("kind", e.Kind), zap.String("verb", e.Verb))
	}
}

// sendTasks is send for what a node's report changed, as far as the node has events left.
func (w *eventWriter) sendTasks(node string, steps []taskStep) {
	for i, t := range steps {
		if !w.nodes.Allow(node, time.Now()) {
			w.log.Warn("task events dropped: their node changes too much", zap.String("node", node), zap.Int("events", len(steps)-i))
			return
		}
		select {
		case w.tasks <- t:
		default:
			w.log.Debug("task event dropped, too many are waiting", zap.String("task", t.e.Id), zap.String("verb", t.e.Verb))
		}
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
	if t.step && !w.steps.Allow() {
		return
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
	if err := f.checkValues("kind", subject.EventKinds()...); err != nil {
		return nil, err
	}
	kind := ""
	if kinds := f["kind"]; len(kinds) == 1 {
		kind = strings.ToLower(kinds[0])
	}
	return s.readEvents(ctx, r, kind, f.event)
}

// readEvents makes a page of the kept events of a kind, or with kind "" of all, that fit.
func (s *Service) readEvents(ctx context.Context, r *skepv1.ListEventsRequest, kind string, fits func(*skepv1.Event) bool) (*skepv1.ListEventsReply, error) {
	after, err := eventPage(r.Page.GetAfter())
	if err != nil {
		return nil, err
	}
	var in []*eventReader
	defer func() {
		for _, e := range in {
			e.close()
		}
	}()
	for i, name := range eventStreams {
		subjects := subject.EventSubjects(name, kind)
		if len(subjects) == 0 {
			in = append(in, &eventReader{s: s, last: after[i]})
			continue
		}
		e, err := s.openEvents(ctx, name, subjects, after[i], r)
		if err != nil {
			return nil, err
		}
		in = append(in, e)
	}
	return mergeEvents(in, fits, r)
}

func token(v string) bool {
	for _, c := range v {
		if (c < 'a' || c > 'z') && c != '-' {
			return false
		}
	}
	return v != ""
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
