package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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
)

// unavailable is how a failed write is told to a node. Whoever stopped leading answers so too: the next request reaches
// the next leader.
func unavailable(what string, err error) error { return fault.Unavailable("%s: %v", what, err) }

// lease gives a node one more block of a network, or takes its key.
func (s *Service) lease(ctx context.Context, node string, r *skepv1.LeaseBlockRequest) (*skepv1.LeaseBlockReply, error) {
	if err := ownNode(node, r.NodeId); err != nil {
		return nil, err
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
	err := s.decide(ctx, func() (*derive.Change, error) {
		if stored, _ := s.pic.Get(key); given != "" && slices.Contains(stored.Blocks, given) {
			return nil, nil
		}
		c, block, err := s.pic.Lease(node, r)
		given = block
		if c != nil && block == "" { // a new key
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
