package state

import (
	"slices"
	"strings"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// Swarm's words.
const (
	lastManager = "attempting to demote the last manager of the swarm"
	lossOfMost  = "can't remove member from the raft: this would result in a loss of quorum"
)

// standing is what decides whether the managers can do without one of them.
type standing struct {
	group     *skepv1.ManagerSet // nil: the bus has not written it down, then only the nodes' specs count
	desired   []string           // the nodes that are to be managers
	reachable map[string]bool
	witness   map[string]bool // nodes that vote and serve nothing
	name      func(node string) string
}

func (s *Service) standing() standing {
	return standing{group: s.ix.ManagerSet(), desired: s.ix.Desired(), reachable: s.ix.Reachable(), witness: s.ix.Witnesses(), name: s.nameOf}
}

// nameOf is what people call a node.
func (s *Service) nameOf(id string) string {
	if h := s.ix.Hostname(id); h != "" {
		return h
	}
	return id
}

// votes reports whether a manager keeps the store.
func (st standing) votes(id string) bool {
	return slices.ContainsFunc(st.group.GetManagers(), func(m *skepv1.Manager) bool {
		return m.NodeId == id && m.State == skepv1.ManagerState_MANAGER_STATE_VOTER
	})
}

// in reports whether a manager is in the group, or on its way in or out.
func (st standing) in(id string) bool {
	return slices.ContainsFunc(st.group.GetManagers(), func(m *skepv1.Manager) bool { return m.NodeId == id })
}

// without refuses that a manager goes when none would stay, or too few of those that stay are there to go on; else it names
// one that stays. Those that are about to leave already do not count as staying.
func (st standing) without(id string) (stays string, err error) {
	others := slices.DeleteFunc(slices.Clone(st.desired), func(m string) bool { return m == id })
	if len(others) == 0 {
		return "", fault.Invalid(lastManager)
	}
	if serves := func(m string) bool { return !st.witness[m] }; !st.witness[id] && !slices.ContainsFunc(others, serves) {
		return "", fault.Invalid("%s: only witnesses would stay, which have no services", lastManager)
	}
	if st.group == nil {
		return others[0], nil
	}
	stay := slices.DeleteFunc(others, func(m string) bool { return !st.votes(m) })
	if len(stay) == 0 {
		return "", fault.Invalid("%s: no other manager keeps the store yet; wait until skep node ls shows one as Reachable", lossOfMost)
	}
	if !st.votes(id) {
		return stay[0], nil // the store does not notice
	}
	var missing []string
	for _, m := range stay {
		if !st.reachable[m] {
			missing = append(missing, st.name(m))
		}
	}
	if live := len(stay) - len(missing); live*2 <= len(stay) {
		return "", fault.Invalid("%s: of the %d managers that would stay, %s cannot be reached; bring them back, or remove for good what does not come back with skep node rm --force", lossOfMost, len(stay), strings.Join(missing, ", "))
	}
	return stay[0], nil
}
