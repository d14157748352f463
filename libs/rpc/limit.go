package rpc

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What one node may ask of one service. An agent reports at most ten times a second and asks for revisions in pages;
// beyond this it is broken or means harm, and must not cost the others their answers.
const (
	nodeRate     = 100      // requests a second, of 32 KiB each
	nodeBurst    = 400      // what a node that starts may ask at once
	nodeUnit     = 32 << 10 // bytes that count as a request more
	nodeInFlight = 16       // in work at once: a slow store must not fill all slots with one node's requests
	nodeWaiting  = 256      // that wait for the node's own turn
	nodesKept    = 16384    // buckets; beyond it those that are full again go
)

// nodeLimits holds a bucket for each node that asks.
type nodeLimits struct {
	mu    sync.Mutex
	nodes map[string]*nodeLimit
}

type nodeLimit struct {
	requests *rate.Limiter
	answers  *rate.Limiter // refusals: a flood must not be answered by one
	present  int           // requests that wait or are in work
	turns    chan struct{} // held by those in work
}

// begin takes a request of size bytes from a node, before anything of it is read. Refused (nil), it says whether the node is
// to be told. Who is taken waits for a turn, and ends.
func (l *nodeLimits) begin(node string, size int, now time.Time) (n *nodeLimit, tell bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n = l.nodes[node]
	if n == nil {
		if len(l.nodes) >= nodesKept {
			l.forget(now)
		}
		if l.nodes == nil {
			l.nodes = map[string]*nodeLimit{}
		}
		n = &nodeLimit{requests: rate.NewLimiter(nodeRate, nodeBurst), answers: rate.NewLimiter(2, 10), turns: make(chan struct{}, nodeInFlight)}
		l.nodes[node] = n
	}
	if n.present >= nodeInFlight+nodeWaiting || !n.requests.AllowN(now, 1+size/nodeUnit) {
		return nil, n.answers.AllowN(now, 1)
	}
	n.present++
	return n, false
}

// turn waits until fewer than nodeInFlight requests of the node are in work; false: ctx ended first.
func (n *nodeLimit) turn(ctx context.Context) bool {
	select {
	case n.turns <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// end says that a request that had its turn is answered.
func (l *nodeLimits) end(n *nodeLimit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n.present--
	select {
	case <-n.turns:
	default: // the server closes
	}
}

func (l *nodeLimits) forget(now time.Time) {
	for id, n := range l.nodes {
		if n.present == 0 && n.requests.TokensAt(now) >= nodeBurst {
			delete(l.nodes, id)
		}
	}
}
