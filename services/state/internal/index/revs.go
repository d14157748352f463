package index

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

type revision struct {
	stored
	number  uint64
	written int64 // unix ms
}

func (x *Index) resetRevs() {
	x.revs, x.stackRevs = map[string][]revision{}, map[string][]revision{}
	x.revSize = 0
}

// ApplyRev takes a step of the rev bucket's feed.
func (x *Index) ApplyRev(d kv.Delta) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d.Reset {
		x.resetRevs()
	}
	for _, e := range d.Entries {
		if id, number, ok := keys.ParseRevision(e.Key); ok {
			x.applyRevLocked(x.revs, id, number, e)
		} else if id, number, ok := keys.ParseStackRevision(e.Key); ok {
			x.applyRevLocked(x.stackRevs, id, number, e)
		}
	}
	x.notifyLocked()
}

func (x *Index) applyRevLocked(revs map[string][]revision, id string, number uint64, e kv.Entry) {
	list := revs[id]
	i, found := slices.BinarySearchFunc(list, number, func(r revision, n uint64) int { return cmp.Compare(r.number, n) })
	if found {
		x.revSize -= len(list[i].raw)
	}
	now := revision{stored: keep(e), number: number, written: millis(e.Time)}
	switch {
	case e.Deleted && found:
		list = slices.Delete(list, i, i+1)
	case e.Deleted:
	case found:
		list[i] = now
		x.revSize += len(e.Value)
	default:
		list = slices.Insert(list, i, now)
		x.revSize += len(e.Value)
	}
	if len(list) == 0 {
		delete(revs, id)
	} else {
		revs[strings.Clone(id)] = list
	}
}

// rawLocked is a revision as stored, with no revision of its key when it is not kept.
func rawLocked(list []revision, number uint64) (s stored) {
	for _, r := range list {
		if r.number == number {
			s = r.stored
		}
	}
	return s
}

// Revision is one revision of a service, nil when it is not kept.
func (x *Index) Revision(service string, number uint64) *skepv1.Revision {
	x.mu.RLock()
	s := rawLocked(x.revs[service], number)
	x.mu.RUnlock()
	if s.rev == 0 {
		return nil
	}
	out := &skepv1.Revision{}
	if proto.Unmarshal(s.raw, out) != nil {
		return nil
	}
	return out
}

// RevisionNumber is a kept revision: its number, the revision of its key and when it was written.
type RevisionNumber struct {
	Number      uint64
	KeyRevision uint64
	WrittenMs   int64
}

// Revisions are the kept revisions of a service, oldest first.
func (x *Index) Revisions(service string) []RevisionNumber {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return numbers(x.revs[service])
}

func numbers(list []revision) []RevisionNumber {
	out := make([]RevisionNumber, 0, len(list))
	for _, r := range list {
		out = append(out, RevisionNumber{r.number, r.rev, r.written})
	}
	return out
}

// OrphanRevisions are services that are gone but whose revisions, all written before the given time, are not.
func (x *Index) OrphanRevisions(beforeMs int64) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return orphans(x.revs, x.services, beforeMs)
}

func orphans[T any](revs map[string][]revision, owners map[string]*T, beforeMs int64) (out []string) {
	for id, list := range revs {
		if owners[id] == nil && len(list) > 0 && list[len(list)-1].written < beforeMs {
			out = append(out, id)
		}
	}
	return out
}
