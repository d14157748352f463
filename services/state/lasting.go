package state

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// lasting keeps what a look found, to tell what is still so from what is only on its way: an index is behind for a moment
// after every change, and a change of several keys is seen one by one.
type lasting struct {
	mu   sync.Mutex
	last []string
}

// note keeps what was found now.
func (l *lasting) note(found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = found
}

// still are those of now that were found before, too.
func (l *lasting) still(now []string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range now {
		if slices.Contains(l.last, f) {
			out = append(out, f)
		}
	}
	return out
}

// leftOver are the keys of what is gone, in order, of revisions those written before a time. The sweep removes them, so one
// that is there after a sweep, and still is, withstands it.
func leftOver(x *index.Index, before time.Time) (out []string) {
	for _, svc := range x.OrphanRevisions(before.UnixMilli()) {
		out = append(out, string(subject.Rev)+"/"+keys.Revision.Key(svc, "*"))
	}
	for _, st := range x.OrphanStackRevisions(before.UnixMilli()) {
		out = append(out, string(subject.Rev)+"/"+keys.StackRevision.Key(st, "*"))
	}
	for node := range x.OrphanReports() {
		out = append(out, string(subject.Status)+"/"+node)
	}
	for node := range x.OrphanDescriptions() {
		out = append(out, string(subject.NodeB)+"/"+keys.Description.Key(node))
	}
	slices.Sort(out)
	return out
}

// mostTold is how many findings of a kind one answer has.
const mostTold = 50

// clusterCheck tells what is left over or contradictory and was so before, for people who look after the cluster.
func (s *Service) clusterCheck(ctx context.Context, _ *skepv1.Empty) (*skepv1.ClusterCheckReply, error) {
	for _, b := range []subject.Bucket{subject.Spec, subject.Rev, subject.Status, subject.NodeB} {
		if err := s.feeds.Of(b).Current(ctx); err != nil {
			return nil, fault.Unavailable("look what is left over: %v", err)
		}
	}
	out := &skepv1.ClusterCheckReply{Orphans: s.left.still(leftOver(s.ix, time.Now().Add(-2*leaveFor))), Differences: s.differ.still(audit(s.ix))}
	for _, list := range []*[]string{&out.Orphans, &out.Differences} {
		if n := len(*list); n > mostTold {
			out.More += uint32(n - mostTold)
			*list = (*list)[:mostTold]
		}
		for i, text := range *list {
			(*list)[i] = strings.ToValidUTF8(text, "?")
		}
	}
	return out, nil
}
