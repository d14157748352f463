package render

import (
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// A witness is told from a manager wherever the managers are shown.
func TestManagerStatus(t *testing.T) {
	for want, n := range map[string]*skepv1.Node{
		"":                      {},
		"No vote (witness)":     {Witness: true},
		"Leader":                {Manager: &skepv1.ManagerStatus{Leader: true, Reachability: "reachable"}},
		"Reachable":             {Manager: &skepv1.ManagerStatus{Reachability: "reachable"}},
		"Reachable (witness)":   {Witness: true, Manager: &skepv1.ManagerStatus{Witness: true, Reachability: "reachable"}},
		"Unreachable (witness)": {Witness: true, Manager: &skepv1.ManagerStatus{Witness: true, Reachability: "unreachable"}},
		"Leader (witness)":      {Witness: true, Manager: &skepv1.ManagerStatus{Witness: true, Leader: true, Reachability: "reachable"}},
	} {
		if got := ManagerStatus(n); got != want {
			t.Errorf("%v is shown as %q, want %q", n, got, want)
		}
	}
}
