package mesh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/services/ingress-mesh/internal/ingress"
	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/vip"
)

const (
	// gather waits for more changes of a burst before the kernel is touched; a lone change waits no longer than this.
	gather = 5 * time.Millisecond
	// healEvery is how soon what others removed from the kernel is put back.
	healEvery = 3 * time.Second
	// hostEvery is for what costs processes to look at: the bridge and the other firewalls' chain.
	hostEvery = 30 * time.Second
	// again is the pause before a scope that could not be applied is tried once more.
	again = 500 * time.Millisecond
)

// dirty gathers scopes that changed.
type dirty struct {
	mu     sync.Mutex
	scopes map[string]bool
	wake   chan struct{}
}

func newDirty() *dirty { return &dirty{scopes: map[string]bool{}, wake: make(chan struct{}, 1)} }

func (d *dirty) add(scopes ...string) {
	d.mu.Lock()
	for _, s := range scopes {
		d.scopes[s] = true
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *dirty) take() map[string]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.scopes
	d.scopes = map[string]bool{}
	return out
}

// converge brings the kernel to what is known, whenever that changes and every few seconds in any case, until ctx ends.
func (s *Service) converge(ctx context.Context) {
	if s.follow != nil {
		s.applied.reach(s.follow.Newest()) // the start has acted on what was kept
	}
	heal, host, keys := time.NewTicker(healEvery), time.NewTicker(hostEvery), time.NewTicker(rotateEvery)
	defer keys.Stop()
	defer heal.Stop()
	defer host.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.dirty.wake:
			select {
			case <-time.After(gather):
			case <-ctx.Done():
				return
			}
			var newest uint64
			if s.follow != nil {
				newest = s.follow.Newest()
			}
			began := time.Now()
			s.apply(ctx, s.dirty.take())
			s.meter.ran(runApply, began)
			s.applied.reach(newest)
		case <-heal.C:
			began := time.Now()
			s.heal(ctx)
			s.meter.ran(runHeal, began)
			s.watchTable()
		case <-keys.C:
			s.rotate(ctx)
		case <-host.C:
			began := time.Now()
			err := s.repair()
			s.meter.ran(runHost, began)
			if err != nil {
				s.meter.failed.WithLabelValues(runHost).Inc()
				s.log.Error("repair the host's network", zap.Error(err))
			}
		}
	}
}

// apply takes changed scopes to the kernel; what fails is tried again.
func (s *Service) apply(ctx context.Context, scopes map[string]bool) {
	if s.cleaned.Load() {
		return
	}
	var failed []string
	if scopes[keys.ScopeIngress] || scopes[keys.ScopeNodes] {
		if err := s.applyPorts(ctx); err != nil {
			s.log.Error("publish ports", zap.Error(err))
			failed = append(failed, keys.ScopeIngress)
		}
	}
	for _, id := range s.networksHere() {
		if !scopes[id] && !scopes[keys.ScopeNodes] || s.leaving(id) {
			continue
		}
		if err := s.applyNetwork(ctx, id); err != nil {
			failed = append(failed, id)
			if errors.As(err, new(errNotKnown)) {
				s.log.Debug("a network that is still here is not known: it is being removed, or its record comes", zap.String("network", id))
				continue
			}
			s.log.Error("apply network", zap.String("network", id), zap.Error(err))
		}
	}
	s.meter.failed.WithLabelValues(runApply).Add(float64(len(failed)))
	if len(failed) > 0 && ctx.Err() == nil {
		time.AfterFunc(again, func() { s.dirty.add(failed...) })
	}
}

// heal compares the kernel with what is known and puts back what is missing.
func (s *Service) heal(ctx context.Context) {
	if s.cleaned.Load() {
		return
	}
	s.host.Lock()
	err := s.plane.Repair(ctx)
	s.host.Unlock()
	if err != nil {
		s.meter.failed.WithLabelValues(runHeal).Inc()
		s.log.Error("repair published ports", zap.Error(err))
	}
	here := s.networksHere()
	whole := s.turn.next(here, s.tasksCount)
	for _, id := range here {
		if s.leaving(id) {
			continue
		}
		if err := s.healNetwork(ctx, id, whole[id]); err != nil {
			s.meter.failed.WithLabelValues(runHeal).Inc()
			s.log.Error("repair network", zap.String("network", id), zap.Error(err))
		}
	}
	s.sweepNetworks(ctx)
}

const (
	// healTasks is how many tasks' own namespaces one heal looks into, at the least: their tables are seldom anybody's to
	// change, and each costs a visit.
	healTasks = 64
	// healTurns is after how many heals every network had its turn, at the most.
	healTurns = 10
)

// turn is where the look into the tasks' namespaces goes on.
type turn struct{ last string }

// next picks the networks whose tasks are looked at now: as many as have healTasks tasks, and a share of all.
func (t *turn) next(ordered []string, tasks func(string) int) map[string]bool {
	out := map[string]bool{}
	from, found := slices.BinarySearch(ordered, t.last)
	if found {
		from++
	}
	least := (len(ordered) + healTurns - 1) / healTurns
	for seen := 0; len(out) < len(ordered) && (seen < healTasks || len(out) < least); from++ {
		id := ordered[from%len(ordered)]
		out[id], t.last = true, id
		seen += tasks(id)
	}
	return out
}

// applyPorts makes the routes to the other nodes and the published ports what they should be.
func (s *Service) applyPorts(ctx context.Context) error {
	draining := s.drainingNow()
	st := ingress.State{HostPorts: hostPorts(s.liveTasks(), draining)}
	if s.follow != nil {
		st.Peers = peers(s.follow.Scope(keys.ScopeNodes).Nodes, s.node)
		ports := s.follow.Scope(keys.ScopeIngress)
		st.Services, st.Lost = published(ports, draining), lost(ports, s.node)
	}
	s.host.Lock()
	defer s.host.Unlock()
	if s.cleaned.Load() {
		return nil
	}
	return s.plane.Apply(ctx, st)
}

// applyTask makes a task's own namespace translate its networks' virtual addresses.
func (s *Service) applyTask(rec record) error {
	unlock := s.vipLock.lock(rec.Task)
	defer unlock()
	want := s.tables.virtual(rec.networks())
	path := s.nsPath(rec.Task)
	if !nsfs.At(path) {
		return nil // it is going away
	}
	if err := s.vips.Apply(path, want); err != nil {
		return fmt.Errorf("set the virtual addresses of task %s: %w", rec.Task, err)
	}
	return s.clearFlows(rec, path, want)
}

// behind is what a task's virtual addresses lead to, and which tasks it was told are lost.
type behind struct{ backends, lost map[netip.Addr]bool }

// clearFlows ends the flows of a task to backends that have left, which without a new lookup would go there for ever, and
// to those that are lost.
func (s *Service) clearFlows(rec record, path string, want []vip.Service) error {
	now := behind{map[netip.Addr]bool{}, map[netip.Addr]bool{}}
	for _, v := range want {
		for _, list := range [][]netip.Addr{v.Backends, v.Backends6} {
			for _, a := range list {
				now.backends[a] = true
			}
		}
		for _, a := range v.Lost {
			now.lost[a] = true
		}
	}
	s.flowMu.Lock()
	before := s.behind[rec.Task]
	s.flowMu.Unlock()
	if err := vip.Clear(path, without(before.backends, now.backends), without(now.lost, before.lost)); err != nil {
		return fmt.Errorf("clear the flows of task %s to tasks that are gone: %w", rec.Task, err)
	}
	s.flowMu.Lock() // not before: what failed is tried again
	s.behind[rec.Task] = now
	s.flowMu.Unlock()
	return nil
}

// without are the members of one set that are not of another.
func without(set, other map[netip.Addr]bool) (out []netip.Addr) {
	for a := range set {
		if !other[a] {
			out = append(out, a)
		}
	}
	return out
}

// leaving reports whether a network was removed from the cluster and has nobody here any more: it is about to go, and
// nothing is to be put right on it.
func (s *Service) leaving(id string) bool {
	return s.tasksCount(id) == 0 && s.follow.Scope(id).Info == nil
}

func (s *Service) networksHere() []string {
	s.netMu.Lock()
	defer s.netMu.Unlock()
	return slices.Sorted(maps.Keys(s.nets))
}

func (s *Service) liveTasks() []record {
	s.liveMu.Lock()
	defer s.liveMu.Unlock()
	out := make([]record, 0, len(s.live))
	for _, r := range s.live {
		out = append(out, r)
	}
	return out
}

func (s *Service) setLive(rec record) {
	s.liveMu.Lock()
	defer s.liveMu.Unlock()
	s.unlist(rec.Task)
	s.live[rec.Task] = rec
	for _, m := range rec.Networks {
		if s.liveOn[m.Network] == nil {
			s.liveOn[m.Network] = map[string]bool{}
		}
		s.liveOn[m.Network][rec.Task] = true
	}
}

// unlist is for who holds liveMu.
func (s *Service) unlist(task string) {
	for _, m := range s.live[task].Networks {
		delete(s.liveOn[m.Network], task)
		if len(s.liveOn[m.Network]) == 0 {
			delete(s.liveOn, m.Network)
		}
	}
	delete(s.live, task)
}

func (s *Service) drainingNow() map[string]bool {
	s.liveMu.Lock()
	defer s.liveMu.Unlock()
	out := make(map[string]bool, len(s.draining))
	for t := range s.draining {
		out[t] = true
	}
	return out
}

// forget drops what is remembered of a task that is gone.
func (s *Service) forget(task string) {
	s.liveMu.Lock()
	s.unlist(task)
	delete(s.draining, task)
	s.liveMu.Unlock()
	s.flowMu.Lock()
	delete(s.behind, task)
	s.flowMu.Unlock()
	s.vips.Forget(s.nsPath(task))
}

var errCleaned = fault.Unavailable("the node's network was removed: the node leaves its cluster")
