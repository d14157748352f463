package nstest

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Refused connects as fast as it can and counts how many connections were refused though there was somebody to answer.
type Refused struct {
	Made, Refused, Failed atomic.Int64
	// outages is odd while nobody is there to answer.
	outages atomic.Int64
	wg      sync.WaitGroup
	stop    context.CancelFunc
	ctx     context.Context
}

// Probe begins to connect to each of the targets, "tcp4" or "tcp6" by address, with as many dialers each. in runs a
// function in the clients' namespace. Stop ends it; so does the end of the test.
func Probe(t testing.TB, in func(func() error) error, dialers int, targets map[string]string) *Refused {
	t.Helper()
	p := &Refused{}
	p.ctx, p.stop = context.WithCancel(context.Background())
	for network, to := range targets {
		for range dialers {
			p.wg.Go(func() { _ = in(func() error { p.dial(network, to); return nil }) })
		}
	}
	t.Cleanup(p.Stop)
	return p
}

func (p *Refused) dial(network, to string) {
	d := net.Dialer{Timeout: 15 * time.Second} // a packet that is dropped is sent again after one second, two, four
	for p.ctx.Err() == nil {
		before := p.outages.Load()
		c, err := d.DialContext(p.ctx, network, to)
		switch {
		case err == nil:
			p.Made.Add(1)
			if c, ok := c.(*net.TCPConn); ok {
				_ = c.SetLinger(0) // no TIME_WAIT: ports would run out
			}
			_ = c.Close()
		case p.ctx.Err() != nil || before%2 == 1 || p.outages.Load() != before:
		case errors.Is(err, syscall.ECONNREFUSED):
			p.Refused.Add(1)
		default:
			p.Failed.Add(1)
		}
	}
}

// Outage runs from the change that takes the last backend away to the one that brings one back.
func (p *Refused) Outage(during func()) {
	p.outages.Add(1)
	during()
	p.outages.Add(1)
}

// Stop ends the probe.
func (p *Refused) Stop() {
	p.stop()
	p.wg.Wait()
}
