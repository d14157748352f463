package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/reconcile"
	skepv1 "skep.dev/proto/skep/v1"
)

// errFailpoint is what a test's failpoint returns.
var errFailpoint = errors.New("failpoint")

// fence is what a leader's commits are conditional on: the revision of the key, and its leadership's epoch.
type fence struct{ rev, epoch uint64 }

// commit writes a plan, batch by batch, and returns how many changes stand.
func (s *Service) commit(ctx context.Context, p *reconcile.Plan, fence *fence) (int, error) {
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
		revs, err := s.write(ctx, b, fence)
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

// write commits one batch under the fence: a single key as one message conditional on it, several as an atomic batch
// that moves it.
func (s *Service) write(ctx context.Context, b *reconcile.Batch, fence *fence) ([]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if len(b.Writes) == 1 {
		w := b.Writes[0]
		if !w.Delete && w.Value == nil {
			w.Value = []byte{}
		}
		rev, err := s.tasks.WriteFenced(ctx, w.Key, w.Value, keys.TaskFence.Key(), fence.rev)
		if err != nil {
			return nil, fmt.Errorf("write task/%s: %w", w.Key, err)
		}
		return []uint64{rev}, nil
	}
	val, err := proto.Marshal(&skepv1.Fence{Holder: s.cfg.NodeID, Epoch: fence.epoch})
	if err != nil {
		return nil, err
	}
	batch := s.tasks.Batch()
	batch.Update(keys.TaskFence.Key(), val, fence.rev)
	for _, w := range b.Writes {
		if w.Delete {
			batch.Delete(w.Key, 0)
		} else {
			batch.Put(w.Key, w.Value)
		}
	}
	if _, err := batch.Commit(ctx); err != nil {
		return nil, err
	}
	revs := make([]uint64, len(b.Writes))
	for i := range revs {
		revs[i] = batch.Revision(i + 1)
	}
	fence.rev = batch.Revision(0)
	return revs, nil
}
