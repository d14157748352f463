package kv_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

func TestMain(m *testing.M) { kvtest.Main(m) }

// store is a bucket on server processes, with a compactor on each server that retires markers at once.
type store struct {
	t    *testing.T
	ps   *kvtest.Processes
	size int
	js   jetstream.JetStream
	b    *kv.Bucket
	each []*kv.Compactor
}

func newStore(t *testing.T, size, replicas int, syncInterval time.Duration) *store {
	t.Helper()
	s := &store{t: t, ps: kvtest.Spawn(t, size, syncInterval), size: size}
	s.js = s.ps.JS(t)
	kvtest.Ask(t, "make the streams", func(ctx context.Context) (int, error) { return 0, kv.Ensure(ctx, s.js, replicas) })
	s.b = kv.Open(s.js, subject.Spec)
	for i := range size {
		s.each = append(s.each, kv.NewCompactor(s.ps.JS(t, i), zap.NewNop(), time.Nanosecond))
	}
	return s
}

// compact passes over the bucket until the leader's compactor has, and returns its report.
func (s *store) compact() kv.Report {
	s.t.Helper()
	return kvtest.Ask(s.t, "compact", func(context.Context) (kv.Report, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute) // a pass may have thousands to retire, each with a sync of the disk
		defer cancel()
		skipped := ""
		for _, c := range s.each {
			r, err := c.Pass(ctx, subject.Spec)
			skipped += " " + r.Skipped
			if err != nil || r.Skipped == "" {
				return r, err
			}
		}
		return kv.Report{}, fmt.Errorf("nobody looked:%s", skipped)
	})
}

// retire passes twice: once to see the markers, once to remove them.
func (s *store) retire() kv.Report {
	s.t.Helper()
	a := s.compact()
	b := s.compact()
	return kv.Report{Live: b.Live, Markers: b.Markers, Retired: a.Retired + b.Retired, Ghosts: append(a.Ghosts, b.Ghosts...)}
}

func (s *store) crash() {
	s.t.Helper()
	for i := range s.size {
		s.ps.Kill(i)
	}
	for i := range s.size {
		s.ps.Start(i)
	}
	s.info()
}

func (s *store) info() jetstream.StreamState {
	s.t.Helper()
	return kvtest.Ask(s.t, "look at the stream", func(ctx context.Context) (jetstream.StreamState, error) {
		st, err := s.js.Stream(ctx, subject.Spec.Stream())
		if err != nil {
			return jetstream.StreamState{}, err
		}
		if c := st.CachedInfo().Cluster; c != nil && c.Leader == "" {
			return jetstream.StreamState{}, errors.New("no leader yet")
		}
		return st.CachedInfo().State, nil
	})
}

// picture is what a feed that begins now shows.
func (s *store) picture() map[string]string {
	s.t.Helper()
	x := &index{}
	f := kv.Follow(context.Background(), s.ps.JS(s.t), subject.Spec, x.apply) // a deadline would be that of each request
	defer f.Close()
	select {
	case <-f.Ready():
	case <-ctx(s.t).Done():
		s.t.Fatal("the feed shows nothing")
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return maps.Clone(x.m)
}

func (s *store) put(key, val string) uint64 {
	s.t.Helper()
	return kvtest.Ask(s.t, "put "+key, func(ctx context.Context) (uint64, error) { return s.b.Put(ctx, key, []byte(val)) })
}

func (s *store) delete(key string) {
	s.t.Helper()
	kvtest.Ask(s.t, "delete "+key, func(ctx context.Context) (int, error) { return 0, s.b.Delete(ctx, key, 0) })
}

func (s *store) wants(want map[string]string) {
	s.t.Helper()
	if got := s.picture(); !maps.Equal(got, want) {
		s.t.Fatalf("a feed shows %v, want %v", got, want)
	}
}

// TestKilledAtEveryStep deletes keys and kills every server after each step on the way to their markers' end.
func TestKilledAtEveryStep(t *testing.T) {
	// In this order on several keys each is left where its step ends: later steps retire no marker of earlier ones.
	steps := []struct {
		name string
		do   func(s *store, key string)
		want string
	}{
		{"retired-again", func(s *store, key string) {
			s.delete(key)
			s.retire()
			s.put(key, "anew")
			s.delete(key)
			s.retire()
		}, ""},
		{"retired", func(s *store, key string) { s.delete(key); s.retire() }, ""},
		{"created-again", func(s *store, key string) { s.delete(key); s.retire(); s.put(key, "anew") }, "anew"},
		{"deleted-again", func(s *store, key string) {
			s.delete(key)
			s.retire()
			s.put(key, "anew")
			s.delete(key)
		}, ""},
		{"written", func(s *store, key string) {}, "3"},
		{"deleted", func(s *store, key string) { s.delete(key) }, ""},
		{"seen", func(s *store, key string) { s.delete(key); s.compact() }, ""},
		{"checkpoint-written", func(s *store, key string) {
			s.delete(key)
			s.compact()
			for _, c := range s.each {
				if err := c.HalfPass(ctx(s.t), subject.Spec); err != nil {
					s.t.Fatal(err)
				}
			}
		}, ""},
	}
	for _, size := range []int{1, 3} {
		// An election after a crash of three servers takes seconds: there all keys share one.
		for at := 0; at < len(steps); {
			n := 1
			if size > 1 {
				n = len(steps)
			}
			now := steps[at : at+n]
			at += n
			t.Run(fmt.Sprintf("R%d/%s", size, now[n-1].name), func(t *testing.T) {
				t.Parallel()
				s := newStore(t, size, size, 0)
				want := map[string]string{"alive": "1"}
				s.put("alive", "1")
				for _, step := range now {
					for _, v := range []string{"1", "2", "3"} {
						s.put(step.name, v)
					}
					step.do(s, step.name)
					if step.want != "" {
						want[step.name] = step.want
					}
				}
				last := s.info().LastSeq
				s.crash()
				if now := s.info().LastSeq; now < last {
					t.Fatalf("the stream's last sequence went from %d to %d", last, now)
				}
				s.wants(want)
				s.compact()
				s.crash()
				s.wants(want)
				for _, step := range now {
					_, err := s.b.Create(ctx(t), step.name, []byte("mine"))
					if step.want == "" && err != nil || step.want != "" && !errors.Is(err, kv.ErrConflict) {
						t.Fatalf("create %s: %v", step.name, err)
					}
				}
			})
		}
	}
}

// TestGhostIsRefusedAndNamed: before anybody removed it, a ghost is nowhere to be seen and in nobody's way; the audit says
// which it was.
func TestGhostIsRefusedAndNamed(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1, 1, 0)
	s.put("alive", "1")
	s.put("ghost", "1")
	s.put("idx.ghost", "1")
	s.delete("ghost")
	s.delete("idx.ghost")
	if r := s.retire(); r.Retired != 2 || r.Live != 1 || r.Markers != 0 {
		t.Fatalf("retired %+v", r)
	}
	s.crash()
	if n := s.info().Msgs; n != 4 {
		t.Fatalf("the server recovered %d messages; 4 (checkpoint, one that lives, two ghosts) are what this test is about", n)
	}
	s.wants(map[string]string{"alive": "1"})
	if e, err := s.b.Get(ctx(t), "ghost"); !errors.Is(err, kv.ErrNotFound) || !e.Deleted {
		t.Fatalf("get: %+v, %v", e, err)
	}
	batch := s.b.Batch()
	batch.Create("ghost", []byte("new"))
	batch.Create("other", []byte("new"))
	if _, err := batch.Commit(ctx(t)); err != nil {
		t.Fatalf("create in place of a ghost: %v", err)
	}
	r := s.compact()
	if !slices.Equal(r.Ghosts, []string{"idx.ghost"}) {
		t.Fatalf("the audit names %v", r.Ghosts)
	}
	if n := s.info().Msgs; n != 4 {
		t.Fatalf("%d messages after the audit, want the checkpoint and three keys", n)
	}
	s.wants(map[string]string{"alive": "1", "ghost": "new", "other": "new"})
}

// TestOldStoreIsCured: markers of before, which the server lets expire, leave no ghosts once a checkpoint was written.
func TestOldStoreIsCured(t *testing.T) {
	s := newStore(t, 1, 1, 0)
	s.put("alive", "1")
	for i := range 5 {
		key := fmt.Sprintf("ghost.%d", i)
		s.put(key, "1")
		m := nats.NewMsg(subject.Spec.Key(key))
		m.Header.Set("KV-Operation", "DEL")
		m.Header.Set("Nats-TTL", "1")
		if _, err := s.js.PublishMsg(ctx(t), m); err != nil {
			t.Fatal(err)
		}
	}
	if r := s.compact(); r.Live != 1 || r.Markers != 5 {
		t.Fatalf("first look: %+v", r)
	}
	kvtest.Ask(t, "the markers expire", func(context.Context) (int, error) {
		if n := s.info().Msgs; n != 2 {
			return 0, fmt.Errorf("%d messages", n)
		}
		return 0, nil
	})
	s.crash()
	s.wants(map[string]string{"alive": "1"})
	if r := s.compact(); len(r.Ghosts) != 5 {
		t.Fatalf("the audit names %v", r.Ghosts)
	}
	if f := s.each[0].Found()[subject.Spec]; f.Ghosts != 5 || f.Damage != "" {
		t.Errorf("told of the bucket: %+v", f)
	}
}

// TestDamageIsNotBuried: keys that vanish without a deletion are not declared dead by the next checkpoint.
func TestDamageIsNotBuried(t *testing.T) {
	s := newStore(t, 1, 1, 0)
	for i := range 10 {
		s.put(fmt.Sprint("k", i), "1")
	}
	s.put("gone", "1")
	s.delete("gone")
	s.retire()
	st, err := s.js.Stream(ctx(t), subject.Spec.Stream())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := st.Purge(ctx(t), jetstream.WithPurgeSubject(subject.Spec.Key(fmt.Sprint("k", i)))); err != nil {
			t.Fatal(err)
		}
	}
	before := s.info()
	s.put("k3", "2")
	s.delete("k4")
	if _, err := s.each[0].Pass(ctx(t), subject.Spec); err == nil {
		t.Fatal("three keys are gone without a trace, and nobody says so")
	}
	if now := s.info(); now.LastSeq != before.LastSeq+2 {
		t.Fatal("a checkpoint was written over a damaged store")
	}
	if f := s.each[0].Found()[subject.Spec]; !strings.Contains(f.Damage, "lacks 3 keys") {
		t.Errorf("told of the bucket: %+v", f)
	}
	// What is put back is not told of any more.
	for i := range 3 {
		s.put(fmt.Sprint("k", i), "1")
	}
	if _, err := s.each[0].Pass(ctx(t), subject.Spec); err != nil || s.each[0].Found()[subject.Spec].Damage != "" {
		t.Errorf("mended: %v, told of the bucket: %+v", err, s.each[0].Found())
	}
}

// TestFeedThatWasAway: a feed whose server was gone while a key was deleted and the deletion's marker retired hears of it.
func TestFeedThatWasAway(t *testing.T) {
	t.Parallel()
	s := newStore(t, 3, 3, 0)
	s.put("alive", "1")
	s.put("ghost", "1")
	x := &index{}
	f := kv.Follow(ctx(t), s.ps.JS(t, 0), subject.Spec, x.apply)
	defer f.Close()
	<-f.Ready()
	if x.get("ghost") != "1" {
		t.Fatal("the feed does not show the key")
	}
	s.ps.Kill(0)
	s.js = s.ps.JS(t, 1, 2)
	s.b = kv.Open(s.js, subject.Spec)
	s.each = s.each[1:]
	s.delete("ghost")
	if r := s.retire(); r.Retired != 1 {
		t.Fatalf("retired %+v", r)
	}
	s.ps.Start(0)
	kvtest.Ask(t, "the feed hears of the deletion", func(context.Context) (int, error) {
		if v := x.get("ghost"); v != "" {
			return 0, errors.New("it still shows the key")
		}
		return 0, nil
	})
}

// TestNothingComesBack writes, deletes, compacts and kills at random, and compares what a new feed shows with what was
// acknowledged. In the middle the number of replicas goes from one to three and back.
func TestNothingComesBack(t *testing.T) {
	for _, c := range []struct{ size, rounds int }{{1, 8}, {3, 4}} {
		t.Run(fmt.Sprintf("servers %d", c.size), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Log("seed", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			s := newStore(t, c.size, 1, 300*time.Millisecond)
			m := &model{s: s, rng: rng, is: map[string]string{}}
			for round := range c.rounds {
				if c.size == 3 && round == c.rounds/3 {
					s.scale(3)
				}
				if c.size == 3 && round == c.rounds*2/3 {
					s.scale(1)
				}
				m.round()
				got := s.picture()
				if !maps.Equal(got, m.is) {
					t.Fatalf("round %d: a feed shows\n%v, acknowledged is\n%v", round, got, m.is)
				}
				if last := s.info().LastSeq; last < m.last {
					t.Fatalf("round %d: sequence %d was acknowledged, the stream's last one is %d", round, m.last, last)
				}
			}
		})
	}
}

func (s *store) scale(replicas int) {
	s.t.Helper()
	kvtest.Ask(s.t, "change the replicas", func(ctx context.Context) (int, error) {
		st, err := s.js.Stream(ctx, subject.Spec.Stream())
		if err != nil {
			return 0, err
		}
		cfg := st.CachedInfo().Config
		if cfg.Replicas != replicas {
			cfg.Replicas = replicas
			_, err = s.js.UpdateStream(ctx, cfg)
			return 0, errors.Join(err, errors.New("asked for"))
		}
		i := st.CachedInfo().Cluster
		if i == nil || i.Leader == "" || len(i.Replicas) != replicas-1 {
			return 0, fmt.Errorf("cluster %+v", i)
		}
		for _, r := range i.Replicas {
			if !r.Current {
				return 0, fmt.Errorf("%s is behind", r.Name)
			}
		}
		return 0, nil
	})
}

// model is what was acknowledged.
type model struct {
	s    *store
	rng  *rand.Rand
	is   map[string]string
	last uint64
	n    int
}

// round writes and deletes while compactors run and servers die, then settles what was in doubt.
func (m *model) round() {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			for _, c := range m.s.each {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				_, _ = c.Pass(ctx, subject.Spec) // its server may be dead; what counts is what a feed shows
				cancel()
			}
		}
	})
	kill := m.rng.IntN(300)
	doubt := map[string]string{} // the value it would have, "" for none
	for i := range 300 {
		if i == kill {
			if victim := m.rng.IntN(m.s.size + 1); victim == m.s.size {
				m.s.crash()
			} else {
				m.s.ps.Kill(victim)
				m.s.ps.Start(victim)
			}
		}
		key := fmt.Sprintf("k%d.%d", m.rng.IntN(3), m.rng.IntN(40))
		if _, ok := doubt[key]; ok {
			continue
		}
		m.n++
		val := fmt.Sprint(m.n)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		var rev uint64
		var err error
		if _, ok := m.is[key]; ok && m.rng.IntN(2) == 0 {
			val = ""
			err = m.s.b.Delete(ctx, key, 0)
		} else {
			rev, err = m.s.b.Put(ctx, key, []byte(val))
		}
		cancel()
		switch {
		case err != nil:
			doubt[key] = val
		case val == "":
			delete(m.is, key)
		default:
			m.is[key], m.last = val, max(m.last, rev)
		}
	}
	close(done)
	wg.Wait()
	m.s.crash()
	for key, val := range doubt {
		got := kvtest.Ask(m.s.t, "read "+key, func(ctx context.Context) (string, error) {
			e, err := m.s.b.Get(ctx, key)
			if errors.Is(err, kv.ErrNotFound) {
				return "", nil
			}
			return string(e.Value), err
		})
		if got != val && got != m.is[key] {
			m.s.t.Fatalf("%s is %q; it was %q, and %q was on its way", key, got, m.is[key], val)
		}
		if got == "" {
			delete(m.is, key)
		} else {
			m.is[key] = got
		}
	}
}
