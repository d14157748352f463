package scheduler

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/reconcile"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// askTimeout bounds one request to state, for a run or a rollback; the plan asks again.
	askTimeout = 5 * time.Second
	// firstPause is before a decision that was not taken is looked at anew; it doubles up to longestPause.
	firstPause   = time.Second
	longestPause = 30 * time.Second
	// feedPause lets the feed bring what was written before the service is looked at again.
	feedPause = 20 * time.Millisecond
)

// ask has state write what a plan decided about jobs. It does not wait: state may be away, and everything else goes on.
// Nothing of it is remembered either. The next plan finds what is still due, and state does each decision once.
func (s *Service) ask(ctx context.Context, runs []reconcile.RunChange) {
	for _, r := range runs {
		if id := r.Service.ID; s.asking.begin(id) {
			go s.askOne(ctx, id, r.Service.Name, r)
		}
	}
}

func (s *Service) askOne(ctx context.Context, id, name string, r reconcile.RunChange) {
	call, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := api.Call(call, s.cfg.NC, api.ServiceRun, &skepv1.RunServiceRequest{Ref: id, Decision: r.Decision})
	log := s.cfg.Log.With(zap.String("service", name))
	pause := feedPause
	switch {
	case ctx.Err() != nil:
	case err == nil, fault.Is(err, fault.CodeNotFound):
		if tries, since := s.refused.over(id); tries > 0 {
			log.Info("a job's runs are taken again", zap.Int("refused", tries), zap.Duration("after", time.Since(since)))
		}
	default:
		var first bool
		if pause, first = s.refused.again(id, time.Until(r.Missed)); first {
			log.Warn("a job's run was not taken, trying again until it is", zap.String("why", r.Decision.GetReason()), zap.Error(err))
		} else {
			log.Debug("a job's run was not taken", zap.String("why", r.Decision.GetReason()), zap.Error(err))
		}
	}
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
	s.asking.end(id)
	s.mu.Lock()
	// What became due meanwhile was not asked for.
	s.state.Touch(id)
	s.mu.Unlock()
	s.nudge()
}

// refusals are the jobs whose runs state does not take, or is not there to take.
type refusals struct {
	mu    sync.Mutex
	first time.Duration // pause after the first refusal
	jobs  map[string]*refusal
}

type refusal struct {
	since time.Time
	tries int
	pause time.Duration
}

// again notes one more refusal and says how long to pause, and whether it is the first in a row. left is the time until
// a run counts as missed, not positive when there is none to miss: the pauses shrink towards it, so that no run is missed
// for having been asked for too seldom.
func (r *refusals) again(job string, left time.Duration) (pause time.Duration, first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.jobs[job]
	if first = x == nil; first {
		x = &refusal{since: time.Now(), pause: r.first}
		if r.jobs == nil {
			r.jobs = map[string]*refusal{}
		}
		r.jobs[job] = x
	}
	x.tries++
	pause = x.pause
	x.pause = min(2*x.pause, longestPause)
	if left > 0 {
		pause = max(r.first, min(pause, left/2))
	}
	return pause, first
}

// over forgets a job's refusals and says how many there were.
func (r *refusals) over(job string) (tries int, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.jobs[job]
	if x == nil {
		return 0, time.Time{}
	}
	delete(r.jobs, job)
	return x.tries, x.since
}

// forget begins anew: another leader may have been answered meanwhile.
func (r *refusals) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.jobs)
}
