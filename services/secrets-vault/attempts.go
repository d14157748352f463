package vault

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	perConnection  = 5  // requests a joiner's connection may make; each lives 30 s at most
	wrongPerSecond = 10 // wrong tokens answered in words, cluster-wide per vault
	wrongBurst     = 50 //
	rememberFor    = 2 * time.Minute
	rememberMost   = 20_000
)

// attempts holds joiners back. Right tokens pass whatever others do: guessing 129 random bits is hopeless, and a limit
// that wrong tokens could use up for right ones would be the better attack. How many connections an address may make
// is the broker's limit.
type attempts struct {
	wrong *rate.Limiter

	mu    sync.Mutex
	conns map[string]*connection
}

type connection struct {
	since time.Time
	count int
}

func newAttempts() *attempts {
	return &attempts{wrong: rate.NewLimiter(wrongPerSecond, wrongBurst), conns: map[string]*connection{}}
}

// connection counts a request of a connection (named by its inbox) and reports whether it may make it.
func (a *attempts) connection(name string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.conns[name]
	if c == nil {
		if len(a.conns) >= rememberMost {
			for k, v := range a.conns {
				if now.Sub(v.since) > rememberFor {
					delete(a.conns, k)
				}
			}
		}
		if len(a.conns) >= rememberMost {
			return false
		}
		c = &connection{since: now}
		a.conns[name] = c
	}
	c.count++
	return c.count <= perConnection
}
