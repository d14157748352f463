package state

import (
	"slices"

	"skep.dev/libs/stack"
	skepv1 "skep.dev/proto/skep/v1"
)

// planStack plans a revision of a stack (nil: it is to go) over what there is. was is what the lines of secrets compare with.
func (s *Service) planStack(st *skepv1.Stack, rev *skepv1.StackRevision, was *skepv1.StackSpec) ([]*stack.Op, error) {
	return stack.Plan(stack.Input{
		Want: rev.GetSpec(), Was: was, Members: st.GetMembers(), Exact: rev.GetRollbackTo() != 0, Prune: s.prunes(st, rev),
		Have: stack.Have{
			Service: func(name string) *skepv1.Service {
				id, _ := s.ix.ServiceByName(name)
				return s.ix.Service(id)
			},
			Network: func(name string) *skepv1.Network {
				id, _ := s.ix.NetworkByName(name)
				return s.ix.Network(id)
			},
			ServiceName: s.ix.ServiceName,
			NetworkName: func(id string) string { st, _ := s.ix.NetworkState(id); return st.Name },
		},
	})
}

// prunes says which members go that a revision does not have: all when it was asked for; on the way back to an older revision
// those that came after it. A secret or config stays as long as services that stay could go back to it.
func (s *Service) prunes(st *skepv1.Stack, rev *skepv1.StackRevision) func(*skepv1.StackMember) bool {
	if rev == nil {
		return func(*skepv1.StackMember) bool { return true }
	}
	later := map[string]bool{}
	for _, r := range s.ix.StackRevisions(rev.StackId) {
		if rev.RollbackTo == 0 || r.Number <= rev.RollbackTo || r.Number >= rev.Number {
			continue
		}
		sp := s.ix.StackRevision(rev.StackId, r.Number).GetSpec()
		for _, m := range memberNames(sp) {
			later[m] = true
		}
	}
	goes := func(m *skepv1.StackMember) bool { return rev.Prune || later[m.Kind+" "+m.Name] }
	wanted := memberNames(rev.Spec)
	return func(m *skepv1.StackMember) bool {
		if !goes(m) {
			return false
		}
		if m.Kind != stack.Secret && m.Kind != stack.Config {
			return true
		}
		return !slices.ContainsFunc(s.ix.Referring(m.Id), func(service string) bool {
			i := slices.IndexFunc(st.GetMembers(), func(o *skepv1.StackMember) bool { return o.Kind == stack.Service && o.Id == service })
			return i < 0 || !goes(st.Members[i]) || slices.Contains(wanted, stack.Service+" "+st.Members[i].Name)
		})
	}
}

// memberNames are the kinds and names of what a spec asks for.
func memberNames(sp *skepv1.StackSpec) (out []string) {
	for _, x := range sp.GetServices() {
		out = append(out, stack.Service+" "+x.Name)
	}
	for _, x := range sp.GetNetworks() {
		out = append(out, stack.Network+" "+x.Name)
	}
	for _, l := range fileLists(sp) {
		for _, f := range l.files {
			out = append(out, stack.Kind(l.kind)+" "+f.Name)
		}
	}
	return out
}
