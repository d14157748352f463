package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// address is where tasks find the resolver, inside their own namespace.
var address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 11}), 53)

const (
	// maxQuery bounds what is read of one query; real ones have less than 300 bytes.
	maxQuery = 2048
	// maxConns are the TCP connections of one task.
	maxConns = 64
	// idle is how long a TCP connection may be silent, writing how long a client may take to read an answer.
	idle, writing = 10 * time.Second, 5 * time.Second
	// pause is for an error of a socket that is not closed, such as a shortage of memory.
	pause = 50 * time.Millisecond
)

// task is one task that is served.
type task struct {
	s        *Server
	id       string
	ns       nsfs.ID
	view     atomic.Pointer[view]
	udp      *net.UDPConn
	tcp      *net.TCPListener
	life     context.Context // until it is closed: nothing is asked of a name server after it
	end      context.CancelFunc
	loops    sync.WaitGroup
	forwards atomic.Int32

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// listen opens the sockets in the namespace at path and serves them.
func (t *task) listen(path string) error {
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: false}, Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) { err = prepare(int(fd)) }), err)
	}}
	err := nsfs.In(path, func() error {
		pc, err := lc.ListenPacket(context.Background(), "udp4", address.String())
		if err != nil {
			return explain(err)
		}
		l, err := lc.Listen(context.Background(), "tcp4", address.String())
		if err != nil {
			return errors.Join(explain(err), pc.Close())
		}
		t.udp, t.tcp = pc.(*net.UDPConn), l.(*net.TCPListener)
		return nil
	})
	if err != nil {
		return err
	}
	t.loops.Go(t.serveUDP)
	t.loops.Go(t.serveTCP)
	return nil
}

var errLoopback = errors.New("the loopback device of the task's namespace is down; it has to be up before")

// prepare readies a socket before it gets its address.
func prepare(fd int) error {
	// While the loopback is down a fresh namespace takes any address, but answers then come from another one.
	lo, err := unix.NewIfreq("lo")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo)
	}
	if err != nil {
		return fmt.Errorf("look at the loopback device: %w", err)
	}
	if lo.Uint16()&unix.IFF_UP == 0 {
		return errLoopback
	}
	// Else connections of the time before a restart would keep the address taken for a minute.
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}

func explain(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w (a program of the task's has taken port 53 on all addresses; it should take the task's own addresses only)", err)
	}
	return err
}

func (t *task) close() {
	t.end()
	err := errors.Join(t.udp.Close(), t.tcp.Close())
	t.mu.Lock()
	for c := range t.conns {
		_ = c.Close()
	}
	t.mu.Unlock()
	t.loops.Wait()
	if err != nil {
		t.s.cfg.Log.Warn("close the resolver of a task", zap.String("task", t.id), zap.Error(err))
	}
}

// buffers are for answers while they are written.
var buffers = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

// serveUDP answers what is in the tables right away; what is forwarded gets a goroutine.
func (t *task) serveUDP() {
	in := make([]byte, maxQuery)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(in)
		if err != nil {
			if t.over(err, "read a query") {
				return
			}
			continue
		}
		buf := buffers.Get().(*[]byte)
		out, forward := t.s.answer(t, in[:n], true, *buf)
		if out != nil {
			_, _ = t.udp.WriteToUDPAddrPort(out, from) // a client that is gone asks again, or not
		}
		buffers.Put(buf)
		if forward != nil {
			t.loops.Go(func() {
				if out := forward(); out != nil {
					_, _ = t.udp.WriteToUDPAddrPort(out, from)
				}
			})
		}
	}
}

// over reports whether a socket is closed. After any other error it waits a little.
func (t *task) over(err error, what string) bool {
	if t.life.Err() != nil || errors.Is(err, net.ErrClosed) {
		return true
	}
	t.s.cfg.Log.Warn(what, zap.String("task", t.id), zap.Error(err))
	time.Sleep(pause)
	return false
}

func (t *task) serveTCP() {
	for {
		c, err := t.tcp.Accept()
		if err != nil {
			if t.over(err, "accept a connection for queries") {
				return
			}
			continue
		}
		if !t.track(c) {
			_ = c.Close()
			continue
		}
		t.loops.Go(func() {
			t.serveConn(c)
			t.untrack(c)
		})
	}
}

func (t *task) track(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.life.Err() != nil || len(t.conns) >= maxConns {
		return false
	}
	if t.conns == nil {
		t.conns = map[net.Conn]bool{}
	}
	t.conns[c] = true
	return true
}

func (t *task) untrack(c net.Conn) {
	_ = c.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

// serveConn answers one query after the other until the client closes or is silent for long.
func (t *task) serveConn(c net.Conn) {
	in := make([]byte, maxQuery)
	for {
		_ = c.SetReadDeadline(time.Now().Add(idle))
		n, err := readMessage(c, in)
		if err != nil {
			return
		}
		out, forward := t.s.answer(t, in[:n], false, make([]byte, 4096))
		if forward != nil {
			out = forward()
		}
		_ = c.SetWriteDeadline(time.Now().Add(writing))
		if out == nil || writeMessage(c, out) != nil {
			return
		}
	}
}

// readMessage reads a message as TCP carries it, into b.
func readMessage(r io.Reader, b []byte) (int, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > len(b) {
		return 0, io.ErrShortBuffer
	}
	return io.ReadFull(r, b[:n])
}

func writeMessage(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...))
	return err
}
