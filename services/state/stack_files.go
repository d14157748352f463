package state

import (
	"context"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	"skep.dev/libs/stack"
	skepv1 "skep.dev/proto/skep/v1"
)

// stackFiles has the vault look at every secret and config that the stack has or refers to. Those of its own must be in the
// vault already (but for a dry run), as members or with the stack's label.
func (s *Service) stackFiles(ctx context.Context, want *skepv1.StackSpec, cur *skepv1.Stack, dryRun bool) error {
	q := &skepv1.ResolveFilesRequest{}
	lists := []*[]*skepv1.FileReference{&q.Secrets, &q.Configs}
	var back [2][]*skepv1.FileReference // the references that are asked for, in order; nil for the stack's own
	auths := map[string]bool{}
	for i, l := range fileLists(want) {
		own := map[string]bool{}
		var foreign []string
		for _, f := range l.files {
			own[f.Name] = true
			if f.Id == "" && dryRun {
				continue
			}
			if f.Id == "" || f.Version == 0 {
				return fault.Invalid("%s %s of stack %s has no id and version: it is stored before the stack is", spec.KindWord(l.kind), f.Name, want.Name)
			}
			if !dryRun { // else the version is one that is still to be stored
				*lists[i] = append(*lists[i], &skepv1.FileReference{Id: f.Id, Name: f.Name, Version: f.Version})
				back[i] = append(back[i], nil)
			}
			if !isMember(cur, spec.KindWord(l.kind), f.Id) {
				foreign = append(foreign, f.Name)
			}
		}
		if err := s.mayAdopt(ctx, l.kind, foreign, want.Name); err != nil {
			return err
		}
		for _, sp := range want.Services {
			c := sp.GetTask().GetContainer()
			auths[c.GetRegistryAuth()] = true
			for _, f := range [][]*skepv1.FileReference{c.GetSecrets(), c.GetConfigs()}[i] {
				if !own[f.Name] {
					*lists[i], back[i] = append(*lists[i], proto.CloneOf(f)), append(back[i], f)
				}
			}
		}
	}
	delete(auths, "")
	all := slices.Sorted(maps.Keys(auths))
	if len(all) == 0 && len(q.Secrets)+len(q.Configs) > 0 {
		all = []string{""}
	}
	for _, auth := range all {
		q.RegistryAuth = auth
		r, err := api.Call(ctx, s.cfg.NC, api.FilesResolve, q)
		if err != nil {
			return err
		}
		for i, got := range [][]*skepv1.FileReference{r.Secrets, r.Configs} {
			for j, f := range got {
				if j >= len(back[i]) {
					break
				}
				if back[i][j] != nil {
					back[i][j].Name = f.Name
				} else if f.Name != (*lists[i])[j].Name {
					return fault.Invalid("%s is the id of %s, not of %s: it was renamed or replaced; deploy again", f.Id, f.Name, (*lists[i])[j].Name)
				}
			}
		}
		q.Secrets, q.Configs, back = nil, nil, [2][]*skepv1.FileReference{}
	}
	return nil
}

// mayAdopt refuses secrets and configs that another has made: those of a stack have its label.
func (s *Service) mayAdopt(ctx context.Context, kind skepv1.SecretKind, names []string, stackName string) error {
	if len(names) == 0 {
		return nil
	}
	verb := api.SecretList
	if kind == skepv1.SecretKind_SECRET_KIND_CONFIG {
		verb = api.ConfigList
	}
	page := &skepv1.Page{}
	for {
		r, err := api.Call(ctx, s.cfg.NC, verb, &skepv1.ListSecretsRequest{Filters: []*skepv1.Filter{{Key: "names", Values: names}}, Page: page})
		if err != nil {
			return err
		}
		for _, o := range r.Secrets {
			if o.GetSpec().GetLabels()[stack.Label] != stackName {
				return fault.Conflict("%s %s exists and is not of stack %s: declare it external, or name another", spec.KindWord(kind), o.GetSpec().GetName(), stackName)
			}
		}
		if r.Next == "" {
			return nil
		}
		page.After = r.Next
	}
}

func isMember(st *skepv1.Stack, kind, id string) bool {
	return slices.ContainsFunc(st.GetMembers(), func(m *skepv1.StackMember) bool { return m.Kind == kind && m.Id == id })
}
