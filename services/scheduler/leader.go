package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/event"
	"skep.dev/libs/kv"
	"skep.dev/libs/lease"
	"skep.dev/libs/reconcile"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// The pause between two plans: none after idle, then in step with what a plan costs.
	minPause = 2 * time.Millisecond
	maxPause = 50 * time.Millisecond

	// Limits of a batch.
	maxWrites = lease.MaxOps
	maxBytes  = 900 << 10

	clockStep = 10 * time.Second
)

// lead plans and commits until the lease may be lost.
func (s *Service) lead(ctx context.Context, epoch uint64) error {
	s.fence.Lead(epoch)
	defer s.fence.Resign()
	if err := s.hold(ctx); err != nil {
		return err
	}
	s.refused.forget()
	srv, err := s.serveLeader()
	if err != nil {
		return err
	}
	defer srv.Close() //nolint:errcheck // the connection may be gone with the lease
	s.meter.leading.Set(1)
	defer s.meter.leading.Set(0)
	wakes := map[string]int64{}
	all, now := true, true
	var earliest time.Time
	for {
		if err := s.await(ctx, now, earliest, wakes); err != nil {
			return nil //nolint:nilerr // the lease ended, and that is all
		}
		begin := time.Now()
		plan := s.plan(begin, &all, wakes)
		if plan != nil {
			s.meter.planned(begin)
		}
		now = false
		if plan != nil && !plan.Empty() {
			n, err := s.commit(ctx, plan)
			switch {
			case err == nil:
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, kv.ErrConflict), errors.Is(err, errFailpoint):
				return fmt.Errorf("commit: %w", errors.Join(lease.ErrDeposed, err))
			default:
				// The answer was lost: the batch may stand or not. A fence moved again decides which, and the feed tells.
				s.cfg.Log.Warn("commit without an answer, looking again", zap.Error(err))
				if err := s.hold(ctx); err != nil {
					return err
				}
				all, now = true, true
			}
			s.cfg.Log.Debug("planned", zap.Int("changes", len(plan.Changes)), zap.Int("committed", n), zap.Duration("dur", time.Since(begin)))
		}
		if plan != nil {
			s.askRollbacks(ctx, plan.Rollbacks)
			s.ask(ctx, plan.Runs)
		}
		end := time.Now()
		earliest = end.Add(min(max(minPause, 2*end.Sub(begin)), maxPause))
	}
}

// await returns when there is something to plan: a change, or a moment a service waits for.
func (s *Service) await(ctx context.Context, now bool, earliest time.Time, wakes map[string]int64) error {
	if !now {
		var at int64
		for _, w := range wakes {
			if at == 0 || w < at {
				at = w
			}
		}
		timer := time.NewTimer(time.Hour)
		if at != 0 {
			// Not longer than clockStep at a time: the wall clock may be put forward meanwhile, which no timer notices.
			timer.Reset(min(clockStep, max(0, time.Until(time.UnixMilli(at))+time.Millisecond)))
		}
		select {
		case <-s.wake:
		case r := <-s.releases:
			r.done <- s.release(ctx, r)
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	if d := time.Until(earliest); d > 0 && ctx.Err() == nil {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// plan looks at what changed and at what is due. It is nil while the cluster's own object is not known.
func (s *Service) plan(now time.Time, all *bool, wakes map[string]int64) *reconcile.Plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.state.Known() {
		return nil
	}
	ids := s.state.Dirty()
	if *all {
		*all, ids = false, nil
		clear(wakes)
	} else {
		touched := s.state.ClaimsTouched()
		known := make(map[string]bool, len(ids))
		for _, id := range ids {
			known[id] = true
		}
		for id, at := range wakes {
			if at <= now.UnixMilli() && !known[id] {
				ids = append(ids, id)
			}
		}
		if len(ids) == 0 && !touched {
			return nil
		}
		for _, id := range ids {
			delete(wakes, id)
		}
	}
	p := s.state.Plan(now, s.ids, ids)
	for id, at := range p.Wakes {
		wakes[id] = at
	}
	return p
}

// hold takes the fence, however long the store does not answer.
func (s *Service) hold(ctx context.Context) error {
	for {
		err := s.fence.Hold(ctx, s.feeds.Of(subject.Task))
		if err == nil || errors.Is(err, lease.ErrDeposed) || ctx.Err() != nil {
			return err
		}
		s.cfg.Log.Warn("fence not taken yet", zap.Error(err))
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tell publishes what users follow of a rollout.
func (s *Service) tell(p *reconcile.Plan) {
	for _, r := range p.Rollouts {
		st := r.Rollout.GetStatus()
		if st.GetState() == "" || r.Rollout.GetLastBatchUnixMs() != 0 && st.GetCompletedAt() == nil && st.GetState() == "updating" {
			continue // the same as before, noted again
		}
		err := event.Publish(s.cfg.NC, &skepv1.Event{
			Kind: "service", Id: r.Service.ID, Name: r.Service.Name, Verb: "update", Actor: "scheduler", Message: st.GetMessage(),
			Attributes: map[string]string{"updatestate.new": st.GetState()},
		})
		if err != nil {
			s.cfg.Log.Warn("event not published", zap.Error(err))
		}
	}
}
