package state

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// Events one node causes: a node that starts thousands of tasks tells a few dozen a report and the rest together.
	// With eventText, one node alone needs two days to push out what is kept of all.
	nodeEventsPerSec = 2
	nodeEventsAtOnce = 500
	eventText        = 256 // bytes of a task's message and error in an event
	// Descriptions of one node that say something new; each is a write and an event.
	describesPerSec = 1
	describesAtOnce = 20

	maxLimiters = 16384 // more nodes than a cluster has: start afresh
)

// perNode is a token bucket for each node.
type perNode struct {
	rate  rate.Limit
	burst int

	mu   sync.Mutex
	node map[string]*rate.Limiter
}

// allow takes one token of the node's.
func (l *perNode) allow(node string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.node[node]
	if b == nil {
		if l.node == nil || len(l.node) >= maxLimiters {
			l.node = map[string]*rate.Limiter{}
		}
		b = rate.NewLimiter(l.rate, l.burst)
		l.node[node] = b
	}
	return b.AllowN(now, 1)
}
