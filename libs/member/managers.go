package member

import (
	"fmt"
	"slices"

	skepv1 "skep.dev/proto/skep/v1"
)

// Addrs are where nodes and people reach the managers of a set, host:port, for somebody at node's: its own address first. A
// witness is not named: it has nothing for them. A manager that is not in the group yet, or about to leave it, is not named
// either; unless there is no other.
func Addrs(set *skepv1.ManagerSet, node string) []string {
	rank := func(m *skepv1.Manager) int {
		if m.NodeId == node {
			return 0
		}
		return 1
	}
	var in, all []*skepv1.Manager
	for _, m := range set.GetManagers() {
		if m.GetAddr() == "" || m.GetBare() {
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

// Advice says what is wrong with a number of managers, "" when nothing is.
func Advice(managers int) string {
	switch {
	case managers == 2:
		return "two managers are no safer than one: losing the one that leads stops every change until it is back. Add a third (skep node promote, or skep join with the managers' token; with --witness it only votes), or demote one"
	case managers > 0 && managers%2 == 0:
		return fmt.Sprintf("%d managers bear the loss of no more of them than %d would: add one, or demote one", managers, managers-1)
	}
	return ""
}
