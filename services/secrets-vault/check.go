package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
)

const (
	// usesAtOnce is how many objects state is asked about with one request, and usesFor how long all may take.
	usesAtOnce = 50
	usesFor    = 2 * time.Second
	// mostUnused and mostAltered are how many objects one answer names, mostLeft how many values are looked at.
	mostUnused  = 100
	mostAltered = 50
	mostLeft    = 200
)

// left is what the last sweep found left over.
type left struct {
	mu    sync.Mutex
	there map[string]uint64
}

func (l *left) note(there map[string]uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.there = there
}

func (l *left) list() map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.there)
}

// check tells people who look after the cluster what nobody uses, what cannot be trusted, and when the CA ends.
func (s *Service) check(ctx context.Context, _ *skepv1.Empty) (*skepv1.VaultCheckReply, error) {
	if err := s.feed.Current(ctx); err != nil {
		return nil, fault.Unavailable("look through the vault: %v", err)
	}
	ca := s.idx.authority().Cert
	out := &skepv1.VaultCheckReply{CaFromUnixMs: ca.NotBefore.UnixMilli(), CaUntilUnixMs: ca.NotAfter.UnixMilli()}
	out.Altered = s.altered(ctx)
	var err error
	if out.Unused, err = s.unused(ctx); err != nil {
		out.UsesError = err.Error()
	}
	if n := len(out.Unused); n > mostUnused {
		out.UnusedMore = uint32(n - mostUnused)
		out.Unused = out.Unused[:mostUnused]
	}
	out.LeftOver, err = s.leftOver(ctx)
	return out, err
}

// altered are the objects of which the bucket does not hold the newest record, in order.
func (s *Service) altered(ctx context.Context) (out []string) {
	s.whole(ctx)
	defer s.idx.mu.Unlock()
	x := &s.idx.objects
	for _, o := range x.byID {
		if !x.genuine(o) {
			out = append(out, o.word()+" "+o.name())
		}
	}
	for id := range x.ledger {
		if x.byID[id] == nil {
			out = append(out, "object "+id)
		}
	}
	slices.Sort(out)
	return out[:min(len(out), mostAltered)]
}

// unused are the objects that no service refers to, nor a revision it could go back to, by kind and name. What was asked
// about before an error is in the answer with it.
func (s *Service) unused(ctx context.Context) (out []*skepv1.UnusedSecret, err error) {
	ctx, cancel := context.WithTimeout(ctx, usesFor)
	defer cancel()
	s.idx.mu.Lock()
	var all []*skepv1.UnusedSecret
	for id, o := range s.idx.objects.byID {
		if o.RemovedAt == nil && s.idx.objects.genuine(o) && !s.awaited(o) {
			all = append(all, &skepv1.UnusedSecret{Kind: o.Secret.Kind, Id: id, Name: o.name()})
		}
	}
	s.idx.mu.Unlock()
	slices.SortFunc(all, func(a, b *skepv1.UnusedSecret) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Id, b.Id))
	})
	asked := 0
	for some := range slices.Chunk(all, usesAtOnce) {
		ids := make([]string, len(some))
		for i, u := range some {
			ids[i] = u.Id
		}
		uses, err := s.uses(ctx, true, ids...)
		if err != nil {
			return out, fmt.Errorf("state told of %d of %d who uses them: %w", asked, len(all), err)
		}
		for _, u := range some {
			if len(uses[u.Id].GetUses()) == 0 {
				out = append(out, u)
			}
		}
		asked += len(some)
	}
	return out, nil
}

// registryAwaited is how long registry credentials may wait for the service they were made for.
const registryAwaited = 15 * time.Minute

// awaited: it was made a moment ago, for a service that is not there yet.
func (s *Service) awaited(o *object) bool {
	return o.Secret.Kind == skepv1.SecretKind_SECRET_KIND_REGISTRY && s.cfg.Now().Sub(o.Secret.Meta.UpdatedAt.AsTime()) < registryAwaited
}

// leftOver counts values that no record names, did not at the last sweep, and are still there.
func (s *Service) leftOver(ctx context.Context) (n uint32, err error) {
	there := s.left.list()
	if len(there) == 0 {
		return 0, nil
	}
	s.idx.mu.Lock()
	for _, o := range s.idx.objects.byID {
		for _, place := range o.Values {
			delete(there, place)
		}
	}
	s.idx.mu.Unlock()
	looked := 0
	for place := range there {
		if looked++; looked > mostLeft {
			break
		}
		_, err := s.values.Read(ctx, place)
		switch {
		case err == nil:
			n++
		case !errors.Is(err, kv.ErrNotFound):
			return 0, fault.Unavailable("look for values that nothing names: %v", err)
		}
	}
	return n, nil
}
