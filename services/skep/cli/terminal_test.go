package cli

import (
	"bufio"
	"context"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
)

// terminal is a pty and what was written to it.
type terminal struct {
	master, tty *os.File
	out         safeBuffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{master: master, tty: tty}
	t.Cleanup(func() {
		_, _ = master.WriteString("\n") // whoever still reads the terminal, as a command does until it ends, is let go
		_ = tty.Close()
		_ = master.Close()
	})
	go func() { _, _ = io.Copy(&x.out, master) }()
	return x
}

func (x *terminal) await(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !strings.Contains(x.out.String(), text); {
		if time.Now().After(end) {
			t.Fatalf("the terminal never showed %q: %q", text, x.out.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (x *terminal) mode(t *testing.T) unix.Termios {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(x.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *m
}

// TestExecOnATerminal: raw while the command runs, its size passed on as it changes, and as before afterwards.
func TestExecOnATerminal(t *testing.T) {
	c := newCluster(t)
	c.tasks = []*skepv1.Task{webTask("t1aaaaaaaaaaaaaaaaaaaaaaa", 1, running)}
	x := newTerminal(t)
	if err := pty.Setsize(x.tty, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	before := x.mode(t)
	asked, resized := make(chan *skepv1.ExecRequest, 1), make(chan *skepv1.Resize, 8)
	c.onNode(api.ExecOpen.At(nodeID).Subject(), func(_ context.Context, s *stream.Session, body []byte) {
		r := &skepv1.ExecRequest{}
		if err := proto.Unmarshal(body, r); err != nil {
			t.Error(err)
		}
		asked <- r
		go func() {
			for m := range s.Control() {
				if z := m.GetResize(); z != nil {
					resized <- z
				}
			}
		}()
		out := s.Writer(stream.Out)
		_, _ = io.WriteString(out, "prompt> ")
		key, _ := bufio.NewReader(s.Reader(stream.In)).ReadByte()
		_, _ = out.Write([]byte{'<', key + '@', '>'})
		_ = out.Close()
		_ = s.Exit(5, nil)
	})
	var errs safeBuffer
	env := c.env(&safeBuffer{}, &errs)
	env.In, env.Out = x.tty, x.tty
	done := make(chan int, 1)
	go func() { done <- Main(t.Context(), env, []string{"exec", "-it", "web.1", "sh"}) }()
	x.await(t, "prompt> ")
	if r := <-asked; r.Width != 100 || r.Height != 30 || !r.Tty {
		t.Errorf("asked for %v", r)
	}
	if m := x.mode(t); m.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		t.Errorf("the terminal is not raw: %x", m.Lflag)
	}
	if err := pty.Setsize(x.tty, &pty.Winsize{Rows: 41, Cols: 123}); err != nil {
		t.Fatal(err)
	}
	// This terminal controls no process, so nobody sends the signal.
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	select {
	case z := <-resized:
		if z.Width != 123 || z.Height != 41 {
			t.Errorf("resized to %v", z)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the new size never arrived")
	}
	if _, err := x.master.Write([]byte{3}); err != nil { // Ctrl-C is a byte like any other
		t.Fatal(err)
	}
	x.await(t, "<C>")
	if code := <-done; code != 5 {
		t.Errorf("status %d: %s", code, errs.String())
	}
	if m := x.mode(t); m != before {
		t.Errorf("the terminal was left in another mode: %x, was %x", m.Lflag, before.Lflag)
	}
}

// TestTopOnATerminal: a screen of its own that fits, and the old one back afterwards.
func TestTopOnATerminal(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	for i := range 40 {
		c.tasks = append(c.tasks, webTask("t"+strings.Repeat("a", i+1), 1, pending))
	}
	x := newTerminal(t)
	if err := pty.Setsize(x.tty, &pty.Winsize{Rows: 20, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	env := c.env(&safeBuffer{}, &safeBuffer{})
	env.Out = x.tty
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan int, 1)
	go func() { done <- Main(ctx, env, []string{"top", "--interval", "200ms"}) }()
	x.await(t, "\x1b[?1049h\x1b[?25l\x1b[H")
	x.await(t, "\x1b[J\x1b[H") // the second look
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("status %d", code)
	}
	x.await(t, "\x1b[?25h\x1b[?1049l")
	_, first, _ := strings.Cut(x.out.String(), "\x1b[H")
	first, _, _ = strings.Cut(first, "\x1b[J")
	if n := strings.Count(first, "\n"); n > 19 || !strings.Contains(first, "more") {
		t.Errorf("%d lines on a screen of 20:\n%s", n, first)
	}
}
