package kv_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

// A write that went to a leader which then handed over does not wait for an answer that nobody gives: what can be looked for is
// looked for and made, what cannot fails at the election and not at the end of its time.
func TestAWriteHearsOfANewLeader(t *testing.T) {
	n := kvtest.Server(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	js, nobody := n.JS(t), n.Conn(t)
	if err := js.DeleteStream(ctx, subject.Spec.Stream()); err != nil {
		t.Fatal(err)
	}
	// Somebody hears what is written, and does not answer: the leader that is about to hand over.
	heard := make(chan string, 16)
	sub, err := nobody.Subscribe(subject.Spec.Key(">"), func(m *nats.Msg) { heard <- m.Subject })
	if err != nil || nobody.Flush() != nil {
		t.Fatal(err)
	}
	b := kv.Open(js, subject.Spec)
	type result struct {
		rev uint64
		err error
	}
	put, made, batch := make(chan result, 1), make(chan result, 1), make(chan result, 1)
	go func() { rev, err := b.Put(ctx, "put", []byte("x")); put <- result{rev, err} }()
	go func() { rev, err := b.Create(ctx, "made", []byte("x")); made <- result{rev, err} }()
	go func() {
		both := b.Batch()
		both.Create("one", []byte("x"))
		both.Create("two", []byte("x"))
		rev, err := both.Commit(ctx)
		batch <- result{rev, err}
	}()
	for range 4 {
		<-heard
	}
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	if err := kv.Ensure(ctx, js, 1); err != nil {
		t.Fatal(err)
	}
	if err := nobody.Publish("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED."+subject.Spec.Stream(), nil); err != nil {
		t.Fatal(err)
	}
	if r := <-put; r.err == nil || !strings.Contains(r.err.Error(), "has a new leader") {
		t.Errorf("what cannot be looked for: %v", r.err)
	}
	for _, c := range []struct {
		what string
		got  result
		keys []string
	}{{"a write", <-made, []string{"made"}}, {"a batch", <-batch, []string{"one", "two"}}} {
		if c.got.err != nil {
			t.Errorf("%s: %v", c.what, c.got.err)
		}
		for _, key := range c.keys {
			if e, err := b.Get(ctx, key); err != nil || string(e.Value) != "x" || e.Revision > c.got.rev {
				t.Errorf("%s: %s is %+v: %v", c.what, key, e, err)
			}
		}
	}
	if st, err := js.Stream(ctx, subject.Spec.Stream()); err != nil || st.CachedInfo().State.Msgs != 3 {
		t.Errorf("not stored once each: %+v %v", st.CachedInfo().State, err)
	}
}
