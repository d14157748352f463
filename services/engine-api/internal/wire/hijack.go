package wire

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Hijacked is a request's connection after HTTP: bytes both ways.
type Hijacked struct {
	net.Conn
	in   *bufio.Reader
	once sync.Once
}

// Hijack answers 101, or 200 to clients that did not ask for an upgrade, and takes the connection over. The caller closes it. After
// it no error can be answered.
func Hijack(w http.ResponseWriter, r *Request, contentType string) (*Hijacked, error) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take the connection over: %w", err)
	}
	if begun, ok := w.(*written); ok {
		begun.begun = true
	}
	_ = c.SetDeadline(time.Time{}) // the stream may last for hours
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n"
	if r.Header.Get("Upgrade") != "" {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
	}
	h := &Hijacked{Conn: c, in: rw.Reader}
	if _, err := io.WriteString(c, head+"Api-Version: "+Newest.String()+"\r\nOstype: linux\r\n\r\n"); err != nil {
		_ = c.Close() // the client is gone
		return nil, err
	}
	return h, nil
}

// Read reads what the client sent behind its request first.
func (h *Hijacked) Read(p []byte) (int, error) { return h.in.Read(p) }

// Close may be called more than once.
func (h *Hijacked) Close() (err error) {
	h.once.Do(func() { err = h.Conn.Close() })
	return err
}

// goneEvery is how often it is looked whether a client that sends nothing more still listens.
const goneEvery = 500 * time.Millisecond

// Gone waits until the client has closed its connection altogether, or ctx ends. One that has only finished sending is not gone:
// reading tells the two apart as little as it does on a pipe, so the kernel is asked.
func (h *Hijacked) Gone(ctx context.Context) {
	c := h.Conn
	if held, ok := c.(*heldConn); ok {
		c = held.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		<-ctx.Done()
		return
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return
	}
	every := time.NewTicker(goneEvery)
	defer every.Stop()
	for {
		gone := false
		err := raw.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd)}} // of both ways being closed poll tells unasked
			n, err := unix.Poll(p, 0)
			gone = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
		})
		if gone || err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}
