package lease_test

import (
	"context"
	"testing"
	"time"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/lease"
	"skep.dev/libs/subject"
)

// A lease that is taken over a deletion must expire too, from its first write on: nothing may stand without a TTL that
// a holder's death could leave behind.
func TestTakenOverADeletionItExpires(t *testing.T) {
	n := kvtest.Server(t)
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	b := kv.Open(n.JS(t), subject.Lease)
	if _, err := b.Put(ctx, "test", []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(ctx, "test", 0); err != nil {
		t.Fatal(err)
	}
	nc := n.Conn(t)
	sub, err := nc.SubscribeSync(subject.Lease.Key("test"))
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	won := make(chan struct{})
	l := lease.New(n.JS(t), lease.Config{Name: "test", Holder: "a", TTL: time.Second})
	lead, done := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = l.Run(lead, func(ctx context.Context, _ uint64) error {
			close(won)
			<-ctx.Done()
			return nil
		})
	}()
	<-won
	done()
	<-ended
	for {
		m, err := sub.NextMsg(200 * time.Millisecond)
		if err != nil {
			break // all were seen
		}
		if len(m.Data) > 0 && m.Header.Get("Nats-TTL") == "" {
			t.Errorf("the lease was written without a TTL: %q", m.Data)
		}
	}
}
