package mesh

import (
	"context"
	"sync"
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

// progress is how far the kernel has come: every record up to a revision has been acted on.
type progress struct {
	mu      sync.Mutex
	rev     uint64
	changed chan struct{} // closed and replaced when rev grows
}

func newProgress() *progress { return &progress{changed: make(chan struct{})} }

func (p *progress) reach(rev uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if rev > p.rev {
		p.rev = rev
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

func (p *progress) at() (uint64, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rev, p.changed
}

// appliedFor bounds how long an answer may take; the controller does not wait longer either.
const appliedFor = 5 * time.Second

// appliedRecords answers once this node's kernel has the records it is asked for. Those of scopes the node does not
// follow concern it not.
func (s *Service) appliedRecords(ctx context.Context, r *skepv1.MeshAppliedRequest) (*skepv1.Empty, error) {
	ctx, cancel := context.WithTimeout(ctx, appliedFor)
	defer cancel()
	var upTo uint64
	for key, rev := range r.Records {
		scope, _, _ := keys.ParseEndpoint(key)
		if s.follow.Follows(scope) {
			upTo = max(upTo, rev)
		}
	}
	for {
		rev, changed := s.applied.at()
		if rev >= upTo {
			return &skepv1.Empty{}, s.noneHas(r.NetworkId, r.Addresses)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.Unavailable("this node has not come to revision %d yet", upTo)
		}
	}
}

// noneHas refuses to say that no task of this node has one of some addresses of a network when one has. From the answer on
// none gets one: the record that says whose they are is known.
func (s *Service) noneHas(network string, addrs []string) error {
	s.netMu.Lock()
	n := s.nets[network]
	s.netMu.Unlock()
	if n == nil {
		return nil
	}
	for _, text := range addrs {
		if task := n.pool.holder(address(text)); task != "" {
			return fault.Conflict("address %s is used by task %s: waiting until that one has ended", text, task)
		}
	}
	return nil
}
