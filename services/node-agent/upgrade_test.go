package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/life"
	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// taker is a node's daemon that takes what has the announced sum.
type taker struct {
	refuse    error
	mu        sync.Mutex
	took      []string
	restarted int
}

func (u *taker) Check(*skepv1.UpgradeNodeRequest) error { return u.refuse }

func (u *taker) Take(_ context.Context, r *skepv1.UpgradeNodeRequest, program io.Reader) (func(), error) {
	b, err := io.ReadAll(program)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); string(sum[:]) != string(r.Sha256) {
		return nil, fault.Invalid("what came is not the program that was announced")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.took = append(u.took, string(b))
	return func() { u.mu.Lock(); u.restarted++; u.mu.Unlock() }, nil
}

func (u *taker) State() (*skepv1.UpgradeState, error) { return &skepv1.UpgradeState{Running: "1"}, nil }

// upgradable is an agent that answers upgrades and nothing else.
func upgradable(t *testing.T, u Upgrader) (nc *nats.Conn, node string) {
	t.Helper()
	node = id.New()
	srv := kvtest.Server(t)
	s := &Service{cfg: Config{NodeID: node, NC: srv.As(t, "agent-"+node), Hostname: "host1", Upgrader: u}, log: zap.NewNop(), Span: life.New()}
	st, err := stream.Serve(s.cfg.NC, api.UpgradeOpen.At(node).Subject(), node, s.upgrade, stream.WithLimit(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return s.cfg.NC, node
}

func offered(t *testing.T, nc *nats.Conn, node, text string) (*stream.Session, error) {
	t.Helper()
	sum := sha256.Sum256([]byte(text))
	return stream.Dial(t.Context(), nc, api.UpgradeOpen.At(node).Subject(), node, &skepv1.UpgradeNodeRequest{Version: "2", Sha256: sum[:], Size: uint64(len(text))})
}

func sent(t *testing.T, sess *stream.Session, text string) *skepv1.Exit {
	t.Helper()
	for _, c := range []string{stream.Out, stream.Err} {
		go func() { _, _ = io.Copy(io.Discard, sess.Reader(c)) }()
	}
	w := sess.Writer(stream.In)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	x, err := sess.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestUpgradeOverAStream(t *testing.T) {
	u := &taker{}
	nc, node := upgradable(t, u)
	sess, err := offered(t, nc, node, "the program")
	if err != nil {
		t.Fatal(err)
	}
	// One at a time.
	if _, err := offered(t, nc, node, "another"); !fault.Is(err, fault.CodeExhausted) {
		t.Errorf("a second one: %v", err)
	}
	if x := sent(t, sess, "the program"); x.Code != 0 || x.Err != "" {
		t.Fatal(x)
	}
	deadline := time.Now().Add(patience)
	for {
		u.mu.Lock()
		took, restarted := strings.Join(u.took, "|"), u.restarted
		u.mu.Unlock()
		if took == "the program" && restarted == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("took %q, %d restarts", took, restarted)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Operators may write to every stream and hear of every session: what one of them slips into an admin's upgrade never runs.
func TestBytesOfSomebodyElse(t *testing.T) {
	u := &taker{}
	nc, node := upgradable(t, u)
	sess, err := offered(t, nc, node, "the program")
	if err != nil {
		t.Fatal(err)
	}
	frame := append(make([]byte, 8), "evil program"...) // the offset, and bytes in the place of the first ones
	if err := nc.Publish(subject.IO(node, sess.ID(), stream.In), frame); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{stream.Out, stream.Err} {
		go func() { _, _ = io.Copy(io.Discard, sess.Reader(c)) }()
	}
	w := sess.Writer(stream.In)
	_, werr := io.WriteString(w, "the program")
	werr = errors.Join(werr, w.Close())
	x, err := sess.Wait()
	if werr == nil && err == nil && x.GetErr() == "" {
		t.Error("the upgrade was taken")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.took) > 0 || u.restarted > 0 {
		t.Errorf("it took %q", u.took)
	}
}

func TestUpgradeRefused(t *testing.T) {
	nc, node := upgradable(t, &taker{refuse: fault.Exhausted("the disk is full")})
	if _, err := offered(t, nc, node, "x"); !fault.Is(err, fault.CodeExhausted) || !strings.Contains(err.Error(), "the disk is full") {
		t.Error(err)
	}
	// Services that are processes of their own: each has a program of its own.
	nc, node = upgradable(t, nil)
	if _, err := offered(t, nc, node, "x"); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "replace their programs there and restart them one by one") {
		t.Error(err)
	}
}
