package scheduler

import (
	"context"
	"errors"
	"testing"
	"time"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/lease"
	"skep.dev/libs/reconcile"
	"skep.dev/libs/subject"
)

// A leader that was deposed and does not know it: neither its single writes nor its batches get through.
func TestDeposedLeaderCannotWrite(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 2)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, _ := f.start("a", nil)
	f.putService("svc1", 1, service("web", 4, "v1"))
	f.awaitRunning("svc1", 4)

	b, err := New(Config{NC: f.n.Conn(t), NodeID: "b"})
	if err != nil {
		t.Fatal(err)
	}
	b.feeds = kv.FollowAll(ctx, b.js, b.sources()...)
	defer b.feeds.Close()
	<-b.feeds.Of(subject.Task).Ready()
	one := &reconcile.Batch{Writes: []reconcile.Write{{Key: "node1", Value: []byte{}}}}
	two := &reconcile.Batch{Writes: []reconcile.Write{{Key: "node1", Value: []byte{}}, {Key: "node2", Value: []byte{}}}}
	for i, x := range []*reconcile.Batch{one, two} {
		// b takes the fence over its head, as if its lease had run out while it was suspended.
		epoch := uint64(1<<40 + 2*i)
		late := lease.NewWriter(kv.Open(a.js, subject.Task), keys.TaskFence.Key(), "late")
		late.Lead(epoch)
		if err := late.Hold(ctx, a.feeds.Of(subject.Task)); err != nil {
			t.Fatal(err)
		}
		b.fence.Lead(epoch + 1)
		if err := b.hold(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := late.Write(ctx, ops(x)...); !errors.Is(err, kv.ErrConflict) {
			t.Fatalf("a deposed leader wrote %d keys: %v", len(x.Writes), err)
		}
		// An older epoch cannot take the fence back.
		if err := late.Hold(ctx, a.feeds.Of(subject.Task)); !errors.Is(err, lease.ErrDeposed) {
			t.Fatalf("an older epoch took the fence: %v", err)
		}
	}
	// And what a does by itself now changes nothing.
	f.putService("svc1", 1, service("web", 6, "v1"))
	time.Sleep(300 * time.Millisecond) // give a the time to try
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.records("svc1")); n != 4 {
		t.Fatalf("%d records after a was deposed", n)
	}
}
