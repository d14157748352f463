// Package limit bounds how often something is done for each of many: nodes, keys.
package limit

import (
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// kept is from how many keys on those are forgotten that may do all of it again: more than a cluster has nodes.
const kept = 16384

// PerKey is a token bucket for each key. It is safe for concurrent use.
type PerKey struct {
	rate  rate.Limit
	burst int

	mu  sync.Mutex
	all map[string]*rate.Limiter
}

// New lets each key do something burst times at once, then so often a second.
func New(perSecond rate.Limit, burst int) *PerKey {
	return &PerKey{rate: perSecond, burst: burst, all: map[string]*rate.Limiter{}}
}

// Allow takes one time of a key's; false: there were too many.
func (p *PerKey) Allow(key string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.all[key]
	if l == nil {
		if len(p.all) >= kept {
			maps.DeleteFunc(p.all, func(_ string, l *rate.Limiter) bool { return l.TokensAt(now) >= float64(p.burst) })
		}
		l = rate.NewLimiter(p.rate, p.burst)
		p.all[key] = l
	}
	return l.AllowN(now, 1)
}

// Spent reports whether Allow would say no.
func (p *PerKey) Spent(key string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.all[key]
	return l != nil && l.TokensAt(now) < 1
}
