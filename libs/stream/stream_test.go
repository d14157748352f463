package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/id"
	"skep.dev/libs/subject"
)

const node = "w1"

var open = subject.Node(node, "exec.open")

// broker starts a server and checks at the end that nothing of this package still runs.
func broker(t testing.TB) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server did not start")
	}
	t.Cleanup(func() {
		awaitNoGoroutines(t)
		s.Shutdown()
		s.WaitForShutdown()
	})
	return s
}

func awaitNoGoroutines(t testing.TB) {
	t.Helper()
	buf := make([]byte, 1<<20)
	await(t, "every goroutine of the package ended", func() bool {
		n := runtime.Stack(buf, true)
		return !bytes.Contains(buf[:n], []byte("stream.(*"))
	})
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("not in time: %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}

func connect(t testing.TB, s *server.Server) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func serve(t testing.TB, nc *nats.Conn, h Handler, opts ...Option) *Server {
	t.Helper()
	v, err := Serve(nc, open, node, h, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// TestAnswersGoToTheAsker: a stream that is asked for with somebody else's inbox, or none, is neither opened nor answered.
func TestAnswersGoToTheAsker(t *testing.T) {
	s := broker(t)
	opened := make(chan string, 16)
	v := serve(t, connect(t, s), func(_ context.Context, sess *Session, req []byte) {
		opened <- string(req)
		_ = sess.Exit(0, nil)
	})
	nc := connect(t, s)
	answers := make(chan *nats.Msg, 16)
	for _, to := range []string{"_INBOX_" + node + ".1", "_INBOX_viewer.user-vic.1", "_INBOX_join-x.1", "_INBOX_user-ada.*", subject.Spec.Key("cluster"), subject.API("service", "rm"), "$JS.API.INFO"} {
		if _, err := nc.ChanSubscribe(to, answers); err != nil {
			t.Fatal(err)
		}
		for _, sid := range []string{id.New(), "malformed"} { // served, refused
			m := nats.NewMsg(open)
			m.Reply, m.Data = to, []byte(to)
			m.Header.Set(HeaderSession, sid)
			if err := nc.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := dial(t, nc)
	if _, err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if len(opened) != 1 || len(answers) != 0 {
		t.Errorf("%d streams were opened, one was asked for rightly; %d answers went astray", len(opened), len(answers))
	}
}

func dial(t testing.TB, nc *nats.Conn, opts ...Option) *Session {
	t.Helper()
	s, err := Dial(context.Background(), nc, open, node, &skepv1.ExecRequest{TaskId: "t"}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// noise is a reproducible stream of random bytes.
type noise struct{ r *rand.ChaCha8 }

func newNoise(n byte) noise                { return noise{rand.NewChaCha8([32]byte{n})} }
func (n noise) Read(p []byte) (int, error) { return n.r.Read(p) }
func sum(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%x", h.Sum(nil)), n, err
}
func mustSum(seed byte, size int64) string {
	s, _, _ := sum(io.LimitReader(newNoise(seed), size))
	return s
}
func send(w io.WriteCloser, seed byte, size int64) error {
	if _, err := io.Copy(w, io.LimitReader(newNoise(seed), size)); err != nil {
		return err
	}
	return w.Close()
}

func TestHundredMegabytesArriveIntact(t *testing.T) {
	const size = 100<<20 + 12345
	s := broker(t)
	got := make(chan string, 1)
	serve(t, connect(t, s), func(_ context.Context, ss *Session, _ []byte) {
		h, n, err := sum(ss.Reader(In))
		got <- h
		_ = ss.Exit(int(n%251), err)
	})
	c := dial(t, connect(t, s))
	if err := send(c.Writer(In), 1, size); err != nil {
		t.Fatal(err)
	}
	x, err := c.Wait()
	if err != nil || x.Code != size%251 || x.Err != "" {
		t.Fatalf("exit %v, %v", x, err)
	}
	if h := <-got; h != mustSum(1, size) {
		t.Fatal("the bytes that arrived are not those that were sent")
	}
}

func TestBothWaysAtOnce(t *testing.T) {
	const size = 8 << 20
	s := broker(t)
	serve(t, connect(t, s), func(_ context.Context, ss *Session, req []byte) {
		var wg sync.WaitGroup
		for i, ch := range []string{Out, Err} {
			wg.Go(func() {
				if err := send(ss.Writer(ch), byte(i+2), size); err != nil {
					t.Error(err)
				}
			})
		}
		h, _, err := sum(ss.Reader(In))
		wg.Wait()
		if h != mustSum(1, size) {
			err = errors.New("in differs")
		}
		_ = ss.Exit(7, err)
	})
	nc := connect(t, s)
	var all sync.WaitGroup
	for range 3 { // several sessions share the connections
		all.Go(func() {
			c, err := Dial(context.Background(), nc, open, node, &skepv1.ExecRequest{})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := send(c.Writer(In), 1, size); err != nil {
					t.Error(err)
				}
			})
			for i, ch := range []string{Out, Err} {
				wg.Go(func() {
					if h, n, err := sum(c.Reader(ch)); err != nil || h != mustSum(byte(i+2), size) {
						t.Errorf("%s: %d bytes, %v", ch, n, err)
					}
				})
			}
			wg.Wait()
			if x, err := c.Wait(); err != nil || x.Code != 7 || x.Err != "" {
				t.Errorf("exit %v, %v", x, err)
			}
		})
	}
	all.Wait()
}

// A fast producer stops at the window; nothing piles up at the reader, and all of it comes through in the end.
func TestSlowReaderStopsTheWriter(t *testing.T) {
	for _, frame := range []int{1, 1000, MaxFrame, 100_000} {
		t.Run(fmt.Sprint(frame), func(t *testing.T) {
			s := broker(t)
			var sent atomic.Int64
			total := int64(min(frame*8000, 4<<20))
			serve(t, connect(t, s), func(_ context.Context, ss *Session, _ []byte) {
				w := ss.Writer(Out)
				for sent.Load() < total {
					n, err := w.Write(make([]byte, frame))
					sent.Add(int64(n))
					if err != nil {
						return
					}
				}
				_ = ss.Exit(0, nil)
			})
			c := dial(t, connect(t, s))
			in := c.in[Out]
			held := func() int64 { c.mu.Lock(); defer c.mu.Unlock(); return in.held }
			await(t, "the window filled up", func() bool { return held() > Window-cost(min(frame, MaxFrame)) })
			before := sent.Load()
			for range 20 { // it stays where it is
				time.Sleep(2 * time.Millisecond)
				if h := held(); h > Window {
					t.Fatalf("%d bytes held, window %d", h, Window)
				}
			}
			if now := sent.Load(); now != before || now >= total {
				t.Fatalf("the writer went on from %d to %d of %d", before, now, total)
			}
			n, err := io.Copy(io.Discard, c.Reader(Out))
			if err != nil || n != sent.Load() {
				t.Fatalf("%d of %d bytes, %v", n, sent.Load(), err)
			}
			if x, err := c.Wait(); err != nil || x.Code != 0 {
				t.Fatal(x, err)
			}
		})
	}
}

func TestExitComesAfterTheDataAndStaysReadable(t *testing.T) {
	s := broker(t)
	serve(t, connect(t, s), func(_ context.Context, ss *Session, _ []byte) {
		fmt.Fprint(ss.Writer(Out), "last words")
		fmt.Fprint(ss.Writer(Err), "oops")
		_ = ss.Exit(137, errors.New("killed"))
	})
	c := dial(t, connect(t, s))
	x, err := c.Wait()
	if err != nil || x.Code != 137 || x.Err != "killed" {
		t.Fatal(x, err)
	}
	for ch, want := range map[string]string{Out: "last words", Err: "oops"} {
		if b, err := io.ReadAll(c.Reader(ch)); err != nil || string(b) != want {
			t.Fatalf("%s: %q %v", ch, b, err)
		}
	}
	if _, err := c.Writer(In).Write([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Fatalf("write after the end: %v", err)
	}
}

func TestControlBothWays(t *testing.T) {
	s := broker(t)
	serve(t, connect(t, s), func(_ context.Context, ss *Session, _ []byte) {
		var seen []string
		for c := range ss.Control() {
			switch v := c.Control.(type) {
			case *skepv1.StreamControl_Resize:
				seen = append(seen, fmt.Sprintf("%dx%d", v.Resize.Width, v.Resize.Height))
				_ = ss.SendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Progress{Progress: "resized"}})
			case *skepv1.StreamControl_Signal:
				_ = ss.Exit(0, errors.New(fmt.Sprint(append(seen, v.Signal))))
			}
		}
	})
	c := dial(t, connect(t, s))
	if err := c.SendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Resize{Resize: &skepv1.Resize{Width: 80, Height: 24}}}); err != nil {
		t.Fatal(err)
	}
	if p := <-c.Control(); p.GetProgress() != "resized" {
		t.Fatal(p)
	}
	if err := c.SendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Signal{Signal: "SIGINT"}}); err != nil {
		t.Fatal(err)
	}
	if x, err := c.Wait(); err != nil || x.Err != "[80x24 SIGINT]" {
		t.Fatal(x, err)
	}
}

func TestUnreadControlIsBounded(t *testing.T) {
	s := broker(t)
	release := make(chan struct{})
	let := sync.OnceFunc(func() { close(release) })
	serve(t, connect(t, s), func(_ context.Context, ss *Session, _ []byte) {
		_ = ss.Accept()
		<-release
		n, last := 0, uint32(0)
		for len(ss.Control()) > 0 {
			last = (<-ss.Control()).GetResize().GetWidth()
			n++
		}
		_ = ss.Exit(n, fmt.Errorf("%d", last))
	})
	t.Cleanup(let)
	c := dial(t, connect(t, s))
	// A peer that is flooded faster than it can read may also break the session off: nothing grew then either.
	var flooded error
	for i := 0; i < 5000 && flooded == nil; i++ {
		flooded = c.SendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Resize{Resize: &skepv1.Resize{Width: uint32(i)}}})
	}
	if flooded == nil {
		flooded = send(c.Writer(In), 1, 10)
	}
	if flooded != nil && !errors.Is(flooded, ErrBroken) && !errors.Is(flooded, ErrGone) {
		t.Fatal(flooded)
	}
	if err := c.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, let)
	x, err := c.Wait()
	if err == nil && (x.Code > controlBacklog || x.Err == "") {
		t.Fatal(x)
	}
}
