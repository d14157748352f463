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
	// manyPaces is from how many on those are forgotten that are rested.
	manyPaces = 10_000
)

// paces bounds how often a node changes its part of a network, other than by what its tasks need.
type paces struct {
	mu  sync.Mutex
	all map[string]*rate.Limiter // by key of the record
}

func newPaces() *paces { return &paces{all: map[string]*rate.Limiter{}} }

// allow takes one change of a record; false: there were too many.
func (p *paces) allow(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.all[key]
	if l == nil {
		if len(p.all) >= manyPaces {
			maps.DeleteFunc(p.all, func(_ string, l *rate.Limiter) bool { return l.Tokens() >= paceBurst })
		}
		l = rate.NewLimiter(rate.Every(paceEvery), paceBurst)
		p.all[key] = l
	}
	return l.Allow()
}
