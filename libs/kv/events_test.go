package kv_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/event"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// Every event lands in one stream: what a node may cause never where people's changes are. A stream of an older version,
// which held all, lets go of the nodes' part and keeps what it has.
func TestEventsOfNodesPushOutNoChanges(t *testing.T) {
	n := kvtest.Server(t)
	nc := n.Conn(t)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, name := range []string{subject.NodeEventStream, subject.EventStream} {
		if err := js.DeleteStream(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	old := jetstream.StreamConfig{Name: subject.EventStream, Subjects: []string{subject.AllEvents}, Storage: jetstream.FileStorage, MaxAge: kv.EventAge,
		MaxBytes: 256 << 20, DenyDelete: true, AllowDirect: true, Duplicates: 2 * time.Minute}
	if _, err := js.CreateStream(ctx, old); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, subject.Event("task", "a", "running"), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := kv.Ensure(ctx, js, 1); err != nil {
		t.Fatal(err)
	}
	if err := kv.Ensure(ctx, js, 1); err != nil {
		t.Fatalf("again: %v", err)
	}
	s, err := js.Stream(ctx, subject.EventStream)
	if err != nil || s.CachedInfo().State.Msgs != 1 {
		t.Fatalf("the old stream holds %v %v", s, err)
	}
	want := map[string]string{
		"service.create": subject.EventStream, "network.remove": subject.EventStream, "cluster.token-rotate": subject.EventStream,
		"secret.read": subject.EventStream, "node.create": subject.EventStream, "node.update": subject.EventStream, "node.remove": subject.EventStream,
		"task.running": subject.NodeEventStream, "task.unhealthy": subject.NodeEventStream, "node.describe": subject.NodeEventStream,
		"node.path-open": subject.NodeEventStream, "node.path-blocked": subject.NodeEventStream, "node.duplicate": subject.NodeEventStream,
	}
	for _, state := range skepv1.NodeState_name {
		want["node."+strings.ToLower(strings.TrimPrefix(state, "NODE_STATE_"))] = subject.NodeEventStream
	}
	for what, stream := range want {
		kind, verb, _ := strings.Cut(what, ".")
		ack, err := js.PublishMsg(ctx, &nats.Msg{Subject: subject.Event(kind, "x", verb), Data: []byte("{}")})
		if err != nil || ack.Stream != stream {
			t.Errorf("event %s is kept in %v (%v), want %s", what, ack, err, stream)
		}
		if !subject.EventKept(kind, verb) {
			t.Errorf("event %s is refused", what)
		}
	}
	checkSubjects(t, js, want)
	if err := event.Publish(nc, &skepv1.Event{Kind: "node", Id: "x", Verb: "new-verb"}); err == nil || !strings.Contains(err.Error(), "add it to libs/event") {
		t.Errorf("an event that no list has: %v", err)
	}
}

// checkSubjects: however many things events are about, the subjects they are kept under are as many as kinds and verbs. The
// broker holds each in memory. Those of an older version end with what they are of.
func checkSubjects(t *testing.T, js jetstream.JetStream, kept map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const many = 300
	for i := range many {
		if _, err := js.Publish(ctx, subject.Event("task", fmt.Sprint("t", i), "running"), []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	subjects := 0
	for _, name := range []string{subject.NodeEventStream, subject.EventStream} {
		s, err := js.Stream(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := s.Info(ctx, jetstream.WithSubjectFilter(">"))
		if err != nil {
			t.Fatal(err)
		}
		subjects += len(info.State.Subjects)
		if n := info.State.Subjects[subject.KeptEvent("task", "running")]; name == subject.NodeEventStream && n != many+1 {
			t.Errorf("%d of %d events are kept under their kind and verb", n, many+1)
		}
	}
	if most := len(kept) + 1; subjects > most {
		t.Errorf("the streams hold %d subjects, want %d at most", subjects, most)
	}
}
