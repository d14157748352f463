package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/job"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// maxObject keeps a service, and a list reply that holds nothing else, well below the broker's payload limit.
const maxObject = spec.MaxSize

// lostAckWait is how long to look for a write whose acknowledgement did not come.
const lostAckWait = 2 * time.Second

func nameTaken(name string) error {
	return fault.Conflict("name conflicts with an existing object: service %s already exists", name)
}

func (s *Service) createService(ctx context.Context, r *skepv1.CreateServiceRequest) (*skepv1.ServiceReply, error) {
	want := r.Spec
	if want == nil {
		return nil, fault.Invalid("service spec is missing")
	}
	sid := rpc.MarkOf(ctx).NewID()
	if svc, err := earlier(ctx, s, keys.Service, sid, "service", s.viewService); svc != nil || err != nil {
		return &skepv1.ServiceReply{Service: svc}, err
	}
	if want.Name == "" {
		want.Name = s.freeName()
	}
	if err := prepare(want); err != nil {
		return nil, err
	}
	called, err := s.references(ctx, want)
	if err != nil {
		return nil, err
	}
	if taken, err := s.isTaken(ctx, func() bool { return s.nameIsAnothers(sid, want.Name) }); err != nil || taken {
		return nil, cmp.Or(err, nameTaken(want.Name))
	}
	if err := s.maySpread(want, 0); err != nil {
		return nil, err
	}
	warnings := slices.Concat(s.resolveImage(ctx, want, nil, true, r.NoResolveImage), s.leftBehind(want, nil), withoutEffect(want, nil))

	svc, err := s.store(ctx, newService{id: sid, spec: want, called: called, dryRun: r.DryRun, summary: "created"})
	if err != nil {
		return nil, err
	}
	return &skepv1.ServiceReply{Service: svc, Warnings: append(append(warnings, s.portWarnings(nil, svc.Endpoint)...), s.spreadWarnings(want)...)}, nil
}

// newService is a service about to be stored: checked, its references resolved.
type newService struct {
	id      string
	spec    *skepv1.ServiceSpec
	called  map[string]string // what the spec's networks were called, by id
	dryRun  bool
	summary string
	with    also
}

// also adds to a batch what is written together with an object, nil = nothing. Its error ends the change.
type also func(*kv.Batch) error

func (f also) to(b *kv.Batch) error {
	if f == nil {
		return nil
	}
	return f(b)
}

// store gives a new service what its spec leaves open and stores it.
func (s *Service) store(ctx context.Context, n newService) (*skepv1.Service, error) {
	now, want := timestamppb.Now(), n.spec
	svc := &skepv1.Service{
		Meta: &skepv1.Meta{Id: n.id, CreatedAt: now, UpdatedAt: now},
		Spec: want, Revision: 1,
	}
	job.Revise(nil, svc, now.AsTime(), s.tasksOf(svc.Meta.Id))
	stored := false
	err := s.retry(ctx, func() error {
		if s.ix.Service(svc.Meta.Id) != nil {
			return nil // ours, its acknowledgement lost
		}
		if taken, err := s.isTaken(ctx, func() bool { return s.nameIsAnothers(n.id, want.Name) }); err != nil || taken {
			return cmp.Or(err, nameTaken(want.Name))
		}
		if first := s.ix.Revision(n.id, 1); first != nil && !n.dryRun {
			// Of another try of this request, which may still go on: what it decided stands.
			want, svc.Spec, stored = first.Spec, first.Spec, true
		}
		if !n.dryRun {
			if err := s.freeStaleClaim(ctx, want.Name, svc.Meta.Id); err != nil {
				return err
			}
		}
		if err := s.mayJoin(want, nil, n.called); err != nil {
			return err
		}
		if err := s.mayFix(svc.Meta.Id, want); err != nil {
			return err
		}
		ports, err := s.allocatePorts(svc.Meta.Id, want, nil)
		if err != nil {
			return err
		}
		vips, err := s.allocateVIPs(svc.Meta.Id, want, nil)
		if err != nil {
			return err
		}
		svc.Endpoint = &skepv1.Endpoint{Ports: ports, VirtualIps: vips}
		if n.dryRun {
			return nil
		}
		if !stored {
			if err := s.putRevision(ctx, svc, n.summary); err != nil {
				return err
			}
			stored = true
		}
		body, err := encodeService(svc)
		if err != nil {
			return err
		}
		if n.with == nil && len(ports) == 0 && len(spec.Overlays(want)) == 0 && s.lone(ctx) {
			return s.createByClaim(ctx, svc.Meta.Id, want.Name, body)
		}
		batch := s.spec.Batch()
		batch.Create(keys.Service.Key(svc.Meta.Id), body)
		batch.Create(keys.Name(keys.ServiceName, want.Name), []byte(svc.Meta.Id))
		if err := s.portOps(batch, svc.Meta.Id, nil, ports); err != nil {
			return err
		}
		if err := s.addressOps(batch, svc.Meta.Id, nil, addressKeys(vips, want)); err != nil {
			return err
		}
		if err := n.with.to(batch); err != nil {
			return err
		}
		return s.commit(ctx, batch, func() bool { return s.ix.Service(svc.Meta.Id) != nil })
	})
	if err != nil {
		// Unavailable may mean that everything was written: then the sweep decides.
		if stored && fault.Of(err) == fault.CodeConflict && rpc.MarkOf(ctx) == nil { // else another try may have come further
			s.dropRevision(svc.Meta.Id, 1)
		}
		return nil, err
	}
	if n.dryRun {
		return svc, nil
	}
	if err := s.keepOffLost(ctx, svc.Meta.Id, n.called); err != nil {
		return nil, err
	}
	s.events.send(ctx, &skepv1.Event{
		Kind: "service", Id: svc.Meta.Id, Name: want.Name, Verb: "create",
		Attributes: map[string]string{"name": want.Name, "image.new": want.Task.Container.Image},
	})
	if v := s.viewService(svc.Meta.Id); v != nil {
		svc = v // else it is gone already
	}
	return svc, nil
}

// prepare fills in and checks a spec before anything is looked up.
func prepare(want *skepv1.ServiceSpec) error {
	// Validate first: Defaults must not hide what was wrong, such as an update configuration on a job.
	if err := spec.Validate(want); err != nil {
		return err
	}
	spec.Defaults(want)
	return spec.CheckSize(want)
}

// references turns the names in a spec into ids and refuses what the cluster does not have. It returns what the spec
// called its networks.
func (s *Service) references(ctx context.Context, want *skepv1.ServiceSpec) (called map[string]string, err error) {
	if err := s.resolveFiles(ctx, want); err != nil {
		return nil, err
	}
	if err := s.resolveDependencies(ctx, want); err != nil {
		return nil, err
	}
	return s.resolveNetworks(ctx, want)
}

// nameIsAnothers reports whether a name is that of another service than the one of an id.
func (s *Service) nameIsAnothers(id, name string) bool {
	other, taken := s.ix.ServiceByName(name)
	return taken && other != id
}

func (s *Service) freeName() string {
	name := spec.RandomName()
	for range 20 {
		if _, taken := s.ix.ServiceByName(name); !taken {
			return name
		}
		name = spec.RandomName()
	}
	return name + "_" + id.New()[:6]
}

func encodeService(svc *skepv1.Service) ([]byte, error) {
	c := proto.CloneOf(svc)
	c.Meta.Version, c.Status, c.UpdateStatus = 0, nil, nil
	body, err := proto.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode service %s: %w", svc.Meta.Id, err)
	}
	return body, nil
}

// commit writes a batch of the spec bucket and waits until the index shows it. When the acknowledgement is lost,
// done tells from the index whether the batch was written.
func (s *Service) commit(ctx context.Context, b *kv.Batch, done func() bool) error {
	last, err := b.Commit(ctx)
	if err == nil {
		return seen(ctx, s.feeds.Of(subject.Spec), last)
	}
	if errors.Is(err, kv.ErrConflict) {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, lostAckWait)
	defer cancel()
	for wait.Err() == nil {
		changed := s.ix.Changed()
		if done() {
			return nil
		}
		select {
		case <-changed:
		case <-wait.Done():
		}
	}
	return fault.Unavailable("the change could not be stored, or its acknowledgement was lost: look, then try again (%v)", err)
}

func (s *Service) putRevision(ctx context.Context, svc *skepv1.Service, summary string) error {
	return s.putRevisionNumber(ctx, svc, svc.Revision, step{summary: summary})
}

func (s *Service) putRevisionNumber(ctx context.Context, svc *skepv1.Service, number uint64, do step) error {
	body, err := proto.Marshal(&skepv1.Revision{
		ServiceId: svc.Meta.Id, Number: number, Spec: svc.Spec, CreatedAt: timestamppb.Now(), Summary: do.summary, RollbackTo: do.rollbackTo, Reason: do.reason, Author: rpc.Asker(ctx), AuthorAddress: rpc.AskerAddress(ctx), Networks: s.networkNames(svc.Spec),
	})
	if err != nil {
		return fmt.Errorf("encode revision %d of service %s: %w", number, svc.Meta.Id, err)
	}
	rev, err := s.rev.Create(ctx, keys.RevisionKey(svc.Meta.Id, number), body)
	switch {
	case errors.Is(err, kv.ErrConflict):
		return err
	case err != nil:
		return fault.Unavailable("store revision %d of service %s: %v", number, svc.Spec.Name, err)
	}
	return seen(ctx, s.feeds.Of(subject.Rev), rev)
}

// dropRevision removes a revision that nothing came to refer to. The sweep does the same later if this fails.
func (s *Service) dropRevision(service string, number uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), catchUpWait*8)
	defer cancel()
	if err := s.rev.Delete(ctx, keys.RevisionKey(service, number), 0); err != nil {
		s.log.Debug("unused revision left for the sweep", zap.String("service", service), zap.Uint64("rev", number), zap.Error(err))
	}
}

func (s *Service) inspectService(ctx context.Context, r *skepv1.Ref) (*skepv1.ServiceReply, error) {
	catchUp(ctx, s.feeds.Of(subject.Spec)) // changes are made from what this says, which another instance may have changed since
	id, err := s.findService(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	svc := s.viewService(id)
	if svc == nil {
		return nil, noSuch("service", r.Ref, nil)
	}
	return &skepv1.ServiceReply{Service: svc}, nil
}

// viewService composes what a client sees: the object, the counts of its tasks and the state of its update.
func (s *Service) viewService(id string) *skepv1.Service {
	svc := s.ix.Service(id)
	if svc == nil {
		return nil
	}
	svc.Asked = nil
	c := s.ix.Counts(id)
	svc.Status = &skepv1.ServiceStatus{Running: c.Running, Desired: c.Active, Completed: c.Completed, CrashLooping: c.Looping}
	if c.Looping > 0 {
		svc.Status.Loop = s.ix.Loop(id)
	}
	switch m := svc.GetSpec().GetMode().GetMode().(type) {
	case *skepv1.ServiceMode_Replicated:
		svc.Status.Desired = m.Replicated.GetReplicas()
	case *skepv1.ServiceMode_ReplicatedJob:
		svc.Status.Desired = m.ReplicatedJob.GetMaxConcurrent()
	}
	if r := s.ix.Rollout(id); r != nil {
		if svc.UpdateStatus = r.Status; r.Status != nil {
			svc.UpdateStatus.Resume, svc.UpdateStatus.Revision = r.Resume, r.Revision
		}
	}
	return svc
}

func (s *Service) listServices(_ context.Context, r *skepv1.ListServicesRequest) (*skepv1.ListServicesReply, error) {
	f, err := parseFilters(r.Filters, "id", "name", "label", "mode")
	if err != nil {
		return nil, err
	}
	if err := f.checkValues("mode", "replicated", "global", "replicated-job", "global-job"); err != nil {
		return nil, err
	}
	out := &skepv1.ListServicesReply{}
	p := newPage(r.Page)
	last := ""
	for _, n := range s.ix.ServicesAfter(r.Page.GetAfter()) {
		if !f.prefix("id", n.ID) || !f.prefix("name", n.Name) {
			continue
		}
		svc := s.viewService(n.ID)
		if svc == nil || !f.labels("label", svc.Spec.Labels) || !f.exact("mode", spec.Mode(svc.Spec)) {
			continue
		}
		if !p.takes(svc) {
			out.Next = last
			break
		}
		out.Services = append(out.Services, svc)
		last = strings.ToLower(n.Name)
	}
	return out, nil
}

// goneService is the answer to a removal that is asked again: nobody knows more of the service any longer.
func goneService(id string) *skepv1.ServiceReply {
	return &skepv1.ServiceReply{Service: &skepv1.Service{Meta: &skepv1.Meta{Id: id}}}
}

func (s *Service) removeService(ctx context.Context, r *skepv1.RemoveServiceRequest) (*skepv1.ServiceReply, error) {
	id, err := s.findService(ctx, r.Ref)
	if rpc.Removed(ctx, r.Ref, err) {
		return goneService(r.Ref), nil
	}
	if err != nil {
		return nil, err
	}
	warnings := s.dependentsWarning(id)
	gone, err := s.drop(ctx, id, r.Ref, r.DryRun, nil)
	if rpc.Removed(ctx, r.Ref, err) {
		return goneService(id), nil
	}
	return &skepv1.ServiceReply{Service: gone, Warnings: warnings}, err
}

// drop removes a service that is called ref, with what else is written then.
func (s *Service) drop(ctx context.Context, id, ref string, dryRun bool, with also) (gone *skepv1.Service, err error) {
	err = s.retry(ctx, func() error {
		cur := s.viewService(id)
		if cur == nil {
			if gone != nil {
				return nil // ours, its acknowledgement lost, or somebody else was as fast
			}
			return noSuch("service", ref, nil)
		}
		gone = cur
		if dryRun {
			return nil
		}
		return s.commitRemoval(ctx, cur, with)
	})
	if err != nil || dryRun {
		return gone, err
	}
	s.events.send(ctx, &skepv1.Event{Kind: "service", Id: id, Name: gone.Spec.Name, Verb: "remove", Attributes: map[string]string{"name": gone.Spec.Name}})
	// The tasks still name these revisions, but an agent keeps what it needs to stop one.
	if err := s.dropRevisions(ctx, id); err != nil {
		s.log.Warn("revisions of a removed service left for the sweep", zap.String("service", id), zap.Error(err))
	}
	return gone, nil
}

// commitRemoval deletes a service as it was read, with all it takes up.
func (s *Service) commitRemoval(ctx context.Context, cur *skepv1.Service, with also) error {
	id := cur.Meta.Id
	batch := s.spec.Batch()
	batch.Delete(keys.Service.Key(id), cur.Meta.Version)
	name := keys.Name(keys.ServiceName, cur.Spec.Name)
	if k, ok := s.ix.Key(name); ok && k.Value == id {
		batch.Delete(name, k.Revision)
	}
	if err := s.portOps(batch, id, cur.Endpoint.GetPorts(), nil); err != nil {
		return err
	}
	if err := s.addressOps(batch, id, addressKeys(cur.Endpoint.GetVirtualIps(), cur.Spec), nil); err != nil {
		return err
	}
	if err := with.to(batch); err != nil {
		return err
	}
	return s.commit(ctx, batch, func() bool { return s.ix.Service(id) == nil })
}

// dropRevisions deletes everything kept of a service that is gone.
func (s *Service) dropRevisions(ctx context.Context, service string) error {
	return s.dropAll(ctx, s.ix.Revisions(service), func(n uint64) string { return keys.RevisionKey(service, n) })
}

// dropAll deletes revisions, whatever they are.
func (s *Service) dropAll(ctx context.Context, revs []index.RevisionNumber, key func(number uint64) string) error {
	for len(revs) > 0 {
		batch := s.rev.Batch()
		n := min(len(revs), kv.MaxBatch)
		for _, r := range revs[:n] {
			batch.Delete(key(r.Number), 0)
		}
		if _, err := batch.Commit(ctx); err != nil {
			return err
		}
		revs = revs[n:]
	}
	return nil
}
