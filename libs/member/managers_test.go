package member

import (
	"slices"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestAddrs(t *testing.T) {
	const joining, voter, leaving = skepv1.ManagerState_MANAGER_STATE_JOINING, skepv1.ManagerState_MANAGER_STATE_VOTER, skepv1.ManagerState_MANAGER_STATE_LEAVING
	set := func(ms ...*skepv1.Manager) *skepv1.ManagerSet { return &skepv1.ManagerSet{Managers: ms} }
	m := func(node string, st skepv1.ManagerState, bare bool) *skepv1.Manager {
		return &skepv1.Manager{NodeId: node, Addr: node + ":2377", State: st, Bare: bare}
	}
	for name, c := range map[string]struct {
		set  *skepv1.ManagerSet
		at   string
		want []string
	}{
		"none":                      {nil, "a", nil},
		"one":                       {set(m("a", voter, false)), "b", []string{"a:2377"}},
		"one's own first":           {set(m("a", voter, false), m("b", voter, false), m("c", voter, false)), "b", []string{"b:2377", "a:2377", "c:2377"}},
		"no witness":                {set(m("a", voter, true), m("b", voter, false)), "a", []string{"b:2377"}},
		"not even alone":            {set(m("a", voter, true)), "a", nil},
		"nobody who is not a voter": {set(m("a", leaving, false), m("b", voter, false), m("c", joining, false)), "c", []string{"b:2377"}},
		"unless there is no other":  {set(m("a", joining, false)), "", []string{"a:2377"}},
		"without an address":        {set(&skepv1.Manager{NodeId: "a", State: voter}, m("b", voter, false)), "a", []string{"b:2377"}},
	} {
		if got := Addrs(c.set, c.at); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestAdvice(t *testing.T) {
	for n := range 8 {
		if got := Advice(n); (got != "") != (n > 0 && n%2 == 0) {
			t.Errorf("of %d managers: %q", n, got)
		}
	}
}
