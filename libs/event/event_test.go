package event_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/event"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/leaktest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func next(t *testing.T, sub *nats.Subscription) *skepv1.Event {
	t.Helper()
	m, err := sub.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	e := &skepv1.Event{}
	if err := protojson.Unmarshal(m.Data, e); err != nil {
		t.Fatal(err)
	}
	return e
}

// An event is told in full to those who may change things, and without who did it to viewers.
func TestWhoHearsWhat(t *testing.T) {
	n := kvtest.Server(t)
	nc := n.Conn(t)
	full, err := nc.SubscribeSync(subject.AllEvents)
	if err != nil {
		t.Fatal(err)
	}
	seen, err := nc.SubscribeSync(subject.AllSeen)
	if err != nil {
		t.Fatal(err)
	}
	ctx := rpc.WithActor(t.Context(), rpc.Actor{Name: "user-ada", Address: "192.0.2.7"})
	if err := event.Publish(nc, event.By(ctx, &skepv1.Event{Kind: "service", Id: "s", Name: "web", Verb: "create"})); err != nil {
		t.Fatal(err)
	}
	if e := next(t, full); e.Actor != "user-ada" || e.Address != "192.0.2.7" || e.Name != "web" || e.Time == nil {
		t.Errorf("told %v", e)
	}
	if e := next(t, seen); e.Actor != "" || e.Address != "" || e.Name != "web" || e.Verb != "create" {
		t.Errorf("viewers are told %v", e)
	}
	// What says who did it is left alone.
	if e := event.By(ctx, &skepv1.Event{Actor: "scheduler"}); e.Actor != "scheduler" || e.Address != "" {
		t.Errorf("%v", e)
	}
	if e := event.By(t.Context(), &skepv1.Event{}); e.Actor != "" {
		t.Errorf("nobody asked, and it is %s", e.Actor)
	}
	for _, bad := range []*skepv1.Event{{Kind: "service", Id: "a.b", Verb: "create"}, {Kind: "service", Id: "a"}, {Kind: "weather", Id: "a", Verb: "rain"}} {
		if err := event.Publish(nc, bad); err == nil {
			t.Errorf("published %v", bad)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	nc := kvtest.Server(b).Conn(b)
	for b.Loop() {
		e := &skepv1.Event{Kind: "task", Id: "s", Name: "web.1", Verb: "running", Attributes: map[string]string{"node": "w1", "service": "web"}}
		if err := event.Publish(nc, e); err != nil {
			b.Fatal(err)
		}
	}
}
