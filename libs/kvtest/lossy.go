package kvtest

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// Lossy is a way to a broker on which answers can be lost: what is asked arrives, what is answered does not.
type Lossy struct {
	// URL is where it begins.
	URL string

	mu     sync.Mutex
	loses  bool
	closed bool
	conns  []net.Conn
}

// NewLossy makes one to the broker at a URL.
func NewLossy(t testing.TB, broker string) *Lossy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	y := &Lossy{URL: "nats://" + l.Addr().String()}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		y.mu.Lock()
		y.closed = true
		y.mu.Unlock()
		y.Cut()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", strings.TrimPrefix(broker, "nats://"))
			if err != nil {
				_ = c.Close()
				continue
			}
			if !y.took(c, b) {
				return
			}
			wg.Go(func() { _, _ = io.Copy(b, c); _ = b.Close() })
			wg.Go(func() { y.answers(c, b); _ = c.Close() })
		}
	})
	return y
}

// took keeps the two ends of a connection, to be cut.
func (y *Lossy) took(ends ...net.Conn) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.closed {
		for _, c := range ends {
			_ = c.Close()
		}
		return false
	}
	y.conns = append(y.conns, ends...)
	return true
}

func (y *Lossy) answers(to, from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		y.mu.Lock()
		loses := y.loses
		y.mu.Unlock()
		if loses {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// Lose begins to lose answers, or ends it.
func (y *Lossy) Lose(on bool) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.loses = on
}

// Cut breaks the connections there are.
func (y *Lossy) Cut() {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, c := range y.conns {
		_ = c.Close()
	}
	y.conns = nil
}
