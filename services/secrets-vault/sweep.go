package vault

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/subject"
)

const (
	// keptVersions is how many versions of an object stay although no service refers to them.
	keptVersions = 25
	sweepEvery   = 15 * time.Minute
)

// trim drops the oldest versions of objects that have many, but for those that a service, or a revision it may go back to,
// refers to. What is dropped is out of every list at once, and its value is kept for as long as a removed object is: a
// service that was being made meanwhile may have come to refer to it.
func (s *Service) trim(ctx context.Context, done map[string]uint64) {
	s.idx.mu.Lock()
	var many []*object
	for id, o := range s.idx.objects.byID {
		switch {
		case o.RemovedAt != nil || !s.idx.objects.genuine(o):
		case len(o.Secret.Versions) <= keptVersions:
			delete(done, id)
		case s.expired(o) || done[id] != o.current():
			many = append(many, o)
		}
	}
	s.idx.mu.Unlock()
	for _, o := range many {
		uses, err := s.uses(ctx, true, o.id())
		var gone []string
		if err == nil {
			_, err = s.change(ctx, o.id(), func(cur *object) (*skepv1.SecretRecord, error) {
				if cur == nil || cur.RemovedAt != nil {
					return nil, errSeenTo
				}
				var next *skepv1.SecretRecord
				next, gone = s.trimmed(cur, needed(uses[o.id()].GetUses()))
				if next == nil {
					return nil, errSeenTo
				}
				return next, nil
			})
		}
		switch {
		case err == nil || err == errSeenTo:
			done[o.id()] = o.current()
			for _, place := range gone {
				s.dropValue(ctx, place)
			}
		case ctx.Err() == nil:
			s.log.Warn("old versions are not dropped yet; trying again", zap.String("kind", o.word()), zap.String("name", o.name()), zap.Error(err))
		}
	}
}

// errSeenTo ends a change that is not needed any more.
var errSeenTo = fault.Conflict("somebody else has seen to it")

func needed(uses []*skepv1.SecretUse) map[uint64]bool {
	out := map[uint64]bool{}
	for _, u := range uses {
		for _, v := range u.Versions {
			out[v] = true
		}
	}
	return out
}

// trimmed is the record without the versions that have been dropped long enough, with those that are not needed dropped and
// those that are needed all the same given back; and the places of values that nothing names any more. nil: as it is.
func (s *Service) trimmed(o *object, needed map[uint64]bool) (*skepv1.SecretRecord, []string) {
	next := proto.CloneOf(o.SecretRecord)
	changed := false
	old := len(next.Secret.Versions) - keptVersions
	next.Secret.Versions = slices.DeleteFunc(next.Secret.Versions, func(v *skepv1.SecretVersion) bool {
		old--
		switch {
		case needed[v.Number] || old < 0:
			if v.DroppedAt != nil {
				v.DroppedAt, changed = nil, true
			}
		case v.DroppedAt == nil:
			v.DroppedAt, changed = timestamppb.New(s.cfg.Now()), true
		case s.cfg.Now().Sub(v.DroppedAt.AsTime()) > keptRemoved:
			changed = true
			return true
		}
		return false
	})
	if !changed {
		return nil, nil
	}
	kept := map[string]bool{}
	for _, v := range next.Secret.Versions {
		kept[next.Values[v.Number]] = true
	}
	var gone []string
	for n, place := range next.Values {
		if !slices.ContainsFunc(next.Secret.Versions, func(v *skepv1.SecretVersion) bool { return v.Number == n }) {
			delete(next.Values, n)
			if !kept[place] && !slices.Contains(gone, place) { // a rollback's version has the value of another
				gone = append(gone, place)
			}
		}
	}
	return next, gone
}

// expired: it has a version that was dropped long enough ago.
func (s *Service) expired(o *object) bool {
	return slices.ContainsFunc(o.Secret.Versions, func(v *skepv1.SecretVersion) bool {
		return v.DroppedAt != nil && s.cfg.Now().Sub(v.DroppedAt.AsTime()) > keptRemoved
	})
}

// sweep removes values that no record names: a vault ended between a value and its record, or before it removed what it
// had forgotten. A value is written before the record that names it, so it counts as left over when two looks, minutes
// apart, found it so. It returns what this look found.
func (s *Service) sweep(ctx context.Context, before map[string]uint64) (map[string]uint64, error) {
	there, err := s.values.Keys(ctx)
	if err != nil {
		return before, err
	}
	// A record may be newer than this instance knows, never a value newer than the list.
	if err := s.feed.Current(ctx); err != nil {
		return before, err
	}
	s.idx.mu.Lock()
	readable := true
	for id, o := range s.idx.objects.byID {
		for _, place := range o.Values {
			delete(there, place)
		}
		readable = readable && s.idx.objects.genuine(o) && s.idx.objects.ledger[id] != nil
	}
	// An object the ledger names and this instance has not may be one it cannot read: its values are not left over.
	for id := range s.idx.objects.ledger {
		readable = readable && s.idx.objects.byID[id] != nil
	}
	s.idx.mu.Unlock()
	if !readable {
		s.log.Warn("some records of secrets cannot be read or were altered: values that nothing names are kept")
		return nil, nil
	}
	for place, revision := range there {
		if f, _ := keys.Of(subject.Value, place); f != keys.Value || before[place] != revision {
			continue
		}
		if err := s.values.Delete(ctx, place, revision); err != nil {
			return there, err
		}
		s.log.Info("a value that no secret refers to was removed", zap.String("place", place))
	}
	return there, nil
}
