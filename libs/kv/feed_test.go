package kv_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

// A feed whose first question is lost, as one is that goes to a leader that just died, asks again: it does not wait for the ten
// seconds after which that question would be given up.
func TestAFeedAsksAgain(t *testing.T) {
	n := kvtest.Server(t)
	way := kvtest.NewLossy(t, n.Servers[0].ClientURL())
	nc, err := nats.Connect(way.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	asked, err := n.Conn(t).SubscribeSync("$JS.API.STREAM.INFO." + subject.Spec.Stream())
	if err != nil {
		t.Fatal(err)
	}
	way.Lose(true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := kv.Follow(ctx, js, subject.Spec, func(kv.Delta) {})
	defer f.Close()
	if _, err := asked.NextMsg(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	way.Lose(false)
	select {
	case <-f.Ready():
	case <-time.After(7 * time.Second):
		t.Error("the feed still waits for an answer that was lost")
	}
}
