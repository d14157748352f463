package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/derive"
)

const (
	// tries is how often a request of a node is decided anew when somebody else wrote meanwhile, or an answer was lost.
	tries = 3
	// askedFor bounds the work on a request that writes: the node does not wait longer, and asks again.
	askedFor = 10 * time.Second
	// maxSingle is how many addresses a task has on a network.
	maxSingle = 2
	// unblockFor bounds the question to the node in whose block such an address is: less than the asker's patience.
	unblockFor = 2 * time.Second
)

// unavailable is how a failed write is told to a node. Whoever stopped leading answers so too: the next request reaches
// the next leader.
func unavailable(what string, err error) error { return fault.Unavailable("%s: %v", what, err) }

// lease gives a node one more block of a network, or takes its key.
func (s *Service) lease(ctx context.Context, node string, r *skepv1.LeaseBlockRequest) (*skepv1.LeaseBlockReply, error) {
	if err := ownNode(node, r.NodeId); err != nil {
		return nil, err
	}
	if len(r.Addresses) > maxSingle {
		return nil, fault.Invalid("node %s asks for %d addresses at once: a task has two of a network", node, len(r.Addresses))
	}
	out, err := s.tryLease(ctx, node, r)
	if !fault.Is(err, fault.CodeDenied) && !fault.Is(err, fault.CodeExhausted) {
		return out, err
	}
	// The node may have heard of its tasks before this instance did.
	if err := s.looks.share(ctx, s.look); err != nil {
		return nil, unavailable("look which tasks node "+node+" has", err)
	}
	return s.tryLease(ctx, node, r)
}

// look returns when the picture holds the tasks, and what they are of, as they were when it was called.
func (s *Service) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, currentWithin)
	defer cancel()
	for _, b := range []subject.Bucket{subject.Spec, subject.Rev, subject.Task, subject.Status} {
		if err := s.feeds.Of(b).Current(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) tryLease(ctx context.Context, node string, r *skepv1.LeaseBlockRequest) (*skepv1.LeaseBlockReply, error) {
	key := keys.Endpoint.Key(r.NetworkId, node)
	var given string // by a try whose answer was lost
	paced := s.paced(node, r.NetworkId)
	out := &skepv1.LeaseBlockReply{}
	if err := s.unblock(ctx, node, r); err != nil {
		return nil, err
	}
	err := s.decide(ctx, func() (*derive.Change, error) {
		if stored, _ := s.pic.Get(key); given != "" && slices.Contains(stored.Blocks, given) {
			return nil, nil
		}
		c, block, err := s.pic.Lease(node, r)
		given = block
		if c != nil && block == "" && len(r.Addresses) == 0 { // a new key
			return paced(c)
		}
		return c, err
	}, func() {
		stored, _ := s.pic.Get(key)
		out.Blocks, out.Network = stored.Blocks, s.pic.Info(r.NetworkId)
	})
	if err != nil {
		return nil, asFault(fmt.Sprintf("lease addresses of network %s to node %s", r.NetworkId, node), err)
	}
	return out, nil
}

// unblock makes sure that the node in whose block a single address is does not give it to a task of its own.
func (s *Service) unblock(ctx context.Context, node string, r *skepv1.LeaseBlockRequest) error {
	if len(r.Addresses) == 0 {
		return nil
	}
	s.mu.Lock()
	blocker, told, err := s.pic.Blocker(node, r)
	hostname, _ := s.pic.Host(blocker)
	s.mu.Unlock()
	if err != nil || blocker == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, unblockFor)
	defer cancel()
	_, err = api.Call(ctx, s.cfg.NC, api.MeshApplied.At(blocker), &skepv1.MeshAppliedRequest{Records: told, NetworkId: r.NetworkId, Addresses: r.Addresses})
	if err == nil || fault.Is(err, fault.CodeConflict) {
		return err
	}
	return fault.Unavailable("node %s, in whose addresses of network %s this one is, does not say that it leaves it alone: %v", hostname, r.NetworkId, err)
}

// paced refuses a change of a node's part of a network that comes too soon after others. It counts one request as one,
// however often that is tried.
func (s *Service) paced(node, network string) func(*derive.Change) (*derive.Change, error) {
	counted := false
	return func(c *derive.Change) (*derive.Change, error) {
		if !counted && !s.paces.Allow(keys.Endpoint.Key(network, node), time.Now()) {
			return nil, fault.Unavailable("node %s changes its part of network %s too often: try again in %s", node, network, paceEvery)
		}
		counted = true
		return c, nil
	}
}

// giveBack takes blocks of a node back, but those its tasks have addresses of.
func (s *Service) giveBack(ctx context.Context, node string, r *skepv1.ReturnBlocksRequest) (*skepv1.ReturnBlocksReply, error) {
	if err := ownNode(node, r.NodeId); err != nil {
		return nil, err
	}
	paced := s.paced(node, r.NetworkId)
	out := &skepv1.ReturnBlocksReply{}
	err := s.decide(ctx, func() (*derive.Change, error) {
		c, err := s.pic.Return(node, r)
		if c != nil {
			return paced(c)
		}
		return c, err
	}, func() {
		stored, _ := s.pic.Get(keys.Endpoint.Key(r.NetworkId, node))
		out.Blocks = stored.Blocks
	})
	if err != nil {
		return nil, asFault(fmt.Sprintf("take addresses of network %s back from node %s", r.NetworkId, node), err)
	}
	return out, nil
}

// decide writes what a function of the picture says, nil for nothing, and asks it again when somebody else wrote
// meanwhile or nobody knows whether the write stands. The second function then sees the outcome.
func (s *Service) decide(ctx context.Context, plan func() (*derive.Change, error), outcome func()) error {
	ctx, cancel := context.WithTimeout(ctx, askedFor)
	defer cancel()
	s.writing.Lock()
	defer s.writing.Unlock()
	for try := 1; ; try++ {
		if err := s.hold(ctx); err != nil {
			s.nudge() // for the loop to see whether it still leads
			return err
		}
		s.mu.Lock()
		c, err := plan()
		if err == nil && c == nil {
			outcome()
		}
		s.mu.Unlock()
		if err != nil || c == nil {
			return err
		}
		if _, err = s.write(ctx, []derive.Change{*c}); err == nil {
			s.mu.Lock()
			outcome()
			s.mu.Unlock()
			return nil
		}
		if try == tries || errors.Is(err, errKilled) || ctx.Err() != nil {
			s.nudge()
			return err
		}
	}
}

// asFault says what was being done, but for faults that say it themselves.
func asFault(what string, err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	return unavailable(what, err)
}
