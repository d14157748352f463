package member

import (
	"slices"

	skepv1 "skep.dev/proto/skep/v1"
)

// Addrs are where nodes and people reach the managers of a set, host:port, for somebody at node's: its own address first,
// those that only run a broker last. A manager that is not in the group yet, or about to leave it, is not named; unless there
// is no other.
func Addrs(set *skepv1.ManagerSet, node string) []string {
	rank := func(m *skepv1.Manager) int {
		switch {
		case m.Bare:
			return 2
		case m.NodeId == node:
			return 0
		}
		return 1
	}
	var in, all []*skepv1.Manager
	for _, m := range set.GetManagers() {
		if m.GetAddr() == "" {
			continue
		}
		all = append(all, m)
		if m.State == skepv1.ManagerState_MANAGER_STATE_VOTER {
			in = append(in, m)
		}
	}
	if len(in) == 0 {
		in = all
	}
	slices.SortStableFunc(in, func(a, b *skepv1.Manager) int { return rank(a) - rank(b) })
	out := make([]string, len(in))
	for i, m := range in {
		out[i] = m.Addr
	}
	return out
}
