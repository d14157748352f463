package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Target is where a task is.
type Target struct {
	TaskID    string
	Pid       uint32       // of the container's first process
	Addresses []netip.Addr // its own, tried when nothing listens on its loopback
}

// errNoNetwork: the task's network cannot be entered; it has just ended.
var errNoNetwork = errors.New("the task's network cannot be entered")

var errAgain = errors.New("connected to itself: nothing listens")

// home is the network namespace of the process.
type home struct{ fd int }

func openHome() (*home, error) {
	// Not /proc/self: that is the first thread's, and Go parks the first thread for good, wherever it is, where it would end
	// another that was given up in a foreign namespace.
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the node's own network namespace: %w", err)
	}
	return &home{fd: fd}, nil
}

func (h *home) close() error { return unix.Close(h.fd) }

// network is a task's, entered for the making of a socket and for nothing else.
type network struct {
	home *home
	fd   int // kept open: a pid may be somebody else's later
	err  error
	at   []netip.Addr
}

// enter opens the network namespace of a task. One that is gone makes every probe Unknown.
func (h *home) enter(t Target) *network {
	n := &network{home: h}
	n.fd, n.err = unix.Open(fmt.Sprintf("/proc/%d/ns/net", t.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	// What a program inside would call localhost, then where clients find it.
	n.at = append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, t.Addresses...)
	return n
}

func (n *network) close() {
	if n.err == nil {
		_ = unix.Close(n.fd) // read only
	}
}

// dial connects to a port of the task: on its loopback, and where nothing listens there on its own addresses.
func (n *network) dial(ctx context.Context, port uint32) (net.Conn, error) {
	if n.err != nil {
		return nil, fmt.Errorf("%w: %w", errNoNetwork, n.err)
	}
	var failed error
	for _, a := range n.at {
		c, err := n.dialTo(ctx, net.JoinHostPort(a.String(), strconv.Itoa(int(port))))
		if err == nil {
			return c, nil
		}
		if failed == nil || ctx.Err() != nil {
			failed = err
		}
		if ctx.Err() != nil || errors.Is(err, errNoNetwork) {
			break
		}
	}
	return nil, failed
}

// dialTo makes the socket in the task's namespace; a socket stays in the namespace it was made in, so the thread is back
// home before the connection is.
func (n *network) dialTo(ctx context.Context, addr string) (net.Conn, error) {
	type dialed struct {
		c   net.Conn
		err error
	}
	done := make(chan dialed, 1)
	go func() {
		// A thread that cannot go home is given up with this goroutine: it stays locked.
		runtime.LockOSThread()
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- dialed{nil, fmt.Errorf("%w: %w", errNoNetwork, err)}
			return
		}
		back := false
		goHome := func() error {
			back = true
			if err := unix.Setns(n.home.fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("%w: return to the node's own: %w", errNoNetwork, err)
			}
			runtime.UnlockOSThread()
			return nil
		}
		d := net.Dialer{KeepAlive: -1, Control: func(string, string, syscall.RawConn) error {
			if back {
				// The dialer tries again after a connection to itself, with a socket of the wrong namespace.
				return errAgain
			}
			return goHome()
		}}
		d.SetMultipathTCP(false)
		c, err := d.DialContext(ctx, "tcp", addr)
		if !back {
			err = errors.Join(err, goHome())
		}
		done <- dialed{c, err}
	}()
	r := <-done
	return r.c, r.err
}

// deadline bounds a connection by ctx; the caller calls stop before it closes the connection.
func deadline(ctx context.Context, c net.Conn) (stop func() bool) {
	if t, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(t) // a connection that is closed fails at its next use
	}
	return context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
}
