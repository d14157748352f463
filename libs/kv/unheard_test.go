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

// A write that comes while the store elects a leader is made when there is one, if it has the patience, and not twice.
func TestAnElectionIsWaitedFor(t *testing.T) {
	ps := kvtest.Spawn(t, 3, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	js := ps.JS(t)
	for kv.Ensure(ctx, js, 3) != nil && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
	}
	st, err := js.Stream(ctx, subject.Spec.Stream())
	if err != nil {
		t.Fatal(err)
	}
	b := kv.Open(js, subject.Spec)
	if _, err := b.Create(ctx, "before", []byte("x")); err != nil {
		t.Fatal(err)
	}
	ps.Kill(ps.Index(st.CachedInfo().Cluster.Leader))
	await(ctx, t, js)
	began := time.Now()
	_, err = b.Create(ctx, "hasty", []byte("x"))
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
