package kv_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

// writers change two buckets, in this order: a value in rev, then what refers to it in spec; and in task one number under
// two keys, in one batch. They write without a pause until the test ends.
func writers(t *testing.T, n *kvtest.NATS, many int) (stop func()) {
	js := n.JS(t)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for w := range many {
		wg.Go(func() {
			for i := 1; ctx.Err() == nil; i++ {
				val := []byte(strconv.Itoa(i))
				if _, err := kv.Open(js, subject.Rev).Put(ctx, fmt.Sprintf("service.w%d.1", w), val); err != nil {
					continue
				}
				if _, err := kv.Open(js, subject.Spec).Put(ctx, fmt.Sprintf("service.w%d", w), val); err != nil {
					continue
				}
				b := kv.Open(js, subject.Task).Batch()
				for _, side := range "ab" {
					b.Put(fmt.Sprintf("w%d-%c", w, side), val)
				}
				_, _ = b.Commit(ctx) // the next round writes all again
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

func whole(t *testing.T, cut *kv.Cut) {
	t.Helper()
	at := map[string]int{}
	for b, list := range cut.Buckets {
		var last uint64
		for _, e := range list {
			if e.Revision <= last || e.Revision > cut.Sequences[b] {
				t.Errorf("%s/%s at %d follows %d, and the cut ends at %d", b, e.Key, e.Revision, last, cut.Sequences[b])
			}
			last = e.Revision
			v, err := strconv.Atoi(string(e.Value))
			if err != nil {
				t.Fatal(err)
			}
			at[string(b)+" "+e.Key] = v
		}
	}
	for key, v := range at {
		if w, ok := strings.CutPrefix(key, "spec service."); ok {
			if r := at["rev service."+w+".1"]; r < v || r > v+1 {
				t.Errorf("the revision of %s is %d, and the object refers to %d", w, r, v)
			}
			if n := at["task "+w+"-a"]; n != at["task "+w+"-b"] || n < v-1 || n > v {
				t.Errorf("%s: tasks %d and %d beside object %d", w, n, at["task "+w+"-b"], v)
			}
		}
	}
}

// A cut holds what stood at one instant, whoever writes meanwhile: no change that came after another is in it without that
// one, and no batch is divided.
func TestCutIsOneInstant(t *testing.T) {
	for _, many := range []int{1, 8} {
		t.Run(strconv.Itoa(many), func(t *testing.T) {
			n := kvtest.Server(t)
			defer writers(t, n, many)()
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			c, err := kv.NewCutter(ctx, n.JS(t), subject.Spec, subject.Rev, subject.Task, subject.Secret)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			timed := 0
			for i := range 12 {
				if i == 6 {
					c.ByTime()
				}
				began := time.Now()
				cut, err := c.Take(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if cut.Timed {
					timed++
				}
				t.Logf("%v, timed %v, %v", time.Since(began), cut.Timed, cut.Sequences)
				whole(t, cut)
			}
			if timed == 0 && many > 1 {
				t.Error("no cut was made by time")
			}
		})
	}
}

// What nobody changes is cut at once and without a clock; deletions are not in it.
func TestCutOfQuietBuckets(t *testing.T) {
	n := kvtest.Server(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b := kv.Open(n.JS(t), subject.Spec)
	for _, key := range []string{"node.a", "node.b", "node.c", "node.a"} {
		if _, err := b.Put(ctx, key, []byte("1")); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Delete(ctx, "node.b", 0); err != nil {
		t.Fatal(err)
	}
	c, err := kv.NewCutter(ctx, n.JS(t), subject.Spec, subject.Rev)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for want := 2; want <= 3; want++ {
		cut, err := c.Take(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if cut.Timed || len(cut.Buckets[subject.Spec]) != want || len(cut.Buckets[subject.Rev]) != 0 {
			t.Fatalf("%+v", cut)
		}
		if _, err := b.Put(ctx, "node.d", []byte("1")); err != nil {
			t.Fatal(err)
		}
	}
}
