package scheduler

import (
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// sources are the buckets that the plan depends on. A step of theirs wakes the loop when it concerns a service.
func (s *Service) sources() []kv.Source {
	fold := kv.Fold{Lock: &s.mu, Log: s.cfg.Log, Then: func() {
		if s.state.HasDirty() {
			s.nudge()
		}
	}}
	return []kv.Source{
		// Revisions and statuses are only ever added to what is known, so a feed that begins anew needs no reset there.
		fold.Source(subject.Rev, func(e kv.Entry) error { return s.state.PutRevision(e.Key, e.Stored()) }, nil),
		fold.Source(subject.NodeB, func(e kv.Entry) error { return s.state.PutNodeBucket(e.Key, e.Stored()) }, nil),
		fold.Source(subject.Status, func(e kv.Entry) error { return s.state.PutStatus(e.Key, e.Stored(), e.Time) }, nil),
		fold.Source(subject.Task, func(e kv.Entry) error { return s.state.PutTask(e.Key, e.Stored(), e.Revision) }, func(d kv.Delta) {
			var upTo uint64
			for _, e := range d.Entries {
				upTo = max(upTo, e.Revision)
			}
			s.state.ResetTasks(keySet(d), upTo)
		}),
		fold.Source(subject.Spec, func(e kv.Entry) error { return s.state.PutSpec(e.Key, e.Stored()) }, func(d kv.Delta) {
			if k := keySet(d); k[keys.Cluster.Key()] {
				s.state.ResetSpecs(k)
			}
		}),
	}
}

func keySet(d kv.Delta) map[string]bool {
	out := make(map[string]bool, len(d.Entries))
	for _, e := range d.Entries {
		out[e.Key] = !e.Deleted
	}
	return out
}
