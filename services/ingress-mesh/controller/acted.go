package controller

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// askAll is up to how many nodes are asked one by one whether they have acted on a drain. Beyond it they get settle,
	// some times what they need.
	askAll = 256
	settle = 150 * time.Millisecond
	// actFor bounds the wait for one of them: many times what a busy node needs. One that is found down meanwhile is not
	// waited for any longer, nor one that another drain waited for in vain.
	actFor = 5 * time.Second
	// lookEvery is how often that is looked at.
	lookEvery = 100 * time.Millisecond
	// askAgain is how often a silent node is asked whether it is there again.
	askAgain = 5 * time.Second
	// penance is how long a node that fell silent a second time within forgiveAfter is not waited for, though it answers;
	// it doubles with each time, up to forgiveAfter.
	penance      = time.Minute
	forgiveAfter = time.Hour
)

// acted is which nodes act on drains. A node that does not answer costs the cluster one wait: after that nobody waits
// for it until it answers. Whoever answers and falls silent in turns is waited for less and less often.
type acted struct {
	mu      sync.Mutex
	silent  map[string]*silence
	waits   map[string]*rounds // by the node that drains
	reached map[string]uint64  // by the node that drains: the newest of its records that was waited for
}

// silence is a node that was waited for in vain.
type silence struct {
	now    bool // and has not answered since
	asking bool
	at     time.Time // the last time
	times  int
}

func newActed() *acted {
	return &acted{silent: map[string]*silence{}, waits: map[string]*rounds{}, reached: map[string]uint64{}}
}

// quiet reports whether a node is not waited for.
func (a *acted) quiet(node string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.silent[node]
	return s != nil && (s.now || now.Sub(s.at) < s.penance())
}

func (s *silence) penance() time.Duration {
	if s.times < 2 {
		return 0
	}
	return min(penance<<min(s.times-2, 10), forgiveAfter)
}

// fell notes that a node was waited for in vain; false: it is known already.
func (a *acted) fell(node string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.silent[node]
	if s == nil || !s.now && now.Sub(s.at) > forgiveAfter {
		s = &silence{}
		a.silent[node] = s
	}
	if s.now {
		return false
	}
	s.now, s.at = true, now
	s.times++
	return true
}

// answers notes that a silent node has answered; false: it was not silent.
func (a *acted) answers(node string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.silent[node]
	if s == nil || !s.now {
		return false
	}
	s.now = false
	return true
}

// toAsk are the silent nodes that nobody is asking just now; from here on somebody is. What is remembered of nodes that
// are not in the cluster any more goes.
func (a *acted) toAsk(member func(string) bool, now time.Time) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.silent, func(n string, s *silence) bool { return !member(n) || !s.now && now.Sub(s.at) > forgiveAfter })
	maps.DeleteFunc(a.waits, func(n string, _ *rounds) bool { return !member(n) })
	maps.DeleteFunc(a.reached, func(n string, _ uint64) bool { return !member(n) })
	var out []string
	for n, s := range a.silent {
		if s.now && !s.asking {
			s.asking = true
			out = append(out, n)
		}
	}
	return out
}

func (a *acted) asked(node string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.silent[node]; s != nil {
		s.asking = false
	}
}

func (a *acted) count() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.silent {
		if s.now {
			n++
		}
	}
	return n
}

func (a *acted) waiting(node string) *rounds {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waits[node] == nil {
		a.waits[node] = newRounds()
	}
	return a.waits[node]
}

// hasReached reports whether the others were waited for already, up to a record of a node that drains; reach notes it.
func (a *acted) hasReached(node string, newest uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reached[node] >= newest
}

func (a *acted) reach(node string, newest uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reached[node] = newest
}

// awaitActed returns when every node that is up, and not silent, has brought its kernel to a node's records as they are
// now. Drains of one node share a wait, and what was waited for once is not again: a node may drain as often as it likes.
func (s *Service) awaitActed(ctx context.Context, node string) {
	// Errors are told where they arise, and the end of ctx by who gave it.
	_ = s.acted.waiting(node).share(ctx, func(ctx context.Context) error {
		s.mu.Lock()
		req := &skepv1.MeshAppliedRequest{Records: s.pic.Endpoints(node)}
		nodes := s.pic.Up()
		s.mu.Unlock()
		newest := slices.Max(append(slices.Collect(maps.Values(req.Records)), 0))
		if s.acted.hasReached(node, newest) {
			return nil
		}
		if len(nodes) > askAll {
			select {
			case <-time.After(settle):
			case <-ctx.Done():
			}
		} else {
			s.askWhetherActed(ctx, node, nodes, req)
		}
		if ctx.Err() == nil {
			s.acted.reach(node, newest)
		}
		return ctx.Err()
	})
}

// askWhetherActed asks nodes at once and returns when each has answered, is found down or is given up.
func (s *Service) askWhetherActed(ctx context.Context, of string, nodes []string, req *skepv1.MeshAppliedRequest) {
	patience, cancel := context.WithTimeout(ctx, s.actFor)
	defer cancel()
	waits := map[string]context.CancelFunc{}
	var wg sync.WaitGroup
	for _, n := range nodes {
		if s.acted.quiet(n, time.Now()) {
			continue
		}
		one, giveUp := context.WithCancel(patience)
		waits[n] = giveUp
		wg.Go(func() {
			defer giveUp()
			_, err := api.Call(one, s.cfg.NC, api.MeshApplied.At(n), req)
			if err == nil || ctx.Err() != nil || !s.isUp(n) {
				return
			}
			if s.acted.fell(n, time.Now()) {
				s.meter.silent.Set(float64(s.acted.count()))
				s.cfg.Log.Warn("a node has not acted on a drain in time: a connection through it may still meet a task that ends, and nobody waits for it until it answers again (is its mesh running? see `skep doctor`)",
					zap.String("node", n), zap.String("of", of), zap.Error(err))
			}
		})
	}
	all := make(chan struct{})
	go func() {
		wg.Wait()
		close(all)
	}()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-all:
			return
		case now := <-look.C:
			for n, giveUp := range waits {
				if !s.isUp(n) || s.acted.quiet(n, now) {
					giveUp()
				}
			}
		}
	}
}

// askSilent asks the silent nodes whether they are there again, each once at a time.
func (s *Service) askSilent(ctx context.Context) {
	for _, n := range s.acted.toAsk(s.isMember, time.Now()) {
		go func() {
			defer s.acted.asked(n)
			ctx, cancel := context.WithTimeout(ctx, s.actFor)
			defer cancel()
			if _, err := api.Call(ctx, s.cfg.NC, api.MeshApplied.At(n), &skepv1.MeshAppliedRequest{}); err == nil && s.acted.answers(n) {
				s.cfg.Log.Info("a node answers again whether it acted on drains", zap.String("node", n))
			}
			s.meter.silent.Set(float64(s.acted.count()))
		}()
	}
}

func (s *Service) isUp(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pic.IsUp(node)
}

func (s *Service) isMember(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pic.IsMember(node)
}
