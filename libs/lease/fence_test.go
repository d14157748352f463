package lease

import (
	"context"
	"errors"
	"testing"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

// rig is a bucket with a feed, and writers on it.
type rig struct {
	t    *testing.T
	b    *kv.Bucket
	feed *kv.Feed
	seen map[string]string
}

func newRig(t *testing.T) *rig {
	js := kvtest.Server(t).JS(t)
	r := &rig{t: t, b: kv.Open(js, subject.Task), seen: map[string]string{}}
	r.feed = kv.Follow(t.Context(), js, subject.Task, func(d kv.Delta) {
		for _, e := range d.Entries {
			r.seen[e.Key] = string(e.Value)
		}
	})
	t.Cleanup(r.feed.Close)
	return r
}

func (r *rig) leader(name string, epoch uint64) *Writer {
	r.t.Helper()
	w := NewWriter(r.b, "fence", name)
	w.Lead(epoch)
	if err := w.Hold(r.t.Context(), r.feed); err != nil {
		r.t.Fatal(err)
	}
	return w
}

func (r *rig) value(key string) string {
	e, err := r.b.Get(r.t.Context(), key)
	if err != nil {
		return err.Error()
	}
	return string(e.Value)
}

// A leader that was deposed and does not know it writes nothing, neither one key nor several, and cannot take the fence
// back; its successor writes.
func TestADeposedWriterWritesNothing(t *testing.T) {
	r := newRig(t)
	a := r.leader("a", 3)
	if revs, err := a.Write(t.Context(), Op{Key: "n1", Value: []byte("a")}); err != nil || len(revs) != 1 {
		t.Fatal(revs, err)
	}
	if revs, err := a.Write(t.Context(), Op{Key: "n1", Value: []byte("b")}, Op{Key: "n2", Value: []byte("b")}); err != nil || len(revs) != 2 || revs[1] != revs[0]+1 {
		t.Fatal(revs, err)
	}
	a2 := r.leader("a", 3) // the same leadership, as after a lost answer: its earlier self is over
	b := r.leader("b", 4)
	for _, w := range []*Writer{a, a2} {
		for _, ops := range [][]Op{{{Key: "n1", Value: []byte("late")}}, {{Key: "n1", Value: []byte("late")}, {Key: "n2"}}} {
			w.held = true // as if the write had been sent before anybody knew
			if _, err := w.Write(t.Context(), ops...); !errors.Is(err, kv.ErrConflict) {
				t.Errorf("%d keys written: %v", len(ops), err)
			}
			if w.Held() {
				t.Error("the fence is held after an error")
			}
		}
		if err := w.Hold(t.Context(), r.feed); !errors.Is(err, ErrDeposed) {
			t.Errorf("took it back: %v", err)
		}
	}
	if r.value("n1") != "b" || r.value("n2") != "b" {
		t.Error(r.value("n1"), r.value("n2"))
	}
	if _, err := b.Write(t.Context(), Op{Key: "n1"}, Op{Key: "n2", Value: []byte("c")}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.b.Get(t.Context(), "n1"); !errors.Is(err, kv.ErrNotFound) || r.value("n2") != "c" {
		t.Error(err, r.value("n2"))
	}
}

// Whoever holds the fence has heard of everything that was written before.
func TestHoldWaitsForWhatWasWritten(t *testing.T) {
	r := newRig(t)
	a := r.leader("a", 1)
	for range 50 {
		if _, err := a.Write(t.Context(), Op{Key: "n1", Value: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Write(t.Context(), Op{Key: "n1", Value: []byte("last")}); err != nil {
		t.Fatal(err)
	}
	r.leader("b", 2)
	if r.seen["n1"] != "last" { // the feed's goroutine is done with it: Wait says so
		t.Error(r.seen)
	}
}

// A batch whose key is not as it was thought to be changes nothing.
func TestCheckedOps(t *testing.T) {
	r := newRig(t)
	w := r.leader("a", 1)
	revs, err := w.Write(t.Context(), Op{Key: "n1", Value: []byte("a"), Checked: true}, Op{Key: "n2", Value: []byte("a"), Checked: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, ops := range [][]Op{
		{{Key: "n1", Value: []byte("b"), Checked: true}, {Key: "n2", Value: []byte("b"), Checked: true, Over: revs[1]}}, // it is there
		{{Key: "n3", Value: []byte("b"), Checked: true, Over: 7}, {Key: "n2", Value: []byte("b"), Checked: true, Over: revs[1]}},
		{{Key: "n1", Checked: true, Over: revs[0] + 100}, {Key: "n2", Value: []byte("b"), Checked: true, Over: revs[1]}},
	} {
		if err := w.Hold(t.Context(), r.feed); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(t.Context(), ops...); !errors.Is(err, kv.ErrConflict) {
			t.Errorf("%v: %v", ops, err)
		}
	}
	if r.value("n1") != "a" || r.value("n2") != "a" {
		t.Error(r.value("n1"), r.value("n2"))
	}
}

func TestAWriterThatDoesNotLead(t *testing.T) {
	r := newRig(t)
	w := NewWriter(r.b, "fence", "a")
	if err := w.Hold(t.Context(), r.feed); !errors.Is(err, ErrDeposed) || w.Leads() {
		t.Error(err)
	}
	if _, err := w.Write(t.Context(), Op{Key: "n1"}); err == nil {
		t.Error("written without a fence")
	}
	w.Lead(1)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Hold(gone, r.feed); err == nil || w.Held() {
		t.Errorf("held after %v", err)
	}
	if err := w.Hold(t.Context(), r.feed); err != nil || !w.Held() || !w.Leads() {
		t.Error(err)
	}
	w.Resign()
	if w.Leads() || w.Held() {
		t.Error("it leads after it resigned")
	}
}
