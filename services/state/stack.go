package state

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
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

// removeStack asks for everything that the stack's deploys made to go, and then the stack.
func (s *Service) removeStack(ctx context.Context, r *skepv1.RemoveStackRequest) (*skepv1.StackReply, error) {
	id, err := s.findStack(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	var st *skepv1.Stack
	begun := false
	err = s.retry(ctx, func() error {
		cur := s.ix.Stack(id)
		if cur == nil && begun {
			return nil // gone already
		}
		if cur == nil {
			return noSuch("stack", r.Ref, nil)
		}
		st = cur
		if cur.State == skepv1.StackState_STACK_STATE_REMOVING {
			return nil
		}
		begun = true
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
	if begun {
		s.events.send(ctx, stackEvent(st, "remove"))
	}
	return &skepv1.StackReply{Stack: st}, nil
}
