package scheduler

import (
	"context"
	"errors"

	"skep.dev/libs/lease"
	"skep.dev/libs/reconcile"
)

// errFailpoint is what a test's failpoint returns.
var errFailpoint = errors.New("failpoint")

// commit writes a plan, batch by batch, and returns how many changes stand.
func (s *Service) commit(ctx context.Context, p *reconcile.Plan) (int, error) {
	done := 0
	batches := s.state.Batches(p)
	for {
		s.mu.Lock()
		b := batches.Next(s.cfg.batchWrites, maxBytes)
		s.mu.Unlock()
		if b == nil {
			s.tell(p)
			return done, nil
		}
		if err := s.fail("before"); err != nil {
			return done, err
		}
		revs, err := s.fence.Write(ctx, ops(b)...)
		s.meter.committed(b, err)
		if err != nil {
			return done, err
		}
		if err := s.fail("after"); err != nil {
			return done, err
		}
		s.mu.Lock()
		s.state.Applied(b, revs)
		again := s.state.HasDirty()
		s.mu.Unlock()
		if again {
			s.nudge()
		}
		done += len(b.Changes)
	}
}

func (s *Service) fail(at string) error {
	if s.cfg.failpoint == nil {
		return nil
	}
	return s.cfg.failpoint(at)
}

// ops are a batch's writes. The scheduler is their keys' only writer: under the fence they need no other condition.
func ops(b *reconcile.Batch) []lease.Op {
	out := make([]lease.Op, len(b.Writes))
	for i, w := range b.Writes {
		out[i] = lease.Op{Key: w.Key, Value: w.Value}
		if w.Value == nil && !w.Delete {
			out[i].Value = []byte{} // a page without records
		}
	}
	return out
}
