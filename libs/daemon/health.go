package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/member"
)

// Health is asked by whoever watches the process, such as a container engine: without a shell, and without a port that
// several instances on a host would have to share. The program answers on a socket of its own (-health-socket) with one line,
// and the same program with -health asks there and says how it went by its exit status.
//
// Who may ask: who may open the socket, which is root and the user that the program runs as. An asker learns one line, and holds
// up nothing but other askers, for answerWithin at most.
const (
	answerWithin = 2 * time.Second
	askWithin    = 3 * time.Second
	well         = "ok"
	maxAnswer    = 4 << 10
)

// Healthy is a service that knows more about its health than that it is connected.
type Healthy interface {
	Healthy(ctx context.Context) error
}

// condition is how this process is, as far as its start has come.
type condition struct {
	check atomic.Pointer[func(context.Context) error]
}

func (c *condition) is(check func(context.Context) error) { c.check.Store(&check) }

func (c *condition) ask(ctx context.Context) error {
	check := c.check.Load()
	if check == nil {
		return errors.New("it is starting")
	}
	return (*check)(ctx)
}

// serving is the condition of a service that runs.
func serving(nc *nats.Conn, svc Service) func(context.Context) error {
	return func(ctx context.Context) error {
		if nc != nil {
			if err := nc.FlushWithContext(ctx); err != nil {
				return fmt.Errorf("the bus does not answer: %w", err)
			}
		}
		if h, ok := svc.(Healthy); ok {
			return h.Healthy(ctx)
		}
		return nil
	}
}

// serve answers on the socket until the returned function is called.
func (c *condition) serve(socket string) (stop func(), err error) {
	l, err := member.ListenUnix(socket)
	if err != nil {
		return nil, fmt.Errorf("answer how this program is: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(100 * time.Millisecond) // no descriptor is free
				continue
			}
			c.answer(conn)
		}
	}()
	return func() { _ = l.Close(); <-done }, nil
}

func (c *condition) answer(conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	line := well
	if err := c.ask(ctx); err != nil {
		line = strings.ReplaceAll(err.Error(), "\n", " ")
	}
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second)) // one who asks and does not listen
	_, _ = io.WriteString(conn, line+"\n")
}

// askHealth asks the program that answers on the socket.
func askHealth(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("nobody answers: %w", err)
	}
	defer conn.Close()
	until, _ := ctx.Deadline()
	_ = conn.SetDeadline(until)
	b, err := io.ReadAll(io.LimitReader(conn, maxAnswer))
	switch line := strings.TrimSpace(string(b)); {
	case line == well:
		return nil
	case line != "":
		return errors.New(line)
	case err != nil:
		return fmt.Errorf("no answer within %v: %w", askWithin, err)
	}
	return errors.New("it ended before it answered")
}
