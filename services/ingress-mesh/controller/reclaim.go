package controller

import (
	"context"
	"time"

	"go.uber.org/zap"

	"skep.dev/services/ingress-mesh/internal/derive"
)

const (
	// idleFor is how long a node's part of a network must have been in no use before it is taken back. An honest node gives
	// it back within a minute, unless managers are away; a task that is still ending though nobody lists it any more has
	// ended by then.
	idleFor = time.Hour
	// reclaimMost bounds how many are taken back at once.
	reclaimMost = 100
)

// reclaim takes back what nodes hold of networks they have no task on, and have not had for idleFor. idle is since when
// each is known to be so.
func (s *Service) reclaim(ctx context.Context, idle map[string]time.Time) {
	ctx, cancel := context.WithTimeout(ctx, askedFor)
	defer cancel()
	now := time.Now()
	s.mu.Lock()
	keys := s.pic.Idle()
	s.mu.Unlock()
	still := make(map[string]bool, len(keys))
	var due []string
	for _, key := range keys {
		still[key] = true
		if since, known := idle[key]; !known {
			idle[key] = now
		} else if now.Sub(since) >= s.idleFor && len(due) < reclaimMost {
			due = append(due, key)
		}
	}
	for key := range idle {
		if !still[key] {
			delete(idle, key)
		}
	}
	if len(due) == 0 {
		return
	}
	if err := s.look(ctx); err != nil { // a task that is new may be on its way here
		s.cfg.Log.Debug("idle addresses stay leased for now", zap.Error(err))
		return
	}
	for _, key := range due {
		err := s.decide(ctx, func() (*derive.Change, error) { return s.pic.Reclaim(key), nil }, func() {})
		if err != nil {
			s.cfg.Log.Warn("idle addresses stay leased for now", zap.String("record", key), zap.Error(err))
			return
		}
		delete(idle, key)
		s.cfg.Log.Info("addresses of a network that their node did not give back are taken back", zap.String("record", key), zap.Duration("idle for", s.idleFor))
	}
}
