package nstest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// Serve says who it is to everybody who connects to port 80 of addr, and echoes what it is sent.
func (n *NS) Serve(t testing.TB, addr netip.Addr, says string) {
	t.Helper()
	var l net.Listener
	n.In(t, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 80).String())
		return err
	})
	Accept(t, l, func(c net.Conn) {
		_, _ = io.WriteString(c, says)
		_, _ = io.Copy(c, struct{ io.Reader }{c})
	})
}

// Accept gives each of l's connections to serve until the test ends, and waits for them then.
func Accept(t testing.TB, l net.Listener, serve func(net.Conn)) {
	ctx, end := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	t.Cleanup(func() { end(); loops.Wait() })
	context.AfterFunc(ctx, func() { _ = l.Close() })
	loops.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			loops.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				serve(c)
				_ = c.Close()
			})
		}
	})
}

func (n *NS) dial(addr netip.Addr, wait time.Duration) (c net.Conn, err error) {
	err = nsfs.Inside(n.FD, func() error {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(addr, 80).String(), wait)
		return err
	})
	return c, err
}

// Ask is who answers at port 80 of addr.
func (n *NS) Ask(addr netip.Addr, wait time.Duration) (string, error) {
	c, err := n.dial(addr, wait)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 64)
	k, err := c.Read(b)
	return string(b[:k]), err
}

// Hears ends the test unless want answers at port 80 of addr.
func (n *NS) Hears(t testing.TB, addr netip.Addr, want string) {
	t.Helper()
	if got, err := n.Ask(addr, 5*time.Second); err != nil || got != want {
		t.Fatalf("%s hears %q from %s, want %q: %v", n.Path, got, addr, want, err)
	}
}

// Stream is one TCP connection that goes on.
type Stream struct {
	t testing.TB
	c net.Conn
}

// Stream connects to what Serve serves as says.
func (n *NS) Stream(t testing.TB, addr netip.Addr, says string) *Stream {
	t.Helper()
	c, err := n.dial(addr, 5*time.Second)
	Must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = io.ReadFull(c, make([]byte, len(says)))
	Must(t, err)
	return &Stream{t, c}
}

// Echo sends size bytes of word, and ends the test unless they come back.
func (s *Stream) Echo(word string, size int) {
	s.t.Helper()
	_ = s.c.SetDeadline(time.Now().Add(20 * time.Second))
	out := bytes.Repeat([]byte(word), size/len(word)+1)
	in := make([]byte, len(out))
	sent := make(chan error, 1)
	go func() { _, err := s.c.Write(out); sent <- err }()
	_, err := io.ReadFull(s.c, in)
	Must(s.t, errors.Join(err, <-sent))
	if !bytes.Equal(in, out) {
		s.t.Fatal("the stream is damaged")
	}
}

// PingPong sends packets to addr, in the namespace b, and back until stop, which says how many it sent; lost counts
// those that did not come back.
func PingPong(t testing.TB, a, b *NS, addr netip.Addr) (stop func() int64, lost *atomic.Int64) {
	t.Helper()
	var in, out *net.UDPConn
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 7))
	b.In(t, func() (err error) { in, err = net.ListenUDP("udp", to); return err })
	a.In(t, func() (err error) { out, err = net.DialUDP("udp", nil, to); return err })
	go func() {
		p := make([]byte, 8)
		for {
			n, from, err := in.ReadFrom(p)
			if err != nil {
				return
			}
			_, _ = in.WriteTo(p[:n], from)
		}
	}()
	lost = new(atomic.Int64)
	var rounds atomic.Int64
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		p := make([]byte, 8)
		for i := byte(0); ; i++ {
			select {
			case <-end:
				return
			default:
			}
			rounds.Add(1)
			_ = out.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := out.Write([]byte{i}); err != nil {
				lost.Add(1)
				continue
			}
			if n, err := out.Read(p); err != nil || n != 1 || p[0] != i {
				lost.Add(1)
			}
		}
	}()
	return func() int64 {
		close(end)
		<-done
		_ = in.Close()
		_ = out.Close()
		return rounds.Load()
	}, lost
}
