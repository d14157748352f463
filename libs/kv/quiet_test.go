package kv_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

// A watcher that died without a word, its connection alive, is noticed, and the feed shows what it missed: a feed of a whole
// bucket and one of some keys, although nobody waits for a revision.
func TestAWatcherThatDiesQuietly(t *testing.T) {
	t.Parallel()
	js := kvtest.Server(t).JS(t)
	b := kv.Open(js, subject.Spec)
	whole, some := &index{}, &index{}
	for x, filter := range map[*index]string{whole: ">", some: "node.*"} {
		f := kv.Follow(ctx(t), js, subject.Spec, x.apply, filter)
		defer f.Close()
		<-f.Ready()
	}
	stream, err := js.Stream(ctx(t), subject.Spec.Stream())
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for name := range stream.ConsumerNames(ctx(t)).Name() {
		if err := stream.DeleteConsumer(ctx(t), name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			t.Fatal(err)
		}
		killed++
	}
	if killed != 2 {
		t.Errorf("%d watchers, want 2", killed)
	}
	began := time.Now()
	if _, err := b.Put(ctx(t), "node.a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]*index{"whole": whole, "some": some} {
		kvtest.Ask(t, "the "+name+" feed goes on", func(context.Context) (int, error) {
			if x.get("node.a") != "1" {
				return 0, errors.New("it does not show the key")
			}
			return 0, nil
		})
		t.Logf("the %s feed goes on after %s", name, time.Since(began).Round(time.Millisecond))
	}
}
