package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/task"
)

// refresh brings newer versions of secrets and configs to tasks that run and ask for a signal instead of a new task: when
// it is told that there are some, after every reconnect, and from time to time, since it may have missed that.
func (s *Service) refresh(ctx context.Context) error {
	told := make(chan *nats.Msg, 16)
	sub, err := s.cfg.NC.ChanSubscribe(subject.PushFiles(s.cfg.NodeID), told)
	if err != nil {
		return fmt.Errorf("agent: subscribe to newer secrets: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection may be closed before us
	select {
	case <-ctx.Done():
		return nil
	case <-s.Ready():
	}
	status := s.cfg.NC.StatusChanged(nats.CONNECTED)
	defer s.cfg.NC.RemoveStatusListener(status)
	regular := time.NewTicker(snapshotEvery + rand.N(snapshotEvery/10))
	defer regular.Stop()
	var again <-chan time.Time
	backoff := 500 * time.Millisecond
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-told:
			s.askSnapshot() // the cluster's settings may be what changed
		case <-status:
		case <-regular.C:
		case <-again:
		}
		again = nil
		if s.refreshAll(ctx) {
			backoff = 500 * time.Millisecond
			continue
		}
		again = time.After(backoff/2 + rand.N(backoff))
		backoff = min(2*backoff, 30*time.Second)
	}
}

// refreshAll looks at every task once; false: some are to be looked at again.
func (s *Service) refreshAll(ctx context.Context) bool {
	well := true
	for _, st := range s.set.Statuses() {
		if ctx.Err() != nil {
			return true
		}
		j, st := s.set.Job(st.TaskId)
		if j == nil || st.GetState() != skepv1.TaskState_TASK_STATE_RUNNING || st.Pid == 0 || len(st.Files) == 0 {
			continue
		}
		if c := j.Container(); c.GetSecretUpdateSignal() == "" && c.GetConfigUpdateSignal() == "" {
			continue
		}
		if err := s.refreshTask(ctx, j, st); err != nil {
			s.log.Warn("newer secrets have not come to a task that runs", zap.String("task", j.ID()), zap.Error(err))
			well = well && !task.IsTemporary(err)
		}
	}
	return well
}

func (s *Service) refreshTask(ctx context.Context, j *task.Job, st *skepv1.TaskStatus) error {
	ctx, cancel := context.WithTimeout(ctx, 4*callTimeout)
	defer cancel()
	got, err := s.courier.Files(ctx, j.ID(), st.Files)
	if err != nil {
		return err
	}
	if same(got.Files, st.Files) {
		return nil
	}
	templates := s.runtime.Templated(j.ID())
	for _, v := range got.Values {
		templates = templates || v.TemplateDriver != ""
	}
	// A template may be filled in with values that the task has already; so may one more place of the same secret.
	if templates || repeated(got.Files) {
		if got, err = s.courier.Files(ctx, j.ID(), nil); err != nil {
			return err
		}
	}
	held, err := s.runtime.Refresh(ctx, j, st.Pid, got)
	if err != nil {
		return err
	}
	s.log.Info("newer secrets for a task that runs", zap.String("task", j.ID()))
	s.set.SetFiles(j.ID(), held)
	return nil
}

// same: the same versions of the same objects.
func same(a, b []*skepv1.HeldFile) bool {
	has := func(list []*skepv1.HeldFile, f *skepv1.HeldFile) bool {
		return slices.ContainsFunc(list, func(x *skepv1.HeldFile) bool { return x.Id == f.Id && x.Version == f.Version })
	}
	lacks := func(a, b []*skepv1.HeldFile) bool {
		return slices.ContainsFunc(a, func(f *skepv1.HeldFile) bool { return !has(b, f) })
	}
	return !lacks(a, b) && !lacks(b, a)
}

// repeated: an object stands in several places.
func repeated(files []*skepv1.HeldFile) bool {
	seen := map[string]bool{}
	for _, f := range files {
		if seen[f.Id] {
			return true
		}
		seen[f.Id] = true
	}
	return false
}
