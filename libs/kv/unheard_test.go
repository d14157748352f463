package kv_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/patience"
	"skep.dev/libs/subject"
)

// three are servers in processes of their own, with a key in the bucket whose leader is told.
func three(ctx context.Context, t *testing.T) (ps *kvtest.Processes, js jetstream.JetStream, b *kv.Bucket, leader int) {
	t.Helper()
	ps = kvtest.Spawn(t, 3, 0)
	js = ps.JS(t)
	for kv.Ensure(ctx, js, 3) != nil && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
	}
	st, err := js.Stream(ctx, subject.Spec.Stream())
	if err != nil {
		t.Fatal(err)
	}
	return ps, js, kv.Open(js, subject.Spec), ps.Index(st.CachedInfo().Cluster.Leader)
}

// A write that comes while the store elects a leader is made when there is one, if it has the patience, and not twice.
func TestAnElectionIsWaitedFor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ps, js, b, leader := three(ctx, t)
	ps.Kill(leader)
	await(ctx, t, js)
	began := time.Now()
	_, err := b.Create(ctx, "hasty", []byte("x"))
	hasty := time.Since(began)
	patient := patience.Until(ctx, time.Now().Add(patience.Election))
	rev, perr := b.Create(patient, "patient", []byte("x"))
	t.Logf("without patience: %v after %v; with it: %v after %v", err, hasty, perr, time.Since(began))
	if perr != nil {
		t.Errorf("a patient write failed: %v", perr)
	}
	batch := b.Batch()
	batch.Create("one", []byte("x"))
	batch.Update("patient", []byte("y"), rev)
	if _, err := batch.Commit(patient); err != nil {
		t.Errorf("a batch: %v", err)
	}
	if _, err := b.Create(patient, "patient", nil); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("made twice: %v", err)
	}
}

// await waits for the connection, which may have been to the server that was killed.
func await(ctx context.Context, t *testing.T, js jetstream.JetStream) {
	t.Helper()
	for js.Conn().FlushWithContext(ctx) != nil {
		if ctx.Err() != nil {
			t.Fatal("no server is left")
		}
	}
}

// What was sent to a leader that hangs is made by the next one, once: also when the first wakes.
func TestALeaderThatHangs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ps, _, _, leader := three(ctx, t)
	js := ps.JS(t, (leader+1)%3, (leader+2)%3)
	b := kv.Open(js, subject.Spec)
	first, err := b.Create(ctx, "key", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	ps.Freeze(leader)
	began := time.Now()
	var rev uint64
	for rev == 0 {
		// With the default pings the others notice after minutes that it hangs; its followers elect another one sooner.
		rev, err = b.Update(patience.Until(ctx, time.Now().Add(patience.Election)), "key", []byte("2"), first)
		t.Logf("revision %d after %v: %v", rev, time.Since(began), err)
		if err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	ps.Thaw(leader)
	if _, err := b.Create(patience.Until(ctx, time.Now().Add(patience.Election)), "after", nil); err != nil {
		t.Error(err)
	}
	e, err := b.Get(patience.Until(ctx, time.Now().Add(patience.Election)), "key") // the one that wakes may have the others elect again
	if err != nil || e.Revision != rev || string(e.Value) != "2" {
		t.Errorf("the key is %q at %d: %v", e.Value, e.Revision, err)
	}
	if _, err := b.Update(ctx, "key", []byte("3"), first); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("over a newer one: %v", err)
	}
}

// A batch that was sent to a leader that hangs is made by the next one, once.
func TestALeaderThatHangsWithABatch(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ps, _, _, leader := three(ctx, t)
	js := ps.JS(t, (leader+1)%3, (leader+2)%3)
	b := kv.Open(js, subject.Spec)
	first, err := b.Create(ctx, "key", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	ps.Freeze(leader)
	began := time.Now()
	batch := b.Batch()
	batch.Create("made", []byte("x"))
	batch.Update("key", []byte("2"), first)
	last, err := batch.Commit(patience.Until(ctx, time.Now().Add(30*time.Second)))
	if err != nil {
		t.Fatalf("after %v: %v", time.Since(began), err)
	}
	t.Logf("committed after %v", time.Since(began))
	ps.Thaw(leader)
	if _, err := b.Create(patience.Until(ctx, time.Now().Add(patience.Election)), "after", nil); err != nil {
		t.Error(err)
	}
	// The one that wakes may have the others elect again.
	reads := patience.Until(ctx, time.Now().Add(patience.Election))
	for i, key := range []string{"made", "key"} {
		e, err := b.Get(reads, key)
		for err == nil && e.Revision < last-1 && ctx.Err() == nil {
			e, err = b.Get(reads, key) // the one that wakes does not know yet that it leads no more
		}
		if err != nil || e.Revision != last-1+uint64(i) || e.Revision != batch.Revision(i) {
			t.Errorf("%s is at %d, want %d: %v", key, e.Revision, last-1+uint64(i), err)
		}
	}
	again := b.Batch()
	again.Create("made", []byte("y"))
	if _, err := again.Commit(patience.Until(ctx, time.Now().Add(patience.Election))); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("made twice: %v", err)
	}
}
