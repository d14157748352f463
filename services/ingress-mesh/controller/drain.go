package controller

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/lease"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// askAll is up to how many nodes are asked one by one whether they have acted on a drain. Beyond it they get settle,
	// some times what they need.
	askAll = 256
	settle = 150 * time.Millisecond
	// actFor bounds the wait for one of them: many times what a busy node needs. One that is found down meanwhile is not
	// waited for any longer.
	actFor = 5 * time.Second
	// lookEvery is how often that is looked at.
	lookEvery = 200 * time.Millisecond
)

// drain takes tasks out of service and answers once that is committed and the other nodes have acted on it. A node that
// does not answer in time holds nobody up for longer: it is as good as gone, or about to be told so.
func (s *Service) drain(ctx context.Context, node string, r *skepv1.DrainRequest) (*skepv1.DrainReply, error) {
	if err := ownNode(node, r.NodeId); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askedFor)
	defer cancel()
	s.mu.Lock()
	s.pic.Drain(node, r.TaskIds)
	s.mu.Unlock()
	for {
		rev, err := s.commit(ctx)
		if err == nil {
			s.awaitActed(ctx, node)
			return &skepv1.DrainReply{Revision: rev}, nil
		}
		s.nudge() // for the loop to see whether it still leads
		if errors.Is(err, lease.ErrDeposed) || errors.Is(err, errKilled) || ctx.Err() != nil {
			return nil, unavailable("drain tasks of node "+node, err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// awaitActed returns when every node that is up has brought its kernel to a node's records as they are now.
func (s *Service) awaitActed(ctx context.Context, node string) {
	s.mu.Lock()
	req := &skepv1.MeshAppliedRequest{Records: s.pic.Endpoints(node)}
	nodes := s.pic.Up()
	s.mu.Unlock()
	if len(nodes) > askAll {
		select {
		case <-time.After(settle):
		case <-ctx.Done():
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, actFor)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			ctx, cancel := s.whileUp(ctx, n)
			defer cancel()
			err := rpc.Call(ctx, s.cfg.NC, subject.Node(n, "mesh.applied"), req, &skepv1.Empty{})
			if err != nil && s.isUp(n) {
				s.cfg.Log.Warn("a node has not acted on a drain in time: a connection through it may still meet a task that ends",
					zap.String("node", n), zap.String("of", node), zap.Error(err))
			}
		})
	}
	wg.Wait()
}

// whileUp gives a context that ends when a node is found down.
func (s *Service) whileUp(ctx context.Context, node string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		look := time.NewTicker(lookEvery)
		defer look.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-look.C:
				if !s.isUp(node) {
					cancel()
					return
				}
			}
		}
	}()
	return ctx, cancel
}

func (s *Service) isUp(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pic.IsUp(node)
}
