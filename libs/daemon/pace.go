package daemon

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// maxPause is how long a node that the managers refuse waits between two attempts. One that joined a moment ago may be
// refused until every manager knows it, so the first pauses are short; one that was removed goes on for as long as it runs.
const maxPause = 30 * time.Second

// pace slows down a connection that is refused, and no other: a manager that is away is tried as often as ever.
type pace struct {
	nc      atomic.Pointer[nats.Conn]
	refused int // in a row
}

// option comes last: it keeps to the waits the options before it set.
func (p *pace) option(o *nats.Options) error {
	o.CustomReconnectDelayCB = func(int) time.Duration {
		var err error
		if nc := p.nc.Load(); nc != nil {
			err = nc.LastError()
		}
		return p.pause(err, o.ReconnectWait, o.ReconnectJitterTLS)
	}
	return nil
}

// pause is the wait before the next attempt, after one that failed with err.
func (p *pace) pause(err error, wait, jitter time.Duration) time.Duration {
	if !errors.Is(err, nats.ErrAuthorization) {
		p.refused = 0
		return wait + rand.N(max(jitter, 1))
	}
	p.refused = min(p.refused+1, 16)
	wait = min(wait<<(p.refused-1), maxPause)
	return wait/2 + rand.N(wait)
}
