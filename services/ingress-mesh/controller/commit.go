package controller

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/lease"
	"skep.dev/libs/subject"
	"skep.dev/services/ingress-mesh/internal/derive"
)

const (
	// singly is up to how many writes go one by one: a lone manager pays as much for a batch of two as for eight single
	// writes. Records stand for themselves: it does not matter which of them are written first.
	singly = 8
	// maxBytes bounds a batch, as lease.MaxOps does.
	maxBytes = 4 << 20
)

var errKilled = errors.New("stopped by a test")

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
	for n < len(changes) && n < lease.MaxOps {
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

// hold sees to it that this instance may write and knows what was written.
func (s *Service) hold(ctx context.Context) error {
	return s.fence.Hold(ctx, s.feeds.Of(subject.Endpoint))
}

// write commits changes, all or none, and notes them in the picture. The caller has the fence, and has lost it after an
// error.
func (s *Service) write(ctx context.Context, changes []derive.Change) (uint64, error) {
	err := s.fail("write")
	var revs []uint64
	if err == nil {
		if revs, err = s.fence.Write(ctx, ops(changes)...); err == nil {
			err = s.fail("written")
		}
	}
	if err != nil {
		s.fence.Lose()
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

// ops are changes as they are written: a record over the one it was derived beside.
func ops(changes []derive.Change) []lease.Op {
	out := make([]lease.Op, len(changes))
	for i, c := range changes {
		out[i] = lease.Op{Key: c.Key, Value: c.Value, Checked: true, Over: c.Revision}
	}
	return out
}

func (s *Service) fail(at string) error {
	if s.cfg.failpoint == nil {
		return nil
	}
	return s.cfg.failpoint(at)
}
