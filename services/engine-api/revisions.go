package engine

import (
	"context"
	"sync"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
)

// keptRevisions is how many specs of revisions are kept at hand, and keptBytes how large they may be together: tasks of an older
// revision, and what a service was before, are asked for again and again by clients that poll.
const (
	keptRevisions = 1024
	keptBytes     = 4 << 20
)

type revisionKey struct {
	service string
	number  uint64
}

// revisions are specs that do not change any more. It is no copy of the cluster's state: a revision is immutable, and one that is
// gone is asked for by nobody.
type revisions struct {
	mu    sync.Mutex
	specs map[revisionKey]*skepv1.ServiceSpec
	size  int
}

// spec is that of a revision, nil if it is not kept any more.
func (v *revisions) spec(ctx context.Context, c *cluster, service string, number uint64) (*skepv1.ServiceSpec, error) {
	v.mu.Lock()
	sp := v.specs[revisionKey{service, number}]
	v.mu.Unlock()
	if sp != nil {
		return sp, nil
	}
	all, err := pages(func(p *skepv1.Page) ([]*skepv1.Revision, string, error) {
		r, err := call(ctx, c, api.ServiceRevisions, &skepv1.ListRevisionsRequest{Ref: service, Page: p})
		return r.GetRevisions(), r.GetNext(), err
	})
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.Number == number {
			v.keep(revisionKey{service, number}, r.GetSpec(), r)
			return r.GetSpec(), nil
		}
	}
	return nil, nil
}

func (v *revisions) keep(k revisionKey, sp *skepv1.ServiceSpec, r *skepv1.Revision) {
	n := sizeOf(r)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.specs == nil || len(v.specs) >= keptRevisions || v.size+n > keptBytes { // those in use come back at once
		v.specs, v.size = map[revisionKey]*skepv1.ServiceSpec{}, 0
	}
	v.specs[k] = sp
	v.size += n
}
