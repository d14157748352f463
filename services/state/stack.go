package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/printable"
	"skep.dev/libs/rpc"
	"skep.dev/libs/stack"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// A deploy checks everything, then stores what was asked for as the stack's next revision, on the condition that the stack is
// as the asker saw it. From there on the cluster follows the revision by itself (stack_loop.go): nobody has to stay. Revisions
// are in another bucket and are written first, as those of services are.

// deployment is one deploy or rollback.
type deployment struct {
	want       *skepv1.StackSpec
	expect     uint64 // the revision that the asker saw; any: do not look
	any        bool
	prune      bool
	dryRun     bool
	rollbackTo uint64
}

func (s *Service) deployStack(ctx context.Context, r *skepv1.DeployStackRequest) (*skepv1.DeployStackReply, error) {
	if err := checkStack(r.Spec, s.ix.Cluster().GetSpec()); err != nil {
		return nil, err
	}
	return s.deploy(ctx, deployment{want: r.Spec, expect: r.ExpectRevision, any: r.DryRun, prune: r.Prune, dryRun: r.DryRun})
}

func (s *Service) rollbackStack(ctx context.Context, r *skepv1.RollbackStackRequest) (*skepv1.DeployStackReply, error) {
	id, err := s.findStack(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	if err := s.stacksCurrent(ctx); err != nil {
		return nil, err
	}
	cur := s.ix.Stack(id)
	if cur == nil {
		return nil, noSuch("stack", r.Ref, nil)
	}
	target, err := s.stackTarget(cur, r.Revision)
	if err != nil {
		return nil, err
	}
	if err := checkStack(target.Spec, s.ix.Cluster().GetSpec()); err != nil {
		return nil, fmt.Errorf("go back to revision %d of stack %s: %w", target.Number, cur.Name, err)
	}
	warnings := s.credentialsNow(ctx, target.Spec)
	reply, err := s.deploy(ctx, deployment{want: target.Spec, expect: cmp.Or(r.ExpectRevision, cur.Revision), dryRun: r.DryRun, rollbackTo: target.Number})
	if err != nil {
		return nil, fmt.Errorf("go back to revision %d of stack %s: %w", target.Number, cur.Name, err)
	}
	reply.Warnings = append(warnings, reply.Warnings...)
	return reply, nil
}

// credentialsNow gives an older spec the registry credentials of today, where there are some for the same repository. Those of
// long ago may be gone.
func (s *Service) credentialsNow(ctx context.Context, old *skepv1.StackSpec) (warnings []string) {
	for _, sp := range old.Services {
		c := sp.GetTask().GetContainer()
		if c.GetRegistryAuth() == "" {
			continue
		}
		id, _ := s.ix.ServiceByName(sp.Name)
		if c.RegistryAuth = registryAuth(sp, s.ix.Service(id).GetSpec()); s.resolveFiles(ctx, &skepv1.ServiceSpec{Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{RegistryAuth: c.RegistryAuth}}}) != nil {
			c.RegistryAuth = ""
			warnings = append(warnings, fmt.Sprintf("service %s: the registry credentials of that revision are gone, its image is pulled without", sp.Name))
		}
	}
	return warnings
}

// stackTarget is the revision to go back to, 0: the last one that asked for something else.
func (s *Service) stackTarget(cur *skepv1.Stack, number uint64) (*skepv1.StackRevision, error) {
	if number == cur.Revision {
		return nil, fault.Invalid("stack %s is at revision %d already", cur.Name, number)
	}
	if number != 0 {
		if rev := s.ix.StackRevision(cur.Meta.Id, number); rev != nil && number < cur.Revision {
			return rev, nil
		}
		return nil, fault.NotFound("stack %s has no revision %d: skep stack history %s lists them", cur.Name, number, cur.Name)
	}
	now := s.ix.StackRevision(cur.Meta.Id, cur.Revision)
	kept := s.ix.StackRevisions(cur.Meta.Id)
	for _, r := range slices.Backward(kept) {
		if r.Number >= cur.Revision {
			continue
		}
		if rev := s.ix.StackRevision(cur.Meta.Id, r.Number); rev != nil && !proto.Equal(rev.Spec, now.GetSpec()) {
			return rev, nil
		}
	}
	return nil, fault.Invalid("stack %s has no revision before this one to go back to", cur.Name)
}

// stacksCurrent waits until this instance knows of stacks what is stored now.
func (s *Service) stacksCurrent(ctx context.Context) error {
	for _, b := range []subject.Bucket{subject.Spec, subject.Rev} {
		if err := s.feeds.Of(b).Current(ctx); err != nil {
			return fault.Unavailable("look what there is of the stack: %v", err)
		}
	}
	return nil
}

// mayDeploy refuses a stack that is not as the asker saw it.
func (s *Service) mayDeploy(cur *skepv1.Stack, d deployment) error {
	name := d.want.Name
	switch {
	case cur.GetState() == skepv1.StackState_STACK_STATE_REMOVING:
		return fault.Conflict("stack %s is being removed: wait until it is gone (skep stack ls), then deploy it", name)
	case cur != nil && cur.Name != name:
		return fault.Conflict("stack %s exists, and the case of letters tells no two stacks apart: use its name", cur.Name)
	case d.any || cur.GetRevision() == d.expect:
		return nil
	case cur == nil:
		return fault.Conflict("stack %s was removed meanwhile: look at the plan again, then deploy", name)
	}
	by := cur.Author
	if cur.AuthorAddress != "" {
		by += " from " + cur.AuthorAddress
	}
	return fault.Conflict("stack %s was deployed meanwhile: revision %d, by %s, at %s: look at the plan again, then deploy",
		name, cur.Revision, cmp.Or(by, "somebody"), cur.GetMeta().GetUpdatedAt().AsTime().Format("15:04:05 MST"))
}

// deploy plans, and stores the stack's next revision unless it is a dry run or there is nothing to change.
func (s *Service) deploy(ctx context.Context, d deployment) (*skepv1.DeployStackReply, error) {
	if err := s.stacksCurrent(ctx); err != nil {
		return nil, err
	}
	if s.ix.Cluster() == nil {
		return nil, errNoCluster()
	}
	cur := s.stackNamed(d.want.Name)
	if err := s.mayDeploy(cur, d); err != nil {
		return nil, err
	}
	if err := s.stackReferences(ctx, d.want); err != nil {
		return nil, err
	}
	if err := s.stackFiles(ctx, d.want, cur, d.dryRun); err != nil {
		return nil, err
	}
	stack.Settle(d.want, s.newest(cur).GetSpec())
	reply := &skepv1.DeployStackReply{}
	if d.rollbackTo == 0 {
		reply.Warnings = s.stackImages(ctx, d.want, s.newest(cur).GetSpec())
	}
	self := id.New() // of a stack that is new
	err := s.retry(ctx, func() error {
		cur := s.stackNamed(d.want.Name)
		if cur.GetMeta().GetId() == self {
			return nil // ours, its acknowledgement lost
		}
		if err := s.mayDeploy(cur, d); err != nil {
			return err
		}
		ops, err := s.planDeploy(cur, d)
		if err != nil {
			return err
		}
		reply.Changes = nil
		for _, o := range ops {
			if !o.Gone {
				reply.Changes = append(reply.Changes, o.Change())
			}
			if o.Note != "" && !slices.Contains(reply.Warnings, o.Note) {
				reply.Warnings = append(reply.Warnings, o.Note)
			}
		}
		reply.Stack = cur
		if reply.Stack == nil {
			reply.Stack = &skepv1.Stack{Name: d.want.Name}
		}
		if d.dryRun || s.nothingNew(cur, d, ops) {
			return nil
		}
		reply.Stack, err = s.storeStack(ctx, cur, d, self, summary(d, ops))
		return err
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// planDeploy plans a deploy over the stack as it is, nil = there is none, and refuses it when a step cannot be done.
func (s *Service) planDeploy(cur *skepv1.Stack, d deployment) ([]*stack.Op, error) {
	if err := s.stacksApart(d.want, cur.GetMeta().GetId()); err != nil {
		return nil, err
	}
	rev := &skepv1.StackRevision{StackId: cur.GetMeta().GetId(), Number: cur.GetRevision() + 1, Spec: d.want, RollbackTo: d.rollbackTo, Prune: d.prune}
	ops, err := s.planStack(cur, rev, s.newest(cur).GetSpec())
	if err != nil {
		return nil, err
	}
	for _, o := range ops {
		if o.Refused != "" {
			return nil, fault.Conflict("%s", o.Refused)
		}
	}
	if n := len(ops); n > maxStackMembers {
		return nil, fault.Exhausted("stack %s would have %d services, networks, secrets and configs, with what former deploys left behind: at most %d; deploy with --prune", d.want.Name, n, maxStackMembers)
	}
	return ops, s.stackPorts(d.want, ops)
}

// nothingNew: the same again, of a stack that is as it should be or on the way there without trouble.
func (s *Service) nothingNew(cur *skepv1.Stack, d deployment, ops []*stack.Op) bool {
	if cur == nil {
		return false
	}
	was := proto.CloneOf(s.newest(cur).GetSpec())
	if was == nil {
		return false
	}
	was.ResolveImage = d.want.ResolveImage
	for _, w := range was.Services {
		for _, n := range d.want.Services {
			if n.Name == w.Name && n.GetTask().GetContainer().GetRegistryAuth() == "" {
				w.Task.Container.RegistryAuth = "" // those there are stay
			}
		}
	}
	if !proto.Equal(was, d.want) {
		return false
	}
	if cur.State == skepv1.StackState_STACK_STATE_DEPLOYING {
		return len(cur.Problems) == 0 && cur.Prune == d.prune
	}
	return !slices.ContainsFunc(ops, (*stack.Op).Does)
}

// storeStack stores the next revision: first the revision, then the stack that names it.
func (s *Service) storeStack(ctx context.Context, cur *skepv1.Stack, d deployment, self, summary string) (*skepv1.Stack, error) {
	now := timestamppb.Now()
	next := proto.CloneOf(cur)
	if next == nil {
		next = &skepv1.Stack{Meta: &skepv1.Meta{Id: self, CreatedAt: now}, Name: d.want.Name}
	}
	sid := next.Meta.Id
	next.Meta.UpdatedAt = now
	next.Revision, next.State, next.Problems, next.Prune = s.nextStackRevision(cur), skepv1.StackState_STACK_STATE_DEPLOYING, nil, d.prune
	next.Author, next.AuthorAddress = rpc.Asker(ctx), rpc.AskerAddress(ctx)
	for _, l := range []struct {
		kind  string
		files []*skepv1.StackFile
	}{{stack.Secret, d.want.Secrets}, {stack.Config, d.want.Configs}} {
		for _, f := range l.files {
			setMember(next, &skepv1.StackMember{Kind: l.kind, Id: f.Id, Name: f.Name})
		}
	}
	body, err := proto.Marshal(&skepv1.StackRevision{
		StackId: sid, Number: next.Revision, Spec: d.want, CreatedAt: now, Author: next.Author, AuthorAddress: next.AuthorAddress, Summary: summary,
		RollbackTo: d.rollbackTo, Prune: d.prune,
	})
	if err != nil {
		return nil, fmt.Errorf("encode revision %d of stack %s: %w", next.Revision, next.Name, err)
	}
	rev, err := s.rev.Create(ctx, keys.StackRevisionKey(sid, next.Revision), body)
	switch {
	case errors.Is(err, kv.ErrConflict):
		return nil, err
	case err != nil:
		return nil, fault.Unavailable("store revision %d of stack %s: %v", next.Revision, next.Name, err)
	}
	if err := seen(ctx, s.feeds.Of(subject.Rev), rev); err != nil {
		return nil, err
	}
	batch := s.spec.Batch()
	if err := putStack(batch, next, cur.GetMeta().GetVersion()); err != nil {
		return nil, err
	}
	if cur == nil {
		batch.Create(keys.Name(keys.StackName, next.Name), []byte(sid))
	}
	err = s.commit(ctx, batch, func() bool {
		st := s.ix.Stack(sid)
		return st != nil && st.Revision == next.Revision
	})
	if err != nil {
		if errors.Is(err, kv.ErrConflict) {
			s.dropStackRevision(sid, next.Revision)
		}
		return nil, err
	}
	verb := "deploy"
	if d.rollbackTo != 0 {
		verb = "rollback"
	}
	s.events.send(ctx, stackEvent(next, verb))
	if err := s.trimStackRevisions(ctx, next); err != nil {
		s.log.Warn("old revisions of a stack left for the next deploy", zap.String("stack", next.Name), zap.Error(err))
	}
	return next, nil
}

func stackEvent(st *skepv1.Stack, verb string) *skepv1.Event {
	return &skepv1.Event{Kind: "stack", Id: st.Meta.Id, Name: st.Name, Verb: verb, Attributes: map[string]string{"name": st.Name, "revision": fmt.Sprint(st.Revision)}}
}

// putStack adds a stack to a batch, over the version that was read, 0 = it is new.
func putStack(b *kv.Batch, st *skepv1.Stack, over uint64) error {
	c := proto.CloneOf(st)
	c.Meta.Version, c.Spec = 0, nil
	body, err := proto.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode stack %s: %w", st.Name, err)
	}
	if over == 0 {
		b.Create(keys.Stack.Key(st.Meta.Id), body)
	} else {
		b.Update(keys.Stack.Key(st.Meta.Id), body, over)
	}
	return nil
}

// setMember makes an object a member, in the place of one of the same name that is gone.
func setMember(st *skepv1.Stack, m *skepv1.StackMember) {
	dropMember(st, m.Kind, m.Name)
	st.Members = append(st.Members, m)
	slices.SortFunc(st.Members, func(a, b *skepv1.StackMember) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
}

func dropMember(st *skepv1.Stack, kind, name string) {
	st.Members = slices.DeleteFunc(st.Members, func(m *skepv1.StackMember) bool { return m.Kind == kind && strings.EqualFold(m.Name, name) })
}

// summary says what a deploy changes, in words.
func summary(d deployment, ops []*stack.Op) string {
	var parts []string
	if d.rollbackTo != 0 {
		parts = append(parts, fmt.Sprintf("rollback to revision %d", d.rollbackTo))
	}
	for _, o := range ops {
		word := map[skepv1.StackChange_Verb]string{
			skepv1.StackChange_VERB_CREATE: "create", skepv1.StackChange_VERB_CHANGE: "change", skepv1.StackChange_VERB_REMOVE: "remove",
		}[o.Verb]
		if word == "" || o.Gone {
			continue
		}
		text := word + " " + o.Kind + " " + o.Name
		if len(o.Fields) > 0 {
			text += " (" + strings.Join(o.Fields, "; ") + ")"
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return "nothing changed"
	}
	return printable.Cut(strings.Join(parts, ", "), maxText)
}

// removeStack asks for everything that the stack's deploys made to go, and then the stack.
func (s *Service) removeStack(ctx context.Context, r *skepv1.RemoveStackRequest) (*skepv1.StackReply, error) {
	id, err := s.findStack(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	var st *skepv1.Stack
	err = s.retry(ctx, func() error {
		cur := s.ix.Stack(id)
		if cur == nil {
			return noSuch("stack", r.Ref, nil)
		}
		st = cur
		if cur.State == skepv1.StackState_STACK_STATE_REMOVING {
			return nil
		}
		st.State, st.Problems, st.Author, st.AuthorAddress = skepv1.StackState_STACK_STATE_REMOVING, nil, rpc.Asker(ctx), rpc.AskerAddress(ctx)
		st.Meta.UpdatedAt = timestamppb.Now()
		batch := s.spec.Batch()
		if err := putStack(batch, st, cur.Meta.Version); err != nil {
			return err
		}
		return s.commit(ctx, batch, func() bool {
			now := s.ix.Stack(id)
			return now == nil || now.State == skepv1.StackState_STACK_STATE_REMOVING
		})
	})
	if err != nil {
		return nil, err
	}
	return &skepv1.StackReply{Stack: st}, nil
}
