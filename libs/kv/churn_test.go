package kv_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

// TestDeletionsCostNothing makes and removes keys for a simulated year, with a pass of the compactor a day, beside some that
// live: the disk and the time of a start after a kill stay as they were at its beginning. SKEP_DELETIONS says how many,
// the replicas change online on the way.
func TestDeletionsCostNothing(t *testing.T) {
	deletions := 10_000
	if v := os.Getenv("SKEP_DELETIONS"); v != "" {
		var err error
		if deletions, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("servers %d", size), func(t *testing.T) {
			s := newStore(t, size, 1, 2*time.Second)
			t.Parallel()
			const living = 1000
			days := min(365, max(25, deletions/2500))
			for i := range living {
				s.put(fmt.Sprintf("alive.%d", i), "1")
			}
			var early, most int64
			retired := 0
			for day := range days {
				if size == 3 && day == days/3 {
					s.scale(3)
				}
				if size == 3 && day == 2*days/3 {
					s.scale(1)
				}
				s.churn(fmt.Sprintf("day%d", day), deletions/days)
				s.put(fmt.Sprintf("alive.%d", day%living), fmt.Sprint(day))
				retired += s.retire().Retired
				used := s.disk()
				if day == days/5 {
					early = used
				}
				most = max(most, used)
			}
			st := s.info()
			s.crash()
			began := time.Now()
			if got := len(s.picture()); got != living {
				t.Fatalf("%d keys live after the crash, want %d", got, living)
			}
			took := time.Since(began)
			ghosts := len(s.compact().Ghosts)
			t.Logf("%d deletions, %d retired, sequence %d: %d messages, disk %d KiB after a fifth, %d at most, %d now; first picture after a kill %v, %d ghosts refused and removed",
				deletions, retired, st.LastSeq, st.Msgs, early>>10, most>>10, s.disk()>>10, took.Round(time.Millisecond), ghosts)
			if retired < deletions*9/10 {
				t.Errorf("%d of %d deletions were retired", retired, deletions)
			}
			// A block of 8 MiB a server that is being filled, and one that waits to be compacted.
			if limit := 2*early + int64(size)*(24<<20); most > limit {
				t.Errorf("the disk grew to %d KiB, from %d after a fifth of the time", most>>10, early>>10)
			}
		})
	}
}

// churn makes keys and deletes them, many on the way at once.
func (s *store) churn(name string, n int) {
	s.t.Helper()
	const window = 256
	for at := 0; at < n; at += window {
		for _, deletion := range []bool{false, true} {
			batch := s.b.Batch()
			for i := at; i < min(n, at+window); i++ {
				key := fmt.Sprintf("%s.%d", name, i)
				if deletion {
					batch.Delete(key, 0)
				} else {
					batch.Put(key, []byte("a service's specification, more or less: image, command, environment, networks, mounts"))
				}
			}
			kvtest.Ask(s.t, "write a batch", func(ctx context.Context) (uint64, error) { return batch.Commit(ctx) })
		}
	}
}

// disk is what all servers use for streams.
func (s *store) disk() int64 {
	s.t.Helper()
	var sum int64
	for i := range s.size {
		err := filepath.WalkDir(s.ps.Dir(i), func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // a file that went meanwhile
			}
			if info, err := d.Info(); err == nil && d.Type().IsRegular() {
				sum += info.Size()
			}
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return sum
}

// TestLeaseOverACrash: a lease that ended, and the server's marker of that, are gone when the server is killed. The server
// finds the lease again, and ends it again; the sequence, which is the next holder's epoch, does not go back.
func TestLeaseOverACrash(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1, 1, 0)
	st, err := s.js.Stream(ctx(t), subject.Lease.Stream())
	if err != nil {
		t.Fatal(err)
	}
	cfg := st.CachedInfo().Config
	cfg.SubjectDeleteMarkerTTL = time.Second
	if _, err := s.js.UpdateStream(ctx(t), cfg); err != nil {
		t.Fatal(err)
	}
	lease := func(expect string) (uint64, error) {
		m := nats.NewMsg(subject.Lease.Key("scheduler"))
		m.Data = []byte("m1")
		m.Header.Set("Nats-TTL", "1")
		m.Header.Set("Nats-Expected-Last-Subject-Sequence", expect)
		ack, err := s.js.PublishMsg(ctx(t), m)
		if err != nil {
			return 0, err
		}
		return ack.Sequence, nil
	}
	var epoch uint64
	for range 3 {
		if epoch, err = lease(strconv.FormatUint(epoch, 10)); err != nil {
			t.Fatal(err)
		}
	}
	state := func() (uint64, uint64) {
		i := kvtest.Ask(t, "look", func(ctx context.Context) (uint64, error) {
			st, err := s.js.Stream(ctx, subject.Lease.Stream())
			if err != nil {
				return 0, err
			}
			return st.CachedInfo().State.Msgs<<32 | st.CachedInfo().State.LastSeq, nil
		})
		return i >> 32, i & (1<<32 - 1)
	}
	var last uint64
	empty := func() {
		t.Helper()
		kvtest.Ask(t, "the lease ends", func(context.Context) (int, error) {
			n, seq := state()
			if n != 0 {
				return 0, fmt.Errorf("%d messages", n)
			}
			if seq < last {
				t.Fatalf("the last sequence went from %d to %d", last, seq)
			}
			last = seq
			return 0, nil
		})
	}
	empty()
	for range 3 {
		s.crash()
		empty()
	}
	b := kv.Open(s.js, subject.Lease)
	if e, err := b.Get(ctx(t), "scheduler"); err == nil {
		t.Fatalf("the lease is held by %s", e.Value)
	}
	next, err := lease("0")
	if err != nil || next <= epoch {
		t.Fatalf("the next epoch is %d after %d: %v", next, epoch, err)
	}
}
