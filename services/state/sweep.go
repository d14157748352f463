package state

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

const (
	sweepEvery = 30 * time.Second
	// leaveFor keeps the sweep away from changes that are still being made.
	leaveFor = 2 * time.Minute
	// auditEvery is how many sweeps go by from one audit to the next.
	auditEvery = 10
)

// sweep removes what a crash between two writes left behind: revisions without a service, names claimed for one
// that never came, reports of nodes that are gone, networks half removed; and releases names, numbers, addresses and
// ports whose owner is gone. Every instance does it; each deletion is confirmed by the stream's leader first, or made on
// a condition, so an index that lags cannot delete what is in use. What it cannot mend it tells of.
func (s *Service) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var told []string
	for n := 1; ; n++ {
		select {
		case <-tick.C:
			s.sweepOnce(ctx, time.Now().Add(-leaveFor))
			s.left.note(leftOver(s.ix, time.Now().Add(-2*leaveFor)))
			if n%auditEvery == 0 {
				told = s.tellAudit(told)
			}
		case <-ctx.Done():
			return
		}
	}
}

// tellAudit logs what the audit finds now and found the last time.
func (s *Service) tellAudit(last []string) []string {
	now := audit(s.ix)
	s.differ.note(now)
	for _, text := range now {
		if slices.Contains(last, text) {
			s.log.Warn("allocations and objects differ", zap.String("finding", text))
		}
	}
	return now
}

func (s *Service) sweepOnce(ctx context.Context, before time.Time) {
	s.sweepRemovals(ctx, before)
	s.sweepStrays(ctx, before)
	for _, svc := range s.ix.OrphanRevisions(before.UnixMilli()) {
		if !s.gone(ctx, keys.Service.Key(svc)) {
			continue
		}
		if err := s.dropRevisions(ctx, svc); err != nil {
			s.log.Warn("revisions of a removed service stay for now", zap.String("service", svc), zap.Error(err))
		}
	}
	for _, n := range s.ix.ServicesAfter("") {
		svc := s.ix.Service(n.ID)
		if svc == nil {
			continue
		}
		for _, r := range s.ix.Revisions(n.ID) {
			if r.Number > svc.Revision && r.WrittenMs < before.UnixMilli() && s.unused(ctx, n.ID, r.Number) {
				if err := s.rev.Delete(ctx, keys.RevisionKey(n.ID, r.Number), r.KeyRevision); err != nil && !errors.Is(err, kv.ErrConflict) {
					s.log.Warn("unused revision stays for now", zap.String("service", n.ID), zap.Uint64("rev", r.Number), zap.Error(err))
				}
			}
		}
	}
	s.sweepStacks(ctx, before)
	for key, k := range s.ix.Keys(keys.ServiceName.Prefix()) {
		if s.ix.Service(k.Value) != nil || !k.Seen.Before(before) {
			continue
		}
		if _, err := s.release(ctx, key, k); err != nil && !errors.Is(err, kv.ErrConflict) {
			s.log.Warn("name of a service that never came stays claimed for now", zap.String("service", k.Value), zap.Error(err))
		}
	}
	for node, rev := range s.ix.OrphanReports() {
		if !s.gone(ctx, keys.Node.Key(node)) {
			continue
		}
		if err := s.status.Delete(ctx, node, rev); err != nil && !errors.Is(err, kv.ErrConflict) {
			s.log.Warn("report of a removed node stays for now", zap.String("node", node), zap.Error(err))
		}
	}
	for node, rev := range s.ix.OrphanDescriptions() {
		if !s.gone(ctx, keys.Node.Key(node)) {
			continue
		}
		if err := s.nodes.Delete(ctx, keys.Description.Key(node), rev); err != nil && !errors.Is(err, kv.ErrConflict) {
			s.log.Warn("description of a removed node stays for now", zap.String("node", node), zap.Error(err))
		}
	}
}

// sweepStacks removes revisions of stacks that are gone, and those that no stack came to.
func (s *Service) sweepStacks(ctx context.Context, before time.Time) {
	for _, id := range s.ix.OrphanStackRevisions(before.UnixMilli()) {
		if !s.gone(ctx, keys.Stack.Key(id)) {
			continue
		}
		if err := s.dropStackRevisions(ctx, id); err != nil {
			s.log.Warn("revisions of a removed stack stay for now", zap.String("stack", id), zap.Error(err))
		}
	}
	for _, n := range s.ix.Stacks() {
		for _, r := range s.ix.StackRevisions(n.ID) {
			if st := s.ix.Stack(n.ID); st == nil || r.Number <= st.Revision || r.WrittenMs >= before.UnixMilli() {
				continue
			}
			e, err := s.spec.Get(ctx, keys.Stack.Key(n.ID))
			if err != nil || s.feeds.Of(subject.Spec).Wait(ctx, e.Revision) != nil || s.ix.Stack(n.ID).GetRevision() >= r.Number {
				continue
			}
			if err := s.rev.Delete(ctx, keys.StackRevisionKey(n.ID, r.Number), r.KeyRevision); err != nil && !errors.Is(err, kv.ErrConflict) {
				s.log.Warn("unused revision stays for now", zap.String("stack", n.Name), zap.Uint64("rev", r.Number), zap.Error(err))
			}
		}
	}
}

// gone asks the leader whether a key of the spec bucket does not exist.
func (s *Service) gone(ctx context.Context, key string) bool {
	_, err := s.spec.Get(ctx, key)
	return errors.Is(err, kv.ErrNotFound)
}

// unused asks the leader whether a service has not come to a revision.
func (s *Service) unused(ctx context.Context, service string, number uint64) bool {
	e, err := s.spec.Get(ctx, keys.Service.Key(service))
	if err != nil {
		return false
	}
	if err := s.feeds.Of(subject.Spec).Wait(ctx, e.Revision); err != nil {
		return false
	}
	svc := s.ix.Service(service)
	return svc != nil && svc.Revision < number
}
