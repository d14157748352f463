package agent

import (
	"context"
	"time"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"
)

// watchBinds looks, again and again, whether tasks still have on their bind mounts what the node has there. It waits for
// nobody and nobody for it: a path may lead by a server that does not answer.
func (s *Service) watchBinds(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.Ready():
	}
	looked := make(chan struct{}, 1)
	looked <- struct{}{}
	for ctx.Err() == nil {
		wait(ctx, tidyEvery)
		select {
		case <-looked:
			go func() {
				s.lookAtBinds(ctx)
				looked <- struct{}{}
			}()
		default: // the last look has not come back
		}
	}
	select {
	case <-looked:
	case <-time.After(time.Second):
	}
}

func (s *Service) lookAtBinds(ctx context.Context) {
	for _, st := range s.set.Statuses() {
		if st.State != skepv1.TaskState_TASK_STATE_RUNNING || st.Pid == 0 || ctx.Err() != nil {
			continue
		}
		j, _ := s.set.Job(st.TaskId)
		if j == nil || j.Revision == nil {
			continue
		}
		stale, err := s.runtime.StaleBinds(j, st.Pid)
		if err != nil { // it has ended meanwhile
			s.log.Debug("look at bind mounts", zap.Error(err))
			continue
		}
		s.set.SetStaleBinds(st.TaskId, stale)
	}
}
