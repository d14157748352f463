package scheduler

import (
	"context"
	"errors"
	"sync"

	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/reconcile"
	skepv1 "skep.dev/proto/skep/v1"
)

// inFlight names the services of which something is asked right now.
type inFlight struct {
	mu       sync.Mutex
	services map[string]bool
}

func (f *inFlight) begin(service string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.services[service] {
		return false
	}
	if f.services == nil {
		f.services = map[string]bool{}
	}
	f.services[service] = true
	return true
}

func (f *inFlight) end(service string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.services, service)
}

// askRollbacks has state make the revisions that go back. Plans name them until they are there, so an answer that is
// lost, or a leader that dies here, costs nothing: the request holds for the failed revision alone, and is made once.
func (s *Service) askRollbacks(ctx context.Context, list []reconcile.Rollback) {
	for _, r := range list {
		if !s.asking.begin(r.Service.ID) {
			continue
		}
		go func() {
			defer s.asking.end(r.Service.ID)
			s.askRollback(ctx, r)
		}()
	}
}

func (s *Service) askRollback(ctx context.Context, r reconcile.Rollback) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req := &skepv1.UpdateServiceRequest{Ref: r.Service.ID, Rollback: true, RollbackRevision: r.To, ExpectRevision: r.From, Reason: r.Reason}
	_, err := api.Call(ctx, s.cfg.NC, api.ServiceUpdate, req)
	log := s.cfg.Log.With(zap.String("service", r.Service.ID), zap.Uint64("from", r.From), zap.Uint64("to", r.To))
	switch {
	case err == nil:
		log.Info("rolled back", zap.String("reason", r.Reason))
	case errors.Is(err, context.Canceled):
	case fault.Is(err, fault.CodeInvalid), fault.Is(err, fault.CodeNotFound):
		// It will be refused for ever: a network or a revision is gone. The rollout pauses and says why.
		log.Warn("rollback refused", zap.Error(err))
		s.mu.Lock()
		s.state.RefuseRollback(r.Service.ID, r.From, err.Error())
		s.mu.Unlock()
		s.nudge()
	default: // another revision is there meanwhile, or no state service answers
		log.Warn("rollback not made yet", zap.Error(err))
	}
}
