package translate

import (
	"maps"

	"github.com/moby/moby/api/types/events"

	skepv1 "skep.dev/proto/skep/v1"
)

// eventActions are the events that Docker has, by kind and verb. It tells of no tasks, clusters and users, and of no reading
// of secrets.
var eventActions = map[string]map[string]events.Action{
	"service": {"create": events.ActionCreate, "update": events.ActionUpdate, "remove": events.ActionRemove, "run": events.ActionUpdate},
	"node": {"create": events.ActionCreate, "update": events.ActionUpdate, "remove": events.ActionRemove, "ready": events.ActionUpdate,
		"down": events.ActionUpdate, "disconnected": events.ActionUpdate, "unknown": events.ActionUpdate},
	"network": {"create": events.ActionCreate, "remove": events.ActionRemove},
	"secret":  {"create": events.ActionCreate, "update": events.ActionUpdate, "remove": events.ActionRemove, "restore": events.ActionCreate},
	"config":  {"create": events.ActionCreate, "update": events.ActionUpdate, "remove": events.ActionRemove, "restore": events.ActionCreate},
}

// KindContainer is the kind of events of this node's containers, which the cluster does not have; their verbs are Docker's actions.
const KindContainer = "container"

// EventToDocker is an event of the cluster in Docker's form; false: Docker has no such event. Who did it is not told.
func EventToDocker(e *skepv1.Event) (events.Message, bool) {
	action, ok := eventActions[e.GetKind()][e.GetVerb()]
	scope := scopeSwarm
	if e.GetKind() == KindContainer {
		action, ok, scope = events.Action(e.GetVerb()), true, "local"
	}
	if !ok {
		return events.Message{}, false
	}
	attributes := filled(maps.Clone(e.GetAttributes()))
	if _, has := attributes["name"]; !has {
		attributes["name"] = e.GetName()
	}
	for _, k := range []string{"updatestate.old", "updatestate.new"} {
		if s, has := attributes[k]; has {
			attributes[k] = string(updateState(s))
		}
	}
	out := events.Message{Type: events.Type(e.GetKind()), Action: action, Actor: events.Actor{ID: e.GetId(), Attributes: attributes}, Scope: scope}
	if e.GetTime() != nil {
		out.Time, out.TimeNano = e.GetTime().GetSeconds(), e.GetTime().AsTime().UnixNano()
	}
	return out, true
}

// LegacyEvent is an event with what clients older than 1.52 read of those of containers and images.
type LegacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

// EventFor is an event for a client of a version, to be encoded as JSON.
func EventFor(m events.Message, v Version) any {
	if !v.Before(52) {
		return m
	}
	switch m.Type {
	case events.ContainerEventType:
		return LegacyEvent{Status: string(m.Action), ID: m.Actor.ID, From: m.Actor.Attributes["image"], Message: m}
	case events.ImageEventType:
		return LegacyEvent{Status: string(m.Action), ID: m.Actor.ID, Message: m}
	}
	return m
}
