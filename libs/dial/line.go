package dial

import (
	"net"
	"sync/atomic"
	"time"
)

// line is a TCP connection that knows how it stands with the far end. The next Dial asks it: nats.go tells why it left a
// connection too late, and on another goroutine.
type line struct {
	net.Conn
	addr   string
	at     atomic.Int64 // when something was heard last, unix ns
	broken atomic.Bool  // the far end closed it, or it failed
	closed atomic.Bool  // we closed it
}

func (l *line) heard() { l.at.Store(time.Now().UnixNano()) }

// Read implements net.Conn.
func (l *line) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if n > 0 {
		l.heard()
	}
	if err != nil && !l.closed.Load() {
		l.broken.Store(true)
	}
	return n, err
}

// Close implements net.Conn.
func (l *line) Close() error {
	l.closed.Store(true)
	return l.Conn.Close()
}

// lost reports whether the connection ended because of the far end, rather than because we wanted another one.
func (l *line) lost(now time.Time) bool {
	return l.broken.Load() || now.UnixNano()-l.at.Load() > int64(silence)
}
