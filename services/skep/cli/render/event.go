package render

import (
	"io"

	skepv1 "skep.dev/proto/skep/v1"
)

// dockerEvent is an event in the form of Docker's API. What Docker has not comes after: the object's id and name, who did it, and
// what there is to say.
type dockerEvent struct {
	Type     string
	Action   string
	Actor    eventActor
	Scope    string `json:"scope"`
	Time     int64  `json:"time"`
	TimeNano int64  `json:"timeNano"`

	ID      string `json:"-"`
	Name    string `json:"-"`
	By      string `json:",omitempty"`
	Address string `json:",omitempty"`
	Message string `json:",omitempty"`
}

// eventActor is what an event is about, in Docker's words.
type eventActor struct {
	ID         string
	Attributes map[string]string
}

// EventAttributes are an event's with the object's name, which Docker has among them.
func EventAttributes(e *skepv1.Event) map[string]string {
	out := map[string]string{}
	if e.Name != "" {
		out["name"] = e.Name
	}
	for k, v := range e.Attributes {
		out[k] = v
	}
	return out
}

// DockerEvent is an event in the form of Docker's API.
func DockerEvent(e *skepv1.Event) any {
	out := dockerEvent{Type: e.GetKind(), Action: e.GetVerb(), Actor: eventActor{e.GetId(), EventAttributes(e)}, Scope: "swarm", ID: e.GetId(), Name: e.GetName(),
		By: e.GetActor(), Address: e.GetAddress(), Message: e.GetMessage()}
	if e.GetTime() != nil {
		out.Time, out.TimeNano = e.Time.GetSeconds(), e.Time.AsTime().UnixNano()
	}
	return out
}

// EventPrinter is what prints events in a format: "json", one object a line, or a template, whose mistakes are found here.
func EventPrinter(w io.Writer, format string) (func(*skepv1.Event) error, error) {
	if format == "json" || format == "{{json .}}" {
		return func(e *skepv1.Event) error { return writeJSONLine(w, DockerEvent(e)) }, nil
	}
	tp, err := NewTemplate(unescape(format))
	if err != nil {
		return nil, &ErrFormat{err}
	}
	if err := Execute(io.Discard, tp, DockerEvent(&skepv1.Event{})); err != nil {
		return nil, err
	}
	return func(e *skepv1.Event) error { return Execute(w, tp, DockerEvent(e)) }, nil
}
