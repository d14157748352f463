package kv_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return c
}

func TestWritesAndConflicts(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("R%d", size), func(t *testing.T) {
			n := kvtest.Server
			if size > 1 {
				n = func(t testing.TB) *kvtest.NATS { return kvtest.Cluster(t, size) }
			}
			b := kv.Open(n(t).JS(t), subject.Spec)
			c := ctx(t)
			rev, err := b.Create(c, "service.a", []byte("1"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Create(c, "service.a", []byte("2")); !errors.Is(err, kv.ErrConflict) {
				t.Fatalf("create twice: %v", err)
			}
			rev2, err := b.Update(c, "service.a", []byte("2"), rev)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Update(c, "service.a", []byte("3"), rev); !errors.Is(err, kv.ErrConflict) {
				t.Fatalf("stale update: %v", err)
			}
			if err := b.Delete(c, "service.a", rev2); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Get(c, "service.a"); !errors.Is(err, kv.ErrNotFound) {
				t.Fatalf("get after delete: %v", err)
			}
			if _, err := b.Create(c, "service.a", []byte("4")); err != nil {
				t.Fatalf("create over a tombstone: %v", err)
			}
		})
	}
}

func TestBatchIsAllOrNothing(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("R%d", size), func(t *testing.T) {
			var n *kvtest.NATS
			if size == 1 {
				n = kvtest.Server(t)
			} else {
				n = kvtest.Cluster(t, size)
			}
			b := kv.Open(n.JS(t), subject.Spec)
			c := ctx(t)
			batch := b.Batch()
			batch.Create("idx.service.web", []byte("x"))
			batch.Create("service.x", []byte("spec"))
			last, err := batch.Commit(c)
			if err != nil {
				t.Fatal(err)
			}
			if batch.Revision(1) != last || batch.Revision(0) != last-1 {
				t.Fatalf("revisions %d, %d, last %d", batch.Revision(0), batch.Revision(1), last)
			}
			second := b.Batch()
			second.Put("service.y", []byte("spec"))
			second.Create("idx.service.web", []byte("y"))
			if _, err := second.Commit(c); !errors.Is(err, kv.ErrConflict) {
				t.Fatalf("the index key exists, got %v", err)
			}
			if _, err := b.Get(c, "service.y"); !errors.Is(err, kv.ErrNotFound) {
				t.Fatalf("half a batch was written: %v", err)
			}
			gone := b.Batch()
			gone.Delete("idx.service.web", batch.Revision(0))
			gone.Delete("service.x", batch.Revision(1))
			if _, err := gone.Commit(c); err != nil {
				t.Fatal(err)
			}
			again := b.Batch()
			again.Create("idx.service.web", []byte("z"))
			again.Create("service.z", []byte("spec"))
			if _, err := again.Commit(c); err != nil {
				t.Fatalf("create over tombstones in a batch: %v", err)
			}
		})
	}
}

type index struct {
	mu   sync.Mutex
	m    map[string]string
	sets int
}

func (x *index) apply(d kv.Delta) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d.Reset {
		x.m, x.sets = map[string]string{}, x.sets+1
	}
	for _, e := range d.Entries {
		if e.Deleted {
			delete(x.m, e.Key)
		} else {
			x.m[e.Key] = string(e.Value)
		}
	}
}

func (x *index) get(k string) string { x.mu.Lock(); defer x.mu.Unlock(); return x.m[k] }

func TestFeedReadsYourWrites(t *testing.T) {
	n := kvtest.Server(t)
	js := n.JS(t)
	b := kv.Open(js, subject.Spec)
	c := ctx(t)
	if _, err := b.Put(c, "service.old", []byte("0")); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(c, "service.old", 0); err != nil {
		t.Fatal(err)
	}
	x := &index{}
	f := kv.Follow(c, js, subject.Spec, x.apply)
	defer f.Close()
	<-f.Ready()
	if f.Revision() != 2 {
		t.Fatalf("a feed over a deleted key stands at %d, want 2", f.Revision())
	}
	for i := range 200 {
		rev, err := b.Put(c, "service.a", fmt.Appendf(nil, "%d", i))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Wait(c, rev); err != nil {
			t.Fatal(err)
		}
		if got := x.get("service.a"); got != fmt.Sprint(i) {
			t.Fatalf("after waiting for %d the index says %s", i, got)
		}
	}
}

// TestEnsureAdopts: streams of an older version get the settings of this one, and keep what they hold.
func TestEnsureAdopts(t *testing.T) {
	js := kvtest.Server(t).JS(t)
	c := ctx(t)
	b := kv.Open(js, subject.Endpoint)
	if _, err := b.Put(c, "node.a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(c, subject.Endpoint.Stream())
	if err != nil {
		t.Fatal(err)
	}
	old := st.CachedInfo().Config
	old.RePublish = &jetstream.RePublish{Source: subject.Endpoint.Key(">"), Destination: subject.NetPrefix + ">"}
	if _, err := js.UpdateStream(c, old); err != nil {
		t.Fatal(err)
	}
	if err := kv.Ensure(c, js, 1); err != nil {
		t.Fatal(err)
	}
	heard, err := js.Conn().SubscribeSync(subject.AllNet)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"fence", kv.CheckpointKey, "node.a"} {
		if _, err := b.Put(c, key, []byte("2")); err != nil {
			t.Fatal(err)
		}
	}
	m, err := heard.NextMsg(10 * time.Second)
	if err != nil || m.Subject != subject.Net("node", "a") || m.Header.Get("Nats-Sequence") != "4" {
		t.Fatalf("nodes hear %v, %v; want the record alone", m, err)
	}
}
