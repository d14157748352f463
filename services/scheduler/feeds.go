package scheduler

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// follow starts one feed per bucket the plan depends on.
func (s *Service) follow(ctx context.Context) error {
	for _, f := range []struct {
		bucket subject.Bucket
		put    func(kv.Entry) error
		reset  func(kv.Delta)
	}{
		// Revisions and statuses are only ever added to what is known, so a feed that begins anew needs no reset there.
		{subject.Rev, func(e kv.Entry) error { return s.state.PutRevision(e.Key, e.Stored()) }, nil},
		{subject.NodeB, func(e kv.Entry) error { return s.state.PutNodeBucket(e.Key, e.Stored()) }, nil},
		{subject.Status, func(e kv.Entry) error { return s.state.PutStatus(e.Key, e.Stored(), e.Time) }, nil},
		{subject.Task, func(e kv.Entry) error { return s.state.PutTask(e.Key, e.Stored(), e.Revision) }, func(d kv.Delta) {
			var upTo uint64
			for _, e := range d.Entries {
				upTo = max(upTo, e.Revision)
			}
			s.state.ResetTasks(keySet(d), upTo)
		}},
		{subject.Spec, func(e kv.Entry) error { return s.state.PutSpec(e.Key, e.Stored()) }, func(d kv.Delta) {
			if k := keySet(d); k[keys.Cluster.Key()] {
				s.state.ResetSpecs(k)
			}
		}},
	} {
		feed, err := kv.Follow(ctx, s.js, f.bucket, func(d kv.Delta) { s.apply(f.bucket, f.put, f.reset, d) })
		if err != nil {
			return fmt.Errorf("scheduler: follow bucket %s: %w", f.bucket, err)
		}
		s.feeds = append(s.feeds, feed)
	}
	return nil
}

// apply takes a step of a feed into the picture and wakes the loop when that concerns a service.
func (s *Service) apply(bucket subject.Bucket, put func(kv.Entry) error, reset func(kv.Delta), d kv.Delta) {
	s.mu.Lock()
	if d.Reset && reset != nil {
		reset(d)
	}
	for _, e := range d.Entries {
		if err := put(e); err != nil {
			// A value nobody can read is skipped, loudly: the rest of the cluster must go on.
			s.cfg.Log.Error("unreadable value", zap.String("bucket", string(bucket)), zap.String("key", e.Key), zap.Error(err))
		}
	}
	dirty := s.state.HasDirty()
	s.mu.Unlock()
	if dirty {
		s.nudge()
	}
}

func keySet(d kv.Delta) map[string]bool {
	out := make(map[string]bool, len(d.Entries))
	for _, e := range d.Entries {
		out[e.Key] = !e.Deleted
	}
	return out
}
