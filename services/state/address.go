package state

import (
	"context"
	"slices"
	"strings"
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/kv"
	"skep.dev/libs/patience"
	"skep.dev/libs/subject"
	"skep.dev/libs/typo"
	"skep.dev/services/state/internal/index"
)

// serviceID finds a service by id, name or unique beginning of its id.
func (s *Service) serviceID(ref string) (string, error) {
	if ref == "" {
		return "", fault.Invalid("service: give a name or an id")
	}
	if id.Valid(ref) && s.ix.ServiceName(ref) != "" {
		return ref, nil
	}
	if id, ok := s.ix.ServiceByName(ref); ok {
		return id, nil
	}
	all := s.ix.ServicesAfter("")
	return byPrefix("service", ref, all)
}

// findService is serviceID, looking twice before it says no: the object may have been made a moment ago by another
// instance.
func (s *Service) findService(ctx context.Context, ref string) (id string, err error) {
	err = s.lookTwice(ctx, func() (err error) { id, err = s.serviceID(ref); return err }, subject.Spec)
	return id, err
}

// findNode is nodeID, looking twice.
func (s *Service) findNode(ctx context.Context, ref string) (id string, err error) {
	err = s.lookTwice(ctx, func() (err error) { id, err = s.nodeID(ref); return err }, subject.Spec, subject.NodeB)
	return id, err
}

// lookTwice looks for something again, when it is not found, in what the streams of buckets have now: another instance may
// have written it a moment ago. It does so whether or not that is more than before: what was not there at the first look
// may have come before this one is asked for. A manager that was cut off a moment ago does not say that there is no such thing.
func (s *Service) lookTwice(ctx context.Context, look func() error, buckets ...subject.Bucket) error {
	err := look()
	if !fault.Is(err, fault.CodeNotFound) {
		return err
	}
	for _, b := range buckets {
		if err := caughtUp(ctx, s.feeds.Of(b)); err != nil {
			return err
		}
	}
	return look()
}

// isTaken reports whether a name is taken, looking again before it says yes: its object may have been removed a moment ago by
// another instance.
func (s *Service) isTaken(ctx context.Context, look func() bool) (bool, error) {
	if !look() {
		return false, nil
	}
	if err := caughtUp(ctx, s.feeds.Of(subject.Spec)); err != nil {
		return false, err
	}
	return look(), nil
}

const catchUpLimit = 2 * time.Second

// caughtUp waits until a feed has what its stream has now, for catchUpLimit, or for as long as ctx has patience: the watcher
// of a feed may have died with the leader that was lost.
func caughtUp(ctx context.Context, f *kv.Feed) error {
	ctx, cancel := context.WithTimeout(ctx, max(catchUpLimit, patience.Left(ctx)))
	defer cancel()
	if err := f.Current(ctx); err != nil {
		return fault.Unavailable("this manager has not caught up with the store: look, and try again (%v)", err)
	}
	return nil
}

// catchUp is caughtUp for those who go on with as much as came.
func catchUp(ctx context.Context, f *kv.Feed) { _ = caughtUp(ctx, f) }

// atLeast waits for a version that a client has seen from another instance. If it never comes the version was made
// up, and the comparison says so.
func (s *Service) atLeast(ctx context.Context, version uint64) error {
	if version <= s.feeds.Of(subject.Spec).Revision() {
		return nil
	}
	return caughtUp(ctx, s.feeds.Of(subject.Spec))
}

// nodeID finds a node by id, host name or unique beginning of its id.
func (s *Service) nodeID(ref string) (string, error) {
	if ref == "" {
		return "", fault.Invalid("node: give a host name or an id")
	}
	if s.ix.HasNode(ref) {
		return ref, nil
	}
	named := s.ix.NodeNames()
	var hits []string
	for _, n := range named {
		if strings.EqualFold(n.Name, ref) && !slices.Contains(hits, n.ID) {
			hits = append(hits, n.ID)
		}
	}
	switch len(hits) {
	case 0:
	case 1:
		return hits[0], nil
	default:
		return "", fault.Invalid("node %s is ambiguous (%d matches found): %d nodes have that name, use an id", ref, len(hits), len(hits))
	}
	known := map[string]bool{}
	for _, n := range named {
		known[n.ID] = true
	}
	for _, id := range s.ix.NodeIDs() {
		if !known[id] {
			named = append(named, index.Named{ID: id})
		}
	}
	return byPrefix("node", ref, named)
}

func byPrefix(kind, ref string, all []index.Named) (string, error) {
	var hits []string
	for _, n := range all {
		if strings.HasPrefix(n.ID, ref) && !slices.Contains(hits, n.ID) {
			hits = append(hits, n.ID)
		}
	}
	switch len(hits) {
	case 0:
		return "", noSuch(kind, ref, all)
	case 1:
		return hits[0], nil
	}
	return "", ambiguous(kind, ref, len(hits))
}

func ambiguous(kind, ref string, n int) error {
	return fault.Invalid("%s %s is ambiguous (%d matches found): %d ids begin with it", kind, ref, n, n)
}

func noSuch(kind, ref string, all []index.Named) error {
	if s := suggest(ref, all); s != "" {
		return fault.NotFound("no such %s: %s; did you mean %s?", kind, ref, s)
	}
	return fault.NotFound("no such %s: %s", kind, ref)
}

// suggest finds the name somebody may have meant: a near miss, or the shortest one that begins or is begun by it.
func suggest(ref string, all []index.Named) string {
	ref = strings.ToLower(ref)
	best, bestCost := "", 1<<30
	for _, n := range all {
		name := strings.ToLower(n.Name)
		if name == "" {
			continue
		}
		cost := 1 << 30
		limit := 1 + len(ref)/4
		if d := typo.Distance(ref, name, limit); d <= limit {
			cost = d
		} else if len(ref) >= 2 && (strings.HasPrefix(name, ref) || len(name) >= 3 && strings.HasPrefix(ref, name)) {
			cost = 100 + max(len(name)-len(ref), len(ref)-len(name))
		}
		if cost < bestCost || cost == bestCost && cost < 1<<30 && n.Name < best {
			best, bestCost = n.Name, cost
		}
	}
	return best
}
