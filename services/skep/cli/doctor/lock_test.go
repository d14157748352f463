package doctor

import (
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestLock(t *testing.T) {
	node := func(id string, manager bool) *skepv1.Node {
		n := &skepv1.Node{Meta: &skepv1.Meta{Id: id}}
		if manager {
			n.Manager = &skepv1.ManagerStatus{}
		}
		return n
	}
	key := func(id string) *skepv1.UnlockKeyInfo { return &skepv1.UnlockKeyInfo{Id: id} }
	lock := func(id string, locked bool, k *skepv1.UnlockKeyInfo) *skepv1.ManagerLock {
		return &skepv1.ManagerLock{NodeId: id, Hostname: "host-" + id, Locked: locked, Key: k}
	}
	on := func(m ...*skepv1.ManagerLock) *skepv1.AutolockState {
		return &skepv1.AutolockState{On: true, Key: key("k2"), Managers: m}
	}
	for name, c := range map[string]struct {
		lock   *skepv1.AutolockState
		status Status
		text   string
	}{
		"nobody says":           {nil, "", ""},
		"off":                   {&skepv1.AutolockState{Managers: []*skepv1.ManagerLock{lock("a", false, nil)}}, "", ""},
		"on":                    {on(lock("a", false, key("k2")), lock("b", false, key("k2"))), OK, "autolock is on, 2 managers unlocked"},
		"the only one":          {on(lock("a", true, key("k2"))), Error, "locked: host-a waits for the unlock key"},
		"one of two":            {on(lock("a", true, key("k2")), lock("b", false, key("k2"))), Warn, "host-a waits for the unlock key"},
		"an old key":            {on(lock("a", false, key("k1")), lock("b", false, key("k2"))), Warn, "the disk of host-a does not follow"},
		"in clear":              {on(lock("a", false, nil)), Warn, "the disk of host-a does not follow"},
		"one that left, locked": {on(lock("gone", true, key("k1")), lock("a", false, key("k2"))), OK, "1 manager unlocked"},
	} {
		d := &exam{Picture: Picture{Lock: c.lock, After: Stored{Nodes: []*skepv1.Node{node("a", true), node("b", true), node("gone", false)}}}}
		d.lock()
		switch {
		case c.text == "" && len(d.out) != 0:
			t.Errorf("%s: %v", name, d.out)
		case c.text != "" && (len(d.out) != 1 || d.out[0].Status != c.status || d.out[0].Check != "secrets" || !strings.Contains(d.out[0].Text, c.text)):
			t.Errorf("%s: %v", name, d.out)
		}
	}
}
