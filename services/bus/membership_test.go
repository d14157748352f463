package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// ledger writes and remembers what was acknowledged, at which revision.
type ledger struct {
	t       *testing.T
	nc      *nats.Conn
	js      jetstream.JetStream
	stop    context.CancelFunc
	wg      sync.WaitGroup
	acked   atomic.Int64
	mu      sync.Mutex
	revs    map[string]uint64
	lastAck time.Time
	gap     time.Duration // longest time without an ack since the last call of mark
}

func startWriters(t *testing.T, creds *pki.Store, writers int, addrs ...string) *ledger {
	t.Helper()
	var urls string
	for i, a := range addrs {
		if i > 0 {
			urls += ","
		}
		urls += "tls://" + a
	}
	nc, err := nats.Connect(urls, nats.Secure(pki.ClientTLS(creds)), nats.TLSHandshakeFirst(),
		nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.Timeout(2*time.Second), nats.IgnoreAuthErrorAbort(),
		nats.RetryOnFailedConnect(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	l := &ledger{t: t, nc: nc, revs: map[string]uint64{}, lastAck: time.Now()}
	if l.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	t.Cleanup(l.halt)
	for w := range writers {
		l.wg.Add(1)
		go func() {
			defer l.wg.Done()
			for n := 0; ctx.Err() == nil; n++ {
				l.write(ctx, fmt.Sprintf("w%d.%d", w, n))
			}
		}()
	}
	return l
}

// write repeats a put until it is acknowledged. Each key is written once; the message id makes the repetition of a put
// whose ack was lost answer with the first one's revision.
func (l *ledger) write(ctx context.Context, key string) {
	val := make([]byte, 200)
	copy(val, key)
	for ctx.Err() == nil {
		// The broker may die at any point; how long an ack takes then says nothing.
		pctx, cancel := context.WithTimeout(context.Background(), time.Second)
		ack, err := l.js.Publish(pctx, "$KV.a."+key, val, jetstream.WithMsgID(key), jetstream.WithRetryAttempts(0))
		cancel()
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(20*time.Millisecond + rand.N(20*time.Millisecond)):
			}
			continue
		}
		now := time.Now()
		l.mu.Lock()
		l.revs[key] = ack.Sequence
		l.gap = max(l.gap, now.Sub(l.lastAck))
		l.lastAck = now
		l.mu.Unlock()
		l.acked.Add(1)
		return
	}
}

// mark logs a step, waits until writes go on, and says how long they paused.
func (l *ledger) mark(step string, began time.Time) {
	l.t.Helper()
	took, n := time.Since(began), l.acked.Load()
	for deadline := time.Now().Add(patience); l.acked.Load() < n+20; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: no writes for %v after it", step, patience)
		}
	}
	l.mu.Lock()
	l.t.Logf("%-34s %6.2fs, longest pause of writes %5.2fs, %d acknowledged", step, took.Seconds(), l.gap.Seconds(), l.acked.Load())
	l.gap = 0
	l.mu.Unlock()
}

func (l *ledger) halt() {
	l.stop()
	l.wg.Wait()
}

// verify reads the whole bucket: every acknowledged key must be there, at the revision of its acknowledgement.
func (l *ledger) verify(step string) {
	l.t.Helper()
	l.mu.Lock()
	want := make(map[string]uint64, len(l.revs))
	for k, v := range l.revs {
		want[k] = v
	}
	l.mu.Unlock()
	have := map[string]uint64{}
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if have, err = l.read(); err == nil {
			break
		}
	}
	if err != nil {
		l.t.Fatalf("%s: read everything: %v", step, err)
	}
	lost, moved := 0, 0
	for k, rev := range want {
		switch have[k] {
		case rev:
		case 0:
			lost++
		default:
			moved++
		}
	}
	if lost+moved > 0 {
		l.t.Fatalf("%s: of %d acknowledged writes %d are lost and %d have another revision", step, len(want), lost, moved)
	}
	l.t.Logf("%s: %d acknowledged writes, all there, all at their revision", step, len(want))
}

func (l *ledger) read() (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := l.js.Stream(ctx, "KV_a")
	if err != nil {
		return nil, err
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return nil, err
	}
	have := map[string]uint64{}
	for total := s.CachedInfo().State.Msgs; uint64(len(have)) < total; {
		b, err := c.Fetch(5000, jetstream.FetchMaxWait(2*time.Second))
		if err != nil {
			return nil, err
		}
		got := 0
		for m := range b.Messages() {
			md, err := m.Metadata()
			if err != nil {
				return nil, err
			}
			have[m.Subject()[len("$KV.a."):]] = md.Sequence.Stream
			got++
		}
		if err := b.Error(); err != nil {
			return nil, err
		}
		if got == 0 {
			return nil, errors.New("the consumer ended early")
		}
	}
	return have, nil
}

// Managers join and leave, 1→3→1, with writers running and a kill -9 at every size; no acknowledged write is lost and
// none changes its revision.
func TestManagersComeAndGo(t *testing.T) {
	ca := pkitest.NewCA(t)
	m1, m2, m3 := newChild(t, ca, "m1"), newChild(t, ca, "m2"), newChild(t, ca, "m3")
	route := func(c *child) string { return c.cfg.RouteAddr() }
	step := func(l *ledger, name string, f func()) {
		t.Helper()
		began := time.Now()
		f()
		l.mark(name, began)
	}

	m1.cfg.Witness = "m1-w1"
	m1.start()
	creds := pkitest.Store(t, ca, pki.Identity{NodeID: "writer", Role: pki.Manager}, time.Hour)
	l := startWriters(t, creds, 4, m1.cfg.Advertise, m2.cfg.Advertise, m3.cfg.Advertise)
	if err := created(t, l.js, "a"); err != nil {
		t.Fatal(err)
	}

	step(l, "alone", func() {})
	step(l, "alone: kill -9 and restart", func() { m1.kill(); m1.start() })
	step(l, "m2 joins", func() {
		m2.cfg.Routes = []string{route(m1)}
		m2.start()
		m1.do(order{Op: "members", Names: []string{"m1", "m1-w1", "m2"}})
	})
	step(l, "m3 joins", func() {
		m3.cfg.Routes = []string{route(m1), route(m2)}
		m3.start()
		m1.do(order{Op: "members", Names: []string{"m1", "m1-w1", "m2", "m3"}})
	})
	step(l, "one replica to three", func() { m1.do(order{Op: "scale", Replicas: 3}) })
	step(l, "the witness goes", func() {
		m1.do(order{Op: "evacuate", Name: "m1-w1"})
		m1.do(order{Op: "stop-witness"})
		m1.do(order{Op: "remove", Name: "m1-w1"})
		m1.do(order{Op: "members", Names: []string{"m1", "m2", "m3"}})
	})
	step(l, "three: kill -9 of m1", func() { m1.kill() })
	step(l, "three: m1 is back", func() {
		m1.cfg.Witness, m1.cfg.Routes = "", []string{route(m2), route(m3)}
		m1.start()
		m2.do(order{Op: "members", Names: []string{"m1", "m2", "m3"}})
		m2.do(order{Op: "scale", Replicas: 3}) // awaits that every replica is current
	})
	step(l, "a witness comes to m2", func() {
		m2.do(order{Op: "start-witness", Name: "m2-w1"})
		m2.do(order{Op: "members", Names: []string{"m1", "m2", "m3", "m2-w1"}})
	})
	leave := func(c *child, rest ...string) {
		m2.do(order{Op: "evacuate", Name: c.cfg.NodeID})
		c.stop()
		m2.do(order{Op: "remove", Name: c.cfg.NodeID})
		m2.do(order{Op: "members", Names: rest})
	}
	step(l, "m3 leaves", func() { leave(m3, "m1", "m2", "m2-w1") })
	step(l, "m1, the founder, leaves", func() { leave(m1, "m2", "m2-w1") })
	step(l, "three replicas to one", func() { m2.do(order{Op: "scale", Replicas: 1}) })
	m2.cfg.Witness, m2.cfg.Routes = "m2-w1", nil
	step(l, "alone again: kill -9 and restart", func() { m2.kill(); m2.start() })
	witness := filepath.Join(m2.cfg.DataDir, "witness")
	step(l, "the witness's store is lost", func() {
		m2.kill()
		if err := os.RemoveAll(witness); err != nil {
			t.Fatal(err)
		}
		m2.start()
		m2.do(order{Op: "members", Names: []string{"m2", "m2-w1"}})
	})
	step(l, "the witness's store is damaged", func() {
		m2.kill()
		scramble(t, witness)
		m2.start()
		m2.do(order{Op: "members", Names: []string{"m2", "m2-w1"}})
	})
	l.halt()
	l.verify("at the end")
	m2.kill()
	m2.start()
	began := time.Now()
	l.verify("after one more kill -9")
	if testing.Short() {
		return
	}
	// A stream that the group does not know is deleted 30 s after the start: what is there later is there to stay.
	time.Sleep(time.Until(began.Add(32 * time.Second)))
	l.verify("after 32 s")
}

// scramble overwrites every file under dir with noise.
func scramble(t *testing.T, dir string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		noise := make([]byte, st.Size())
		for i := range noise {
			noise[i] = byte(rand.Uint32())
		}
		n++
		return os.WriteFile(p, noise, 0o600)
	})
	if err != nil || n == 0 {
		t.Fatalf("scrambled %d files: %v", n, err)
	}
}
