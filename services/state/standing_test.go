package state

import (
	"fmt"
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestStanding(t *testing.T) {
	const joining, voter, leaving = skepv1.ManagerState_MANAGER_STATE_JOINING, skepv1.ManagerState_MANAGER_STATE_VOTER, skepv1.ManagerState_MANAGER_STATE_LEAVING
	group := func(text string) *skepv1.ManagerSet { // a voter, b- leaving, c+ joining
		set := &skepv1.ManagerSet{}
		for _, f := range strings.Fields(text) {
			m := &skepv1.Manager{NodeId: f[:1], State: voter}
			switch f[1:] {
			case "-":
				m.State = leaving
			case "+":
				m.State = joining
			}
			set.Managers = append(set.Managers, m)
		}
		return set
	}
	const loss = lossOfMost + ": "
	for _, c := range []struct {
		name             string
		group            *skepv1.ManagerSet
		desired, up, who string
		stays, err       string
	}{
		{"the last", group("a"), "a", "a", "a", "", lastManager},
		{"the last, no group", nil, "a", "", "a", "", lastManager},
		{"of two, no group", nil, "a b", "", "a", "b", ""},
		{"one of two", group("a b"), "a b", "a b", "a", "b", ""},
		{"the dead one of two", group("a b"), "a b", "a", "b", "a", ""},
		{"the live one of two", group("a b"), "a b", "a", "a", "", loss + "of the 1 managers that would stay, B cannot be reached"},
		{"the dead one of three", group("a b c"), "a b c", "a b", "c", "a", ""},
		{"a live one of three with one dead", group("a b c"), "a b c", "a b", "a", "", loss + "of the 2 managers that would stay, C cannot be reached"},
		{"a live one of five with one dead", group("a b c d e"), "a b c d e", "a b c d", "a", "b", ""},
		{"a live one of five with two dead", group("a b c d e"), "a b c d e", "a b c", "a", "", loss + "of the 4 managers that would stay, D, E cannot be reached"},
		{"the other only comes", group("a b+"), "a b", "a b", "a", "", loss + "no other manager keeps the store yet"},
		{"the other is not there yet", group("a"), "a b", "a", "a", "", loss + "no other manager keeps the store yet"},
		{"who only comes", group("a b+"), "a b", "a", "b", "a", ""},
		{"the other goes already", group("a b- c"), "a c", "a b c", "a", "c", ""},
		{"all others go already", group("a b- c-"), "a", "a b c", "a", "", lastManager},
	} {
		up := map[string]bool{}
		for _, m := range strings.Fields(c.up) {
			up[m] = true
		}
		st := standing{group: c.group, desired: strings.Fields(c.desired), reachable: up, name: strings.ToUpper}
		stays, err := st.without(c.who)
		text := ""
		if err != nil {
			text = fmt.Sprint(err)
		}
		if stays != c.stays || !strings.HasPrefix(text, c.err) || c.err == "" && text != "" {
			t.Errorf("%s: %q, %q; want %q, %q", c.name, stays, text, c.stays, c.err)
		}
	}
}
