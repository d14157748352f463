package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
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
	"skep.dev/services/skep/cli/render"
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

// top has a screen of its own that fits, counts what does not, ends by q, and leaves the terminal as it was.
func TestTopOnATerminal(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	for i := range 40 {
		c.tasks = append(c.tasks, webTask("t"+strings.Repeat("a", i+1), 1, pending))
	}
	for _, end := range []string{"q", "Q", "Ctrl-C", "no terminal to type at"} {
		t.Run(end, func(t *testing.T) {
			x := newTerminal(t)
			if err := pty.Setsize(x.tty, &pty.Winsize{Rows: 20, Cols: 100}); err != nil {
				t.Fatal(err)
			}
			before := x.mode(t)
			env := c.env(&safeBuffer{}, &safeBuffer{})
			env.Out = x.tty
			help := "Ctrl-C: quit · looks every 200ms"
			if end != "no terminal to type at" {
				env.In, help = x.tty, "q: quit · looks every 200ms"
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan int, 1)
			go func() { done <- Main(ctx, env, []string{"top", "--interval", "200ms"}) }()
			x.await(t, "\x1b[?1049h\x1b[?25l\x1b[H")
			x.await(t, help)
			x.await(t, "\x1b[J\x1b[H") // the second look
			if len(end) == 1 {
				if _, err := x.master.WriteString("x\n" + end); err != nil { // other keys do nothing
					t.Fatal(err)
				}
			} else {
				cancel()
			}
			select {
			case code := <-done:
				if code != 0 {
					t.Errorf("status %d", code)
				}
			case <-time.After(time.Minute):
				t.Fatal("it does not end")
			}
			x.await(t, "\x1b[?25h\x1b[?1049l")
			if x.mode(t) != before {
				t.Error("the terminal was left in another mode")
			}
			_, first, _ := strings.Cut(x.out.String(), "\x1b[H")
			first, _, _ = strings.Cut(first, "\x1b[J")
			if n := strings.Count(first, "\n"); n != 19 || !regexp.MustCompile(`… 3\d more waiting tasks`).MatchString(first) {
				t.Errorf("%d lines on a screen of 20:\n%s", n+1, first)
			}
		})
	}
}

// Whatever the height, nothing is left out without being counted, and no section takes another's place.
func TestSectionsOfAScreen(t *testing.T) {
	table := func(n int) *render.Table {
		x := &render.Table{Columns: []render.Column{{Field: "Name", Header: "NAME"}}}
		for i := range n {
			x.Rows = append(x.Rows, render.Row{"Name": fmt.Sprintf("row-%d", i)})
		}
		return x
	}
	for _, rows := range [][]int{{3, 2, 0}, {200, 3, 4}, {3, 100, 0}, {100, 100, 100}, {0, 0, 50}, {1, 1, 1}} {
		for height := 0; height < 40; height++ {
			var b bytes.Buffer
			b.WriteString("title\n\n")
			var sections []section
			for i, n := range rows {
				sections = append(sections, section{fmt.Sprintf("things-%d", i), table(n)})
			}
			printSections(&b, sections, height)
			text := b.String()
			lines := strings.Count(text, "\n")
			if height > 2 && lines > height {
				t.Errorf("%v in %d lines: %d\n%s", rows, height, lines, text)
			}
			if height > 0 && height < 5 {
				continue // not a line for each
			}
			want, shown := 0, strings.Count(text, "row-")
			for i, n := range rows {
				want += n
				if m := regexp.MustCompile(fmt.Sprintf(`… (\d+) more things-%d`, i)).FindStringSubmatch(text); m != nil {
					more, err := strconv.Atoi(m[1])
					if err != nil {
						t.Fatal(err)
					}
					shown += more
				}
			}
			if shown != want {
				t.Errorf("%v in %d lines: %d of %d shown or counted\n%s", rows, height, shown, want, text)
			}
			if whole := rows[0]+rows[1]+rows[2]+8 <= height; (whole || height == 0) && strings.Contains(text, "more") {
				t.Errorf("%v in %d lines: there was room\n%s", rows, height, text)
			}
			if height >= 30 && rows[0] == 200 && !regexp.MustCompile(`… 1[78]\d more`).MatchString(text) {
				t.Errorf("%v in %d lines:\n%s", rows, height, text)
			}
		}
	}
}
