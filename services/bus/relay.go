package bus

import (
	"errors"
	"io"
	"net"

	"go.uber.org/zap"

	"skep.dev/libs/member"
)

// Relay joins local root to the broker: every connection on the socket becomes an in-process connection, so the
// CLI on a manager needs no certificate. The socket's mode is the whole authentication.
type Relay struct {
	l    net.Listener
	dial func() (net.Conn, error)
	log  *zap.Logger
}

// NewRelay offers the broker on the socket at path.
func NewRelay(path string, b *Bus, log *zap.Logger) (*Relay, error) {
	l, err := member.ListenUnix(path)
	if err != nil {
		return nil, err
	}
	r := &Relay{l: l, dial: b.InProcessConn, log: log}
	go r.run()
	return r, nil
}

func (r *Relay) run() {
	for {
		c, err := r.l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				r.log.Warn("local socket", zap.Error(err))
			}
			return
		}
		go r.pipe(c)
	}
}

func (r *Relay) pipe(c net.Conn) {
	defer c.Close()
	b, err := r.dial()
	if err != nil {
		r.log.Warn("local connection refused", zap.Error(err))
		return
	}
	defer b.Close()
	done := make(chan struct{}, 2)
	half := func(dst, src net.Conn) {
		io.Copy(dst, src) //nolint:errcheck // either end closing is how a session ends
		done <- struct{}{}
	}
	go half(b, c)
	go half(c, b)
	<-done
}

// Close takes the socket away; sessions end with the broker.
func (r *Relay) Close() error { return r.l.Close() }
