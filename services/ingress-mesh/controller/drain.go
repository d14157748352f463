package controller

import (
	"context"
	"errors"
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/lease"
	skepv1 "skep.dev/proto/skep/v1"
)

// drain takes tasks out of service and answers once that is committed and the other nodes have acted on it. A node that
// does not answer in time holds nobody up for longer (acted.go): it is as good as gone, or about to be told so.
func (s *Service) drain(ctx context.Context, node string, r *skepv1.DrainRequest) (*skepv1.DrainReply, error) {
	if err := ownNode(node, r.NodeId); err != nil {
		return nil, err
	}
	if !s.isMember(node) {
		return nil, fault.Unavailable("node %s is not known yet: try again", node)
	}
	ctx, cancel := context.WithTimeout(ctx, askedFor)
	defer cancel()
	s.mu.Lock()
	s.pic.Drain(node, r.TaskIds)
	s.mu.Unlock()
	for {
		rev, err := s.commit(ctx, node)
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
