package index

import (
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
	x.revs = map[string][]revision{}
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
		id, number, ok := keys.ParseRevision(e.Key)
		if !ok {
			continue
		}
		list := x.revs[id]
		i, found := slices.BinarySearchFunc(list, number, func(r revision, n uint64) int {
			switch {
			case r.number < n:
				return -1
			case r.number > n:
				return 1
			}
			return 0
		})
		if found {
			x.revSize -= len(list[i].raw)
		}
		switch {
		case e.Deleted && found:
			list = slices.Delete(list, i, i+1)
		case e.Deleted:
		case found:
			list[i] = revision{stored: keep(e), number: number, written: millis(e.Time)}
			x.revSize += len(e.Value)
		default:
			list = slices.Insert(list, i, revision{stored: keep(e), number: number, written: millis(e.Time)})
			x.revSize += len(e.Value)
		}
		if len(list) == 0 {
			delete(x.revs, id)
		} else {
			x.revs[strings.Clone(id)] = list
		}
	}
	x.notifyLocked()
}

// Revision is one revision of a service, nil when it is not kept.
func (x *Index) Revision(service string, number uint64) *skepv1.Revision {
	x.mu.RLock()
	var s stored
	for _, r := range x.revs[service] {
		if r.number == number {
			s = r.stored
		}
	}
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
	out := make([]RevisionNumber, 0, len(x.revs[service]))
	for _, r := range x.revs[service] {
		out = append(out, RevisionNumber{r.number, r.rev, r.written})
	}
	return out
}

// OrphanRevisions are services that are gone but whose revisions, all written before the given time, are not.
func (x *Index) OrphanRevisions(beforeMs int64) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []string
	for id, list := range x.revs {
		if _, ok := x.services[id]; ok || len(list) == 0 || list[len(list)-1].written >= beforeMs {
			continue
		}
		out = append(out, id)
	}
	return out
}
