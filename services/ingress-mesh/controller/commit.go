package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/lease"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/derive"
)

const (
	// singly is up to how many writes go one by one: a lone manager pays as much for a batch of two as for eight single
	// writes. Records stand for themselves: it does not matter which of them are written first.
	singly = 8
	// maxWrites and maxBytes bound a batch; one message of it moves the fence.
	maxWrites = kv.MaxBatch - 1
	maxBytes  = 4 << 20
	// writeFor bounds one write: a leader that waits longer is none any more.
	writeFor = 10 * time.Second
)

var errKilled = errors.New("stopped by a test")

// fence is what a leader's writes are conditional on: the revision of its key. Not held: a write failed, and it may have
// been carried out or still be under way, until the fence is moved.
type fence struct {
	rev, epoch uint64 // no epoch: this instance does not lead
	held       bool
}

// takeFence writes the fence, which ends every write under way over an earlier one, and waits until the picture holds
// what those did.
func (s *Service) takeFence(ctx context.Context) error {
	if s.fence.epoch == 0 {
		return lease.ErrDeposed
	}
	ctx, cancel := context.WithTimeout(ctx, writeFor)
	defer cancel()
	for {
		rev, err := lease.MoveFence(ctx, s.bucket, keys.EndpointFence.Key(), s.cfg.NodeID, s.fence.epoch)
		switch {
		case errors.Is(err, kv.ErrConflict) && ctx.Err() == nil:
			continue // somebody moved it: look who
		case err != nil:
			return fmt.Errorf("take the fence: %w", err)
		}
		if err := s.feeds.Of(subject.Endpoint).Wait(ctx, rev); err != nil {
			return err
		}
		s.fence.rev, s.fence.held = rev, true
		return nil
	}
}

// commit writes what follows from the picture and returns the revision of the last write, that of the newest record
// when there is nothing to write. A node that reports too often is looked at a little later, unless it is the urgent one.
func (s *Service) commit(ctx context.Context, urgent string) (uint64, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.hold(ctx); err != nil {
		return 0, err
	}
	s.mu.Lock()
	changes, problems := s.pic.Plan(func(node string) bool { return node != urgent && s.told.Spent(node, time.Now()) })
	rev, held := s.pic.Revision(), s.pic.Dirty()
	s.mu.Unlock()
	if held {
		time.AfterFunc(reportEvery, s.nudge)
	}
	charged := map[string]bool{}
	for _, c := range changes {
		if item := c.Item(); !charged[item] {
			charged[item] = true
			s.told.Allow(item, time.Now())
		}
	}
	for _, p := range problems {
		s.cfg.Log.Error("endpoint record left out", zap.String("problem", p))
	}
	for len(changes) > 0 {
		n := 1
		if len(changes) > singly {
			n = chunk(changes)
		}
		last, err := s.write(ctx, changes[:n])
		if err != nil {
			s.mu.Lock()
			s.pic.Undo(changes)
			s.mu.Unlock()
			return 0, err
		}
		rev, changes = last, changes[n:]
	}
	return rev, nil
}

// chunk is how many changes the next batch takes: what is one node's stays together where it fits.
func chunk(changes []derive.Change) int {
	size, n := 0, 0
	for n < len(changes) && n < maxWrites {
		if size += len(changes[n].Value); size > maxBytes && n > 0 {
			break
		}
		n++
	}
	if n == len(changes) {
		return n
	}
	for cut := n; cut > 0; cut-- {
		if changes[cut].Item() != changes[cut-1].Item() {
			return cut
		}
	}
	return n
}

// hold sees to it that this instance may write and knows what it wrote.
func (s *Service) hold(ctx context.Context) error {
	if s.fence.held {
		return nil
	}
	return s.takeFence(ctx)
}

// write commits changes, all or none, and notes them in the picture. The caller has the fence, and has lost it after an
// error.
func (s *Service) write(ctx context.Context, changes []derive.Change) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, writeFor)
	defer cancel()
	err := s.fail("write")
	var revs []uint64
	if err == nil {
		if revs, err = s.put(ctx, changes); err == nil {
			err = s.fail("written")
		}
	}
	if err != nil {
		s.fence.held = false
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range changes {
		if err := s.pic.Written(c.Key, c.Value, revs[i]); err != nil {
			return 0, err // we encoded it a moment ago
		}
	}
	return revs[len(revs)-1], nil
}

// put writes one key as one message conditional on the fence, several as an atomic batch that moves it.
func (s *Service) put(ctx context.Context, changes []derive.Change) ([]uint64, error) {
	if len(changes) == 1 {
		c := changes[0]
		rev, err := s.bucket.WriteFenced(ctx, c.Key, c.Value, keys.EndpointFence.Key(), s.fence.rev)
		return []uint64{rev}, err
	}
	val, err := proto.Marshal(&skepv1.Fence{Holder: s.cfg.NodeID, Epoch: s.fence.epoch})
	if err != nil {
		return nil, err
	}
	b := s.bucket.Batch()
	b.Update(keys.EndpointFence.Key(), val, s.fence.rev)
	for _, c := range changes {
		switch {
		case c.Value == nil:
			b.Delete(c.Key, c.Revision)
		case c.Revision == 0:
			b.Create(c.Key, c.Value)
		default:
			b.Update(c.Key, c.Value, c.Revision)
		}
	}
	if _, err := b.Commit(ctx); err != nil {
		return nil, err
	}
	s.fence.rev = b.Revision(0)
	revs := make([]uint64, len(changes))
	for i := range revs {
		revs[i] = b.Revision(i + 1)
	}
	return revs, nil
}

func (s *Service) fail(at string) error {
	if s.cfg.failpoint == nil {
		return nil
	}
	return s.cfg.failpoint(at)
}
