package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/subject"
)

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
