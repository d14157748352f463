package state

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/job"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

var errOutOfSequence = fault.New(fault.CodeSequence, "update out of sequence")

func (s *Service) updateService(ctx context.Context, r *skepv1.UpdateServiceRequest) (*skepv1.ServiceReply, error) {
	id, err := s.findService(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	if reply, err := s.again(ctx, id); reply != nil || err != nil {
		return reply, err
	}
	if err := s.atLeast(ctx, r.Version); err != nil {
		return nil, err
	}
	var warnings []string
	var called map[string]string
	before := s.ix.Service(id).GetEndpoint()
	if r.Rollback && r.Canary > 0 {
		return nil, fault.Invalid("a rollback has no canary: what it goes back to is known")
	}
	if !r.Rollback {
		if r.Spec == nil {
			return nil, fault.Invalid("service spec is missing")
		}
		cur := s.ix.Service(id)
		if cur == nil {
			return nil, noSuch("service", r.Ref, nil)
		}
		if r.Spec.Name == "" {
			r.Spec.Name = cur.Spec.Name
		}
		if r.Base != nil {
			if err := s.rebase(r, cur); err != nil {
				return nil, err
			}
		}
		if err := prepare(r.Spec); err != nil {
			return nil, err
		}
		if called, err = s.references(ctx, r.Spec); err != nil {
			return nil, err
		}
		if err := mayBecome(cur, r.Spec); err != nil {
			return nil, err
		}
		if r.Canary > 0 && spec.IsJob(r.Spec) {
			return nil, fault.Invalid("service %s is a job: it has no canary", cur.Spec.Name)
		}
		if r.Base == nil && r.Version != 0 && r.Version != cur.Meta.Version {
			return nil, errOutOfSequence
		}
		warnings = slices.Concat(s.resolveImage(ctx, r.Spec, cur.Spec, r.ResolveImage, r.NoResolveImage), s.leftBehind(r.Spec, cur.Spec), withoutEffect(r.Spec, cur.Spec))
	} else if err := s.mayGoBack(ctx, id, r.RollbackRevision); err != nil {
		return nil, err
	}
	svc, err := s.change(ctx, id, r.DryRun, func(cur *skepv1.Service) (step, error) {
		// Beside a revision to expect, or a base, a version only says what to have seen.
		if r.Base == nil && r.ExpectRevision == 0 && r.Version != 0 && r.Version != cur.Meta.Version || r.ExpectRevision != 0 && r.ExpectRevision != cur.Revision {
			return step{}, errOutOfSequence
		}
		if r.Rollback {
			return s.rollback(cur, r.RollbackRevision, r.Reason)
		}
		next := proto.CloneOf(r.Spec)
		if r.Base != nil {
			var err error
			if next, err = merged(r.Base, r.Spec, cur.Spec); err != nil {
				return step{}, err
			}
		}
		summary := spec.Diff(s.withNames(cur.Spec), s.withNames(next))
		return step{spec: next, summary: summary, called: called, canary: r.Canary}, mayBecome(cur, next)
	})
	if err != nil {
		return nil, err
	}
	warnings = append(warnings, s.portWarnings(before, svc.GetEndpoint())...)
	if !r.Rollback {
		warnings = append(warnings, s.spreadWarnings(svc.GetSpec())...)
	}
	return &skepv1.ServiceReply{Service: svc, Warnings: warnings}, nil
}

// rebase makes a request that was made of an older service one of this service.
func (s *Service) rebase(r *skepv1.UpdateServiceRequest, cur *skepv1.Service) error {
	if n := proto.Size(r.Base); n > maxObject {
		return fault.Invalid("the spec that the change is made from is %d bytes: at most %d fit", n, maxObject)
	}
	next, err := spec.Merge(r.Base, r.Spec, cur.Spec)
	if err != nil {
		return err
	}
	r.Base, r.Spec = proto.CloneOf(cur.Spec), next
	return nil
}

// merged does to a service what made want of base, and refuses what the changes of two come to when neither could see it.
func merged(base, want, cur *skepv1.ServiceSpec) (*skepv1.ServiceSpec, error) {
	if proto.Equal(base, cur) {
		return proto.CloneOf(want), nil
	}
	next, err := spec.Merge(base, want, cur)
	if err != nil {
		return nil, err
	}
	if err := prepare(next); err != nil {
		return nil, fmt.Errorf("with what somebody else changed at the same time: %w", err)
	}
	return next, nil
}

// mayBecome refuses what an update cannot change.
func mayBecome(cur *skepv1.Service, next *skepv1.ServiceSpec) error {
	if next.Name != cur.Spec.Name {
		return fault.Invalid("renaming services is not supported")
	}
	if reflect.TypeOf(next.Mode.GetMode()) != reflect.TypeOf(cur.Spec.Mode.GetMode()) {
		return fault.Invalid("service mode change is not allowed")
	}
	return nil
}

// mayGoBack refuses a revision whose secrets or configs are gone.
func (s *Service) mayGoBack(ctx context.Context, id string, number uint64) error {
	cur := s.ix.Service(id)
	if number == 0 && cur != nil {
		number = s.former(cur)
	}
	target := s.ix.Revision(id, number)
	if target == nil {
		return nil // rollback says what is wrong
	}
	if err := s.resolveFiles(ctx, proto.CloneOf(target.Spec)); err != nil {
		return fmt.Errorf("go back to revision %d: %w", number, err)
	}
	return nil
}

// rollback makes the step back to a kept revision, 0 = the former one.
func (s *Service) rollback(cur *skepv1.Service, number uint64, reason string) (step, error) {
	name := cur.Spec.Name
	if number == 0 {
		if number = s.former(cur); number == 0 {
			return step{}, fault.Invalid("service %s does not have a previous spec", name)
		}
	}
	target := s.ix.Revision(cur.Meta.Id, number)
	if target == nil || number > cur.Revision {
		return step{}, fault.NotFound("service %s has no revision %d: it keeps %s", name, number, s.keptRevisions(cur))
	}
	if number == cur.Revision {
		return step{}, fault.Invalid("service %s is at revision %d already", name, number)
	}
	next := proto.CloneOf(target.Spec)
	// How many replicas run is scale's affair: going back to an older image must neither undo a scale nor take
	// capacity away.
	next.Mode = proto.CloneOf(cur.Spec.Mode)
	if c := next.GetTask().GetContainer(); c != nil {
		c.RegistryAuth = registryAuth(next, cur.Spec)
	}
	if err := s.rejoin(next, target); err != nil {
		return step{}, err
	}
	summary := fmt.Sprintf("rollback to revision %d", number)
	if d := spec.Diff(s.withNames(cur.Spec), s.withNames(next)); d != "" {
		summary += ": " + d
	}
	return step{spec: next, summary: summary, rollbackTo: number, reason: reason}, nil
}

func (s *Service) keptRevisions(cur *skepv1.Service) string {
	var first, last uint64
	for _, r := range s.ix.Revisions(cur.Meta.Id) {
		if r.Number > cur.Revision {
			break
		}
		if first == 0 {
			first = r.Number
		}
		last = r.Number
	}
	if first == last {
		return strconv.FormatUint(first, 10)
	}
	return fmt.Sprintf("%d to %d", first, last)
}

func (s *Service) scaleService(ctx context.Context, r *skepv1.ScaleServiceRequest) (*skepv1.ServiceReply, error) {
	id, err := s.findService(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	if reply, err := s.again(ctx, id); reply != nil || err != nil {
		return reply, err
	}
	if r.Replicas > spec.MaxReplicas {
		return nil, fault.Invalid("invalid replicas value %d: at most %d", r.Replicas, spec.MaxReplicas)
	}
	svc, err := s.change(ctx, id, r.DryRun, func(cur *skepv1.Service) (step, error) {
		next := proto.CloneOf(cur.Spec)
		switch m := next.Mode.GetMode().(type) {
		case *skepv1.ServiceMode_Replicated:
			m.Replicated.Replicas = r.Replicas
		case *skepv1.ServiceMode_ReplicatedJob:
			m.ReplicatedJob.TotalCompletions = r.Replicas
		default:
			return step{}, fault.Invalid("scale can only be used with replicated or replicated-job mode")
		}
		return step{spec: next, scaleOnly: true}, nil
	})
	if err != nil {
		return nil, err
	}
	return &skepv1.ServiceReply{Service: svc}, nil
}

// step is what a change makes of a service.
type step struct {
	spec       *skepv1.ServiceSpec
	summary    string
	rollbackTo uint64
	reason     string // of a rollback that began by itself
	canary     uint64
	scaleOnly  bool
	called     map[string]string // what the spec's networks were called, by id
	with       also
}

// change commits what decide makes of the service and tells everybody, unless a network it joined turns out to be gone.
func (s *Service) change(ctx context.Context, id string, dryRun bool, decide func(*skepv1.Service) (step, error)) (*skepv1.Service, error) {
	var called map[string]string
	before, after, err := s.apply(ctx, id, dryRun, func(cur *skepv1.Service) (step, error) {
		do, err := decide(cur)
		called = do.called
		if err == nil && !do.scaleOnly {
			err = s.mayJoin(do.spec, cur.Spec, called)
		}
		if err == nil && do.rollbackTo == 0 {
			err = s.maySpread(do.spec, do.canary)
		}
		return do, err
	})
	if err != nil || dryRun {
		if after != nil {
			after.Asked = nil
		}
		return after, err
	}
	if err := s.backOffLost(ctx, before, after, called); err != nil {
		return nil, err
	}
	if after.Revision != before.Revision || !proto.Equal(before.Spec, after.Spec) {
		s.events.send(ctx, updateEvent(before, after))
		s.pushFiles(before.Spec, after)
	}
	if err := s.trimRevisions(ctx, after); err != nil {
		s.log.Warn("old revisions left for the next update", zap.String("service", id), zap.Error(err))
	}
	if v := s.viewService(id); v != nil {
		return v, nil
	}
	return after, nil
}

// apply commits what decide makes of the service as it is, deciding anew after every conflict.
func (s *Service) apply(ctx context.Context, id string, dryRun bool, decide func(*skepv1.Service) (step, error)) (before, after *skepv1.Service, err error) {
	err = s.retry(ctx, func() error {
		cur := s.ix.Service(id)
		if cur == nil {
			return fault.NotFound("no such service: %s (it was removed meanwhile)", id)
		}
		if done(ctx, cur) {
			before, after = cur, cur // another try of this request was faster
			return nil
		}
		do, err := decide(cur)
		if err != nil {
			return err
		}
		depends, _ := s.ix.Key(dependsKey) // before mayDepend looks
		before, after = cur, proto.CloneOf(cur)
		after.Spec, after.Asked = do.spec, rpc.MarkOf(ctx).Onto(cur.Asked)
		after.Meta.UpdatedAt = timestamppb.Now()
		if do.scaleOnly && proto.Equal(cur.Spec, do.spec) {
			return nil
		}
		if !do.scaleOnly {
			if err := s.mayDepend(id, do.spec); err != nil {
				return err
			}
			job.Revise(cur, after, time.Now(), s.tasksOf(id))
			// Whatever paused the rollout before, this is a word to go on.
			after.Control = &skepv1.RolloutControl{Resume: cur.Control.GetResume() + 1, Canary: do.canary}
		}
		revise := do.rollbackTo != 0 || !equalButForScale(cur.Spec, do.spec)
		if revise {
			after.Revision = s.nextRevision(cur)
			after.PreviousRevision = cur.Revision
			after.RollbackTo, after.RollbackReason = do.rollbackTo, do.reason
		}
		if after.Endpoint, err = s.allocateEndpoint(id, do, cur.Endpoint); err != nil || dryRun {
			return err
		}
		if revise {
			if err := s.putRevisionNumber(ctx, after, after.Revision, do); err != nil {
				return err
			}
		}
		err = s.commitChange(ctx, before, after, depends.Revision, do.with)
		if err != nil && revise && (errors.Is(err, kv.ErrConflict) || fault.Is(err, fault.CodeConflict)) {
			s.dropRevision(id, after.Revision)
		}
		return err
	})
	return before, after, err
}

// allocateEndpoint is what a changed service has in ports and addresses. Scaling changes no addresses.
func (s *Service) allocateEndpoint(id string, do step, had *skepv1.Endpoint) (*skepv1.Endpoint, error) {
	if err := s.mayFix(id, do.spec); err != nil {
		return nil, err
	}
	ports, err := s.allocatePorts(id, do.spec, had)
	if err != nil {
		return nil, err
	}
	vips := had.GetVirtualIps()
	if !do.scaleOnly {
		if vips, err = s.allocateVIPs(id, do.spec, had); err != nil {
			return nil, err
		}
	}
	return &skepv1.Endpoint{Ports: ports, VirtualIps: vips}, nil
}

// commitChange writes a change of a service with all it takes up, on the condition that everything is as it was looked at.
func (s *Service) commitChange(ctx context.Context, before, after *skepv1.Service, depends uint64, with also) error {
	id := after.Meta.Id
	body, err := encodeService(after)
	if err != nil {
		return err
	}
	batch := s.spec.Batch()
	batch.Update(keys.Service.Key(id), body, before.Meta.Version)
	if err := s.portOps(batch, id, before.Endpoint.GetPorts(), after.Endpoint.Ports); err != nil {
		return err
	}
	if err := s.addressOps(batch, id, addressKeys(before.Endpoint.GetVirtualIps(), before.Spec), addressKeys(after.Endpoint.VirtualIps, after.Spec)); err != nil {
		return err
	}
	dependOps(batch, before, after, depends)
	if err := with.to(batch); err != nil {
		return err
	}
	return s.commit(ctx, batch, func() bool {
		now := s.ix.Service(id)
		return now != nil && now.Revision == after.Revision && now.JobIteration == after.JobIteration && proto.Equal(now.Spec, after.Spec) &&
			proto.Equal(now.Control, after.Control)
	})
}

// equalButForScale: scaling is a change of the service, not of what its tasks are, so it makes no revision.
func equalButForScale(a, b *skepv1.ServiceSpec) bool {
	x := proto.CloneOf(a)
	x.Mode = b.Mode
	return proto.Equal(x, b)
}

// nextRevision skips numbers a crashed instance may have left behind.
func (s *Service) nextRevision(cur *skepv1.Service) uint64 {
	n := cur.Revision
	for _, r := range s.ix.Revisions(cur.Meta.Id) {
		n = max(n, r.Number)
	}
	return n + 1
}

// trimRevisions deletes the oldest revisions beyond the limit, but none that a task was made from or that
// `rollback` would go back to.
func (s *Service) trimRevisions(ctx context.Context, svc *skepv1.Service) error {
	revs := s.ix.Revisions(svc.Meta.Id)
	over := len(revs) - s.cfg.KeepRevisions
	if over <= 0 {
		return nil
	}
	used := s.ix.RevisionsInUse(svc.Meta.Id)
	if r := s.ix.Rollout(svc.Meta.Id); r != nil {
		used[r.Stable], used[r.RollingBackTo] = true, true // an update that fails goes back there
	}
	batch := s.rev.Batch()
	for _, r := range revs {
		if batch.Len() == over || batch.Len() == kv.MaxBatch {
			break
		}
		if used[r.Number] || r.Number == svc.PreviousRevision || r.Number == svc.Revision {
			continue
		}
		batch.Delete(keys.RevisionKey(svc.Meta.Id, r.Number), r.KeyRevision)
	}
	if batch.Len() == 0 {
		return nil
	}
	_, err := batch.Commit(ctx)
	if errors.Is(err, kv.ErrConflict) {
		return nil // another instance trims too
	}
	return err
}

func updateEvent(before, after *skepv1.Service) *skepv1.Event {
	attr := map[string]string{"name": after.Spec.Name}
	differ := func(key, a, b string) {
		if a != b {
			attr[key+".old"], attr[key+".new"] = a, b
		}
	}
	differ("image", before.Spec.GetTask().GetContainer().GetImage(), after.Spec.GetTask().GetContainer().GetImage())
	a, okA := spec.Replicas(before.Spec)
	b, okB := spec.Replicas(after.Spec)
	if okA && okB {
		differ("replicas", strconv.FormatUint(a, 10), strconv.FormatUint(b, 10))
	}
	differ("revision", strconv.FormatUint(before.Revision, 10), strconv.FormatUint(after.Revision, 10))
	return &skepv1.Event{Kind: "service", Id: after.Meta.Id, Name: after.Spec.Name, Verb: "update", Attributes: attr}
}

// revisionsBefore is the number that the revisions of a page are below.
func revisionsBefore(p *skepv1.Page) (uint64, error) {
	a := p.GetAfter()
	if a == "" {
		return ^uint64(0), nil
	}
	n, err := strconv.ParseUint(a, 10, 64)
	if err != nil {
		return 0, fault.Invalid("invalid page %q: use the next of the page before", a)
	}
	return n, nil
}

func (s *Service) listRevisions(ctx context.Context, r *skepv1.ListRevisionsRequest) (*skepv1.ListRevisionsReply, error) {
	id, err := s.findService(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	svc := s.ix.Service(id)
	if svc == nil {
		return nil, noSuch("service", r.Ref, nil)
	}
	after, err := revisionsBefore(r.Page)
	if err != nil {
		return nil, err
	}
	out := &skepv1.ListRevisionsReply{}
	p := newPage(r.Page)
	kept := s.ix.Revisions(id)
	for i := len(kept) - 1; i >= 0; i-- {
		n := kept[i].Number
		if n >= after || n > svc.Revision {
			continue
		}
		rev := s.ix.Revision(id, n)
		if rev == nil {
			continue
		}
		if !p.takes(rev) {
			out.Next = strconv.FormatUint(out.Revisions[len(out.Revisions)-1].Number, 10)
			break
		}
		out.Revisions = append(out.Revisions, rev)
	}
	return out, nil
}
