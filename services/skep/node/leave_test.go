package node

import (
	"fmt"
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// TestAManagerIsToldWhatItsLeavingMeans: Swarm's words where it has some, and what --force does here.
func TestAManagerIsToldWhatItsLeavingMeans(t *testing.T) {
	const (
		loss    = "Removing this node leaves"
		restore = "--force-new-cluster"
		last    = "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message."
	)
	group := func(led bool, reachable ...bool) *skepv1.ListManagersReply {
		l := &skepv1.ListManagersReply{Set: &skepv1.ManagerSet{}, Led: led}
		for i, r := range reachable {
			id := fmt.Sprint("n", i)
			l.Set.Managers = append(l.Set.Managers, &skepv1.Manager{NodeId: id})
			l.Views = append(l.Views, &skepv1.ManagerView{NodeId: id, Reachable: r})
		}
		return l
	}
	lone, other := &Record{NodeID: "n0", Role: RoleManager}, &Record{NodeID: "n0", Role: RoleManager, Managers: []string{"10.0.0.2:2377"}}
	for name, c := range map[string]struct {
		rec       *Record
		list      *skepv1.ListManagersReply
		want, not []string
	}{
		"the only one":                  {lone, group(true, true), []string{last}, []string{restore, loss}},
		"the only one, stopped":         {lone, nil, []string{last}, []string{restore}},
		"the only one, just founded":    {lone, &skepv1.ListManagersReply{}, []string{last}, []string{restore}},
		"one of several, stopped":       {other, nil, []string{"Doing so may lose the consensus", restore}, []string{last}},
		"one of two":                    {other, group(true, true, true), []string{loss + " 1 managers out of 2", "the one manager that stays"}, []string{last}},
		"one of three":                  {other, group(true, true, true, true), []string{"demoted first", "2 managers stay", "not of either"}, []string{loss, last}},
		"one of three, another is away": {other, group(true, true, true, false), []string{loss + " 1 managers out of 3", "2 managers stay"}, []string{last}},
		"one of five":                   {other, group(true, true, true, true, true, true), []string{"4 managers stay, and 3 of them make a quorum"}, []string{loss}},
		"without a majority":            {other, group(false, true, false, false), []string{loss + " 0 managers out of 3", "no majority now", restore}, []string{"demoted first"}},
	} {
		text := managerLeaves(c.rec, c.list)
		if !strings.HasPrefix(text, "You are attempting to leave the swarm on a node that is participating as a manager. ") || !strings.Contains(text, "Use `--force` to") {
			t.Errorf("%s: %s", name, text)
		}
		for _, w := range c.want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: want %q in: %s", name, w, text)
			}
		}
		for _, w := range c.not {
			if strings.Contains(text, w) {
				t.Errorf("%s: do not want %q in: %s", name, w, text)
			}
		}
	}
}

func TestEvenNumbersCarryAWarning(t *testing.T) {
	for n, want := range map[int]string{2: "not of the first", 4: "4 managers survive the loss of 1, as 3 do", 6: "6 managers survive the loss of 2, as 5 do"} {
		if text := even(n); !strings.Contains(text, want) {
			t.Errorf("%d managers: %s", n, text)
		}
	}
}
