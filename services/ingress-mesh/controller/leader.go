package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/lease"
	"skep.dev/libs/subject"
	"skep.dev/services/ingress-mesh/internal/derive"
)

const (
	// pause is between two rounds of writing: what comes meanwhile is written together. After idle there is none.
	pause = 5 * time.Millisecond
	// retryAfter is when a round that failed is tried again.
	retryAfter = 200 * time.Millisecond
	// auditEvery is how often the records are looked at for contradictions.
	auditEvery = time.Minute
)

// lead writes what follows from the picture until the lease may be lost.
func (s *Service) lead(ctx context.Context, epoch uint64) error {
	defer s.resign()
	s.meter.leading.Set(1)
	defer s.meter.leading.Set(0)
	if err := s.takeOver(ctx, epoch); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("take over the endpoint records: %w", err)
	}
	srv, err := s.serve("skep-mesh-leader", "leases addresses and drains tasks; one instance at a time", s.leaderEndpoints)
	if err != nil {
		return err
	}
	defer srv.Close() //nolint:errcheck // the next leader's answers come from its own
	s.mu.Lock()
	s.pic.MarkAll()
	s.mu.Unlock()
	audit := time.NewTicker(auditEvery)
	defer audit.Stop()
	again := time.NewTicker(askAgain)
	defer again.Stop()
	var known map[string]bool
	idle := map[string]time.Time{}
	for {
		began := time.Now()
		_, err := s.commit(ctx, "")
		s.meter.committed(began, err)
		if err != nil {
			switch {
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, lease.ErrDeposed), errors.Is(err, errKilled):
				return err
			}
			s.cfg.Log.Warn("endpoint records not written, trying again", zap.Error(err), zap.Uint64("epoch", epoch))
			time.AfterFunc(retryAfter, s.nudge)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
			s.askSilent(ctx)
		case <-audit.C:
			known = s.tell(known)
			s.reclaim(ctx, idle)
		case <-s.wake:
		}
	}
}

// takeOver fences earlier leaders off and waits until the picture holds everything that was written before that.
func (s *Service) takeOver(ctx context.Context, epoch uint64) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.fence.Lead(epoch)
	if err := s.hold(ctx); err != nil {
		return err
	}
	for _, b := range []subject.Bucket{subject.Spec, subject.Rev, subject.NodeB, subject.Status, subject.Task} {
		if err := s.feeds.Of(b).Current(ctx); err != nil {
			return err
		}
	}
	return nil
}

// resign: what this instance writes does not count any more.
func (s *Service) resign() {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.fence.Resign()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pic.Resign()
}

// Audit says what contradicts itself in the records, in words; nothing when all is well. An instance that does not lead
// looks at the records alone, for it does not know which of them are about to change.
func (s *Service) Audit() []string {
	s.writing.Lock() // nothing is planned and not yet written
	s.mu.Lock()
	if !s.fence.Leads() {
		s.pic.MarkAll()
	}
	e := s.pic.Evidence()
	s.mu.Unlock()
	s.writing.Unlock()
	return derive.Audit(e)
}

// tell logs what an audit finds, once as long as it stays.
func (s *Service) tell(known map[string]bool) map[string]bool {
	now := map[string]bool{}
	for _, f := range s.Audit() {
		now[f] = true
		if !known[f] {
			s.cfg.Log.Error("endpoint records contradict one another", zap.String("found", f))
		}
	}
	return now
}
