package translate

import (
	"maps"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/event"
	skepv1 "skep.dev/proto/skep/v1"
)

// TestEvents in Docker's form.
func TestEvents(t *testing.T) {
	at := timestamppb.New(born)
	for _, c := range []struct {
		e    *skepv1.Event
		want string
	}{
		{&skepv1.Event{Kind: "service", Id: "s1", Name: "web", Verb: "update", Time: at, Attributes: map[string]string{"replicas.old": "1", "replicas.new": "2"}, Actor: "user-ann", Address: "10.0.0.9", Message: "text"},
			`{"Type":"service","Action":"update","Actor":{"ID":"s1","Attributes":{"name":"web","replicas.new":"2","replicas.old":"1"}},"scope":"swarm","time":1796032800,"timeNano":1796032800000000005}`},
		{&skepv1.Event{Kind: "service", Id: "s1", Name: "web", Verb: "update", Time: at, Attributes: map[string]string{"updatestate.new": "canary"}},
			`{"Type":"service","Action":"update","Actor":{"ID":"s1","Attributes":{"name":"web","updatestate.new":"paused"}},"scope":"swarm","time":1796032800,"timeNano":1796032800000000005}`},
		{&skepv1.Event{Kind: "node", Id: "n1", Name: "m1", Verb: "down", Time: at, Attributes: map[string]string{"state.old": "ready", "state.new": "down"}},
			`{"Type":"node","Action":"update","Actor":{"ID":"n1","Attributes":{"name":"m1","state.new":"down","state.old":"ready"}},"scope":"swarm","time":1796032800,"timeNano":1796032800000000005}`},
	} {
		before := maps.Clone(c.e.Attributes)
		got, ok := EventToDocker(c.e)
		if s := asJSON(t, got); !ok || s != c.want {
			t.Errorf("got\n%s, want\n%s", s, c.want)
		}
		if !maps.Equal(before, c.e.Attributes) {
			t.Error("the event was changed")
		}
	}
}

// TestWhichEventsDockerHas: of all that skep publishes, with no reading of secrets and nothing of users and their tokens among it.
func TestWhichEventsDockerHas(t *testing.T) {
	told := map[string]bool{}
	for _, k := range event.Sorts() {
		m, ok := EventToDocker(&skepv1.Event{Kind: k.Kind, Verb: k.Verb, Actor: "user-ann", Address: "10.0.0.9"})
		if !ok {
			continue
		}
		told[k.Kind+"."+k.Verb] = true
		if s := asJSON(t, m); strings.Contains(s, "user-ann") || strings.Contains(s, "10.0.0.9") {
			t.Errorf("%s tells who did it: %s", k.Kind, s)
		}
		if k.Kind == "task" || k.Kind == "user" || k.Kind == "registry" || k.Kind == "cluster" || k.Verb == "read" || k.Verb == "deliver" {
			t.Errorf("%s %s is told", k.Kind, k.Verb)
		}
	}
	for kind, verbs := range eventActions {
		for verb := range verbs {
			if !told[kind+"."+verb] {
				t.Errorf("%s %s is in the list, and nobody publishes it", kind, verb)
			}
		}
	}
}
