package controller

import (
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// A node's part of a network changes by its request when it comes, goes, or renews its key: paceBurst times at once,
	// then once in paceEvery. Each change goes to all nodes of the network, and a new key ends their sessions with it.
	paceEvery = 5 * time.Second
	paceBurst = 4
	// A node's records are written after its reports: reportBurst times at once, then once in reportEvery. Each write goes to
	// every node that follows the network. An honest node reports ten times a second at most, and not for long.
	reportEvery = 50 * time.Millisecond
	reportBurst = 100
	// manyPaces is from how many on those are forgotten that are rested.
	manyPaces = 10_000
)

// paces bounds how often something is done for each key.
type paces struct {
	every time.Duration
	burst int

	mu  sync.Mutex
	all map[string]*rate.Limiter
}

func newPaces(every time.Duration, burst int) *paces {
	return &paces{every: every, burst: burst, all: map[string]*rate.Limiter{}}
}

// allow takes one time; false: there were too many.
func (p *paces) allow(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.all[key]
	if l == nil {
		if len(p.all) >= manyPaces {
			maps.DeleteFunc(p.all, func(_ string, l *rate.Limiter) bool { return l.Tokens() >= float64(p.burst) })
		}
		l = rate.NewLimiter(rate.Every(p.every), p.burst)
		p.all[key] = l
	}
	return l.Allow()
}

// spent reports whether allow would say no.
func (p *paces) spent(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.all[key]
	return l != nil && l.Tokens() < 1
}
