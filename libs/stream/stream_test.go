package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
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

	"skep.dev/libs/fault"
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

func TestRefusals(t *testing.T) {
	s := broker(t)
	nc := connect(t, s)
	if _, err := Dial(context.Background(), nc, open, node, &skepv1.ExecRequest{}); !fault.Is(err, fault.CodeUnavailable) || err.Error() != "node w1 does not answer" {
		t.Fatalf("nobody there: %v", err)
	}
	reply := func(ss *Session) { ss.Refuse(fault.NotFound("no task t\non this node")) }
	v := serve(t, connect(t, s), func(_ context.Context, ss *Session, _ []byte) { reply(ss) })
	check := func(code fault.Code, text string) {
		t.Helper()
		_, err := Dial(context.Background(), nc, open, node, &skepv1.ExecRequest{})
		if !fault.Is(err, code) || err.Error() != text {
			t.Fatalf("%v (%s)", err, fault.Of(err))
		}
	}
	check(fault.CodeNotFound, "no task t; on this node")
	reply = func(ss *Session) { _ = ss.Exit(1, fmt.Errorf("exec: %w", fault.Invalid("task t is not running"))) }
	check(fault.CodeInvalid, "task t is not running")
	reply = func(*Session) {}
	check(fault.CodeInternal, "the request was dropped without an answer")
	m, err := nc.Request(open, nil, 10*time.Second) // by hand, without a session
	if err != nil || m.Header.Get("Nats-Service-Error-Code") != string(fault.CodeInvalid) {
		t.Fatal(m, err)
	}
	await(t, "no session is left", func() bool { return v.Sessions() == 0 })
}

func TestLimit(t *testing.T) {
	s := broker(t)
	serve(t, connect(t, s), func(ctx context.Context, ss *Session, _ []byte) { _ = ss.Accept(); <-ctx.Done() }, WithLimit(2))
	nc := connect(t, s)
	a, _ := dial(t, nc), dial(t, nc)
	if _, err := Dial(context.Background(), nc, open, node, &skepv1.ExecRequest{}); !fault.Is(err, fault.CodeExhausted) {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, "a place is free again", func() bool {
		c, err := Dial(context.Background(), nc, open, node, &skepv1.ExecRequest{})
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func TestClientLeavesByContext(t *testing.T) {
	s := broker(t)
	gone := make(chan error, 1)
	serve(t, connect(t, s), func(ctx context.Context, ss *Session, _ []byte) {
		_, err := io.Copy(ss.Writer(Out), newNoise(1)) // blocked on credit
		<-ctx.Done()
		gone <- err
	})
	ctx, cancel := context.WithCancel(context.Background())
	c, err := Dial(ctx, connect(t, s), open, node, &skepv1.ExecRequest{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := c.Wait(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := <-gone; !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestClientGivesUpWhileOpening(t *testing.T) {
	s := broker(t)
	gone := make(chan struct{})
	serve(t, connect(t, s), func(ctx context.Context, _ *Session, _ []byte) { <-ctx.Done(); close(gone) })
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := Dial(ctx, connect(t, s), open, node, &skepv1.ExecRequest{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	<-gone
}

// The client's machine dies: nothing says so but the silence.
func TestClientVanishes(t *testing.T) {
	s := broker(t)
	const timeout = 400 * time.Millisecond
	gone := make(chan error, 1)
	serve(t, connect(t, s), func(ctx context.Context, ss *Session, _ []byte) {
		_, err := io.Copy(io.Discard, ss.Reader(In))
		<-ctx.Done()
		gone <- err
	}, WithTimeout(timeout))
	nc := connect(t, s)
	c := dial(t, nc, WithTimeout(timeout))
	nc.Close()
	if err := <-gone; !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}
	if _, err := c.Wait(); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Fatal(err)
	}
}

func TestNodeVanishes(t *testing.T) {
	s := broker(t)
	const timeout = 400 * time.Millisecond
	nn := connect(t, s)
	serve(t, nn, func(ctx context.Context, ss *Session, _ []byte) { fmt.Fprint(ss.Writer(Out), "hello"); <-ctx.Done() }, WithTimeout(timeout))
	c := dial(t, connect(t, s), WithTimeout(timeout))
	hello := make([]byte, 5)
	if _, err := io.ReadFull(c.Reader(Out), hello); err != nil || string(hello) != "hello" { // it has said so before it goes
		t.Fatalf("%q %v", hello, err)
	}
	nn.Close()
	if b, err := io.ReadAll(c.Reader(Out)); len(b) != 0 || !errors.Is(err, ErrGone) || fault.Of(err) != fault.CodeUnavailable {
		t.Fatalf("%q %v", b, err)
	}
}

func TestIdleStreamStaysOpen(t *testing.T) {
	s := broker(t)
	const timeout = 300 * time.Millisecond
	serve(t, connect(t, s), func(_ context.Context, ss *Session, _ []byte) {
		_, err := io.Copy(ss.Writer(Out), ss.Reader(In))
		_ = ss.Exit(0, err)
	}, WithTimeout(timeout))
	c := dial(t, connect(t, s), WithTimeout(timeout))
	time.Sleep(4 * timeout) // the idleness is what is tested
	fmt.Fprint(c.Writer(In), "still here")
	_ = c.Writer(In).Close()
	if b, err := io.ReadAll(c.Reader(Out)); err != nil || string(b) != "still here" {
		t.Fatalf("%q %v", b, err)
	}
}

func TestServerCloseEndsSessions(t *testing.T) {
	s := broker(t)
	v := serve(t, connect(t, s), func(ctx context.Context, ss *Session, _ []byte) { _ = ss.Accept(); <-ctx.Done() })
	c := dial(t, connect(t, s))
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(); !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}
}

// The broker goes away in the middle: the streams end with an error or come through whole, never with a hole.
func TestDisconnectNeverLeavesAHole(t *testing.T) {
	const size, timeout = 64 << 20, 2 * time.Second
	s := broker(t)
	nn, nc := connect(t, s), connect(t, s)
	serve(t, nn, func(_ context.Context, ss *Session, _ []byte) {
		if err := send(ss.Writer(Out), 3, size); err == nil {
			_ = ss.Exit(0, nil)
		}
	}, WithTimeout(timeout))
	c := dial(t, nc, WithTimeout(timeout))
	go func() {
		for range 3 {
			time.Sleep(30 * time.Millisecond)
			if id, err := nn.GetClientID(); err == nil {
				_ = s.DisconnectClientByID(id)
			}
		}
	}()
	ref := newNoise(3)
	buf, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for got := 0; ; {
		n, err := c.Reader(Out).Read(buf)
		_, _ = io.ReadFull(ref, want[:n])
		if !bytes.Equal(buf[:n], want[:n]) {
			t.Fatalf("wrong bytes after %d", got)
		}
		got += n
		if err == io.EOF && got != size {
			t.Fatalf("EOF after %d of %d", got, size)
		}
		if err != nil {
			t.Logf("ended after %d bytes: %v", got, err)
			return
		}
	}
}

// A peer that breaks the rules is cut off.
func TestRuleBreakers(t *testing.T) {
	for name, msgs := range map[string][][]byte{
		"gap":      {mk(0, 10), mk(11, 10)},
		"repeated": {mk(0, 10), mk(0, 10)},
		"short":    {{1, 2}},
		"greedy": func() (l [][]byte) {
			for i := range 12 {
				l = append(l, mk(uint64(i*MaxFrame), MaxFrame))
			}
			return l
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			s := broker(t)
			why := make(chan error, 1)
			serve(t, connect(t, s), func(ctx context.Context, ss *Session, _ []byte) {
				_ = ss.Accept()
				_, err := ss.Wait()
				why <- err
			})
			nc := connect(t, s)
			c := dial(t, nc)
			for _, m := range msgs {
				if err := nc.Publish(subject.IO(node, c.ID(), In), m); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-why; !errors.Is(err, ErrBroken) {
				t.Fatal(err)
			}
			if _, err := c.Wait(); !errors.Is(err, ErrGone) {
				t.Fatal(err)
			}
		})
	}
}

func mk(n uint64, size int) []byte {
	return append(binary.BigEndian.AppendUint64(nil, n), make([]byte, size)...)
}

func TestSessionIDsCannotBeSubjects(t *testing.T) {
	s := broker(t)
	serve(t, connect(t, s), func(_ context.Context, ss *Session, _ []byte) { _ = ss.Exit(0, nil) })
	nc := connect(t, s)
	for _, sid := range []string{"*", ">", "a.b", "", id.New() + "x"} {
		m := nats.NewMsg(open)
		m.Header.Set(HeaderSession, sid)
		r, err := nc.RequestMsg(m, 10*time.Second)
		if err != nil || r.Header.Get("Nats-Service-Error-Code") != string(fault.CodeInvalid) {
			t.Fatalf("%q: %v %v", sid, r, err)
		}
	}
}

// The last frames of a window are lost: nothing follows that could show the gap, but the pings tell.
func TestLostTailIsNoticed(t *testing.T) {
	s := broker(t)
	const timeout = 400 * time.Millisecond
	serve(t, connect(t, s), func(ctx context.Context, ss *Session, _ []byte) {
		ss.out[Out].offset.Add(100) // as if 100 bytes had been sent and lost
		_ = ss.Accept()
		<-ctx.Done()
	}, WithTimeout(timeout))
	c := dial(t, connect(t, s), WithTimeout(timeout))
	if _, err := io.ReadAll(c.Reader(Out)); !errors.Is(err, ErrBroken) {
		t.Fatal(err)
	}
}
