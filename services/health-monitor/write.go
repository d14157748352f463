package health

import (
	"context"
	"errors"
	"sort"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/event"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/spec"
)

// retryAfter is the pause after a write that failed or met another writer's: the feed tells in between.
const retryAfter = 100 * time.Millisecond

// change is one record to be written (live) or deleted (nil).
type change struct {
	id   string
	live *skepv1.NodeLive
	old  stored
	had  bool
}

// same compares what a record says. The time alone is no change.
func same(a, b *skepv1.NodeLive) bool {
	return a != nil && b != nil && a.State == b.State && a.Message == b.Message && a.Failures == b.Failures && samePath(a, b)
}

// pending takes up to one batch of differences between verdicts and records, those that move tasks first.
func (s *Service) pending() []change {
	var out []change
	for id := range s.dirty {
		want := s.verdict(id)
		old, had := s.record[id]
		if (want == nil && !had) || (want != nil && had && same(want, old.live)) {
			delete(s.dirty, id)
			continue
		}
		out = append(out, change{id: id, live: want, old: old, had: had})
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i].live.GetState() == skepv1.NodeState_NODE_STATE_DOWN, out[j].live.GetState() == skepv1.NodeState_NODE_STATE_DOWN
		if a != b {
			return a
		}
		return out[i].id < out[j].id
	})
	return out[:min(len(out), kv.MaxBatch)]
}

// write starts a write of what is pending, one at a time and off the loop, so that heartbeats go on being heard.
func (s *Service) write(ctx context.Context, do chan func()) {
	if !s.leading || s.writing || s.away || len(s.dirty) == 0 || time.Now().Before(s.retryAt) {
		return
	}
	changes := s.pending()
	if len(changes) == 0 {
		return
	}
	s.writing = true
	go func() {
		first, err := s.commit(ctx, changes)
		s.send(ctx, do, func() { s.wrote(changes, first, err) })
	}()
}

// commit writes the changes atomically, each over the revision we know, and returns the first one's revision.
func (s *Service) commit(ctx context.Context, changes []change) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	b := s.live.Batch()
	for _, c := range changes {
		if c.live == nil {
			b.Delete(keys.Live.Key(c.id), c.old.rev)
			continue
		}
		val, err := proto.Marshal(c.live)
		if err != nil {
			return 0, err
		}
		if c.had {
			b.Update(keys.Live.Key(c.id), val, c.old.rev)
		} else {
			b.Create(keys.Live.Key(c.id), val)
		}
	}
	if _, err := b.Commit(ctx); err != nil {
		return 0, err
	}
	return b.Revision(0), nil
}

func (s *Service) wrote(changes []change, first uint64, err error) {
	s.writing = false
	if err != nil {
		s.retryAt = time.Now().Add(retryAfter)
		if !errors.Is(err, kv.ErrConflict) && !errors.Is(err, context.Canceled) {
			s.log.Warn("write liveness records, will be tried again", zap.Int("records", len(changes)), zap.Error(err))
		}
		return
	}
	for i, c := range changes {
		rev := first + uint64(i)
		// The feed may have been faster, and may even know of a later write.
		if have, ok := s.record[c.id]; !ok || have.rev < rev {
			if c.live == nil {
				delete(s.record, c.id)
			} else {
				s.record[c.id] = stored{live: c.live, rev: rev}
			}
		}
		s.tell(c)
	}
}

// tell publishes a change of state as an event and logs it.
func (s *Service) tell(c change) {
	if c.live == nil {
		return // the removal of a node is its owner's event
	}
	name := s.name(c.id)
	s.tellPath(c, name)
	old := "none"
	if c.old.live != nil {
		if c.old.live.State == c.live.State {
			return
		}
		old = spec.Word(c.old.live.State)
	} else if c.live.State == skepv1.NodeState_NODE_STATE_UNKNOWN {
		return // admitted, not heard yet
	}
	state := spec.Word(c.live.State)
	s.log.Info("node "+state, zap.String("node", c.id), zap.String("name", name), zap.String("was", old), zap.String("message", c.live.Message))
	err := event.Publish(s.cfg.NC, &skepv1.Event{
		Kind: "node", Id: c.id, Name: name, Verb: state, Message: c.live.Message, Actor: "skep-health",
		Attributes: map[string]string{"state.old": old, "state.new": state},
	})
	if err != nil {
		s.log.Warn("publish an event", zap.String("node", c.id), zap.Error(err))
	}
}
