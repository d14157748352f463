package node

import (
	"errors"
	"io"
	"net"

	"go.uber.org/zap"
)

// relay joins local root to the broker: every connection on the socket becomes an in-process connection, so the
// CLI on a manager needs no certificate. The socket's mode is the whole authentication.
type relay struct {
	l    net.Listener
	dial func() (net.Conn, error)
	log  *zap.Logger
}

func newRelay(path string, dial func() (net.Conn, error), log *zap.Logger) (*relay, error) {
	l, err := listenUnix(path)
	if err != nil {
		return nil, err
	}
	r := &relay{l: l, dial: dial, log: log}
	go r.run()
	return r, nil
}

func (r *relay) run() {
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

func (r *relay) pipe(c net.Conn) {
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

func (r *relay) close() { r.l.Close() }
