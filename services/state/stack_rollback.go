package state

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

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
