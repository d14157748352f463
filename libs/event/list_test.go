package event

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"skep.dev/libs/doctest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// page is the list as docs/events.md shows it.
func page() string {
	var b strings.Builder
	for _, kind := range subject.EventKinds() {
		if !slices.ContainsFunc(sorts, func(s Sort) bool { return s.Kind == kind }) {
			continue // a kind of an earlier version: the streams still keep what there is
		}
		fmt.Fprintf(&b, "### %s\n\n| verb | published | by | attributes | kept in |\n|---|---|---|---|---|\n", kind)
		for _, s := range sorts {
			if s.Kind == kind {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", s.Verb, s.Text, s.From, attributes(s), s.Stream())
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("### The message\n\n")
	d := (&skepv1.Event{}).ProtoReflect().Descriptor()
	fmt.Fprintf(&b, "`%s`, as JSON (`%s: %s`, `%s: %s`, `Nats-Msg-Id`: an id of the event):\n\n| number | field | type |\n|---|---|---|\n",
		d.FullName(), rpc.HeaderContentType, rpc.TypeJSON, rpc.HeaderType, d.FullName())
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		typ := f.Kind().String()
		switch {
		case f.IsMap():
			typ = fmt.Sprintf("map of %s to %s", f.MapKey().Kind(), f.MapValue().Kind())
		case f.Message() != nil:
			typ = string(f.Message().FullName())
		}
		fmt.Fprintf(&b, "| %d | `%s` | %s |\n", f.Number(), f.Name(), typ)
	}
	return b.String()
}

func attributes(s Sort) string {
	var out []string
	for _, a := range s.Attributes {
		if key, both := strings.CutSuffix(a, ".*"); both {
			key = strings.Replace(key, "*", "<label>", 1)
			a = key + ".old`, `" + key + ".new"
		}
		out = append(out, "`"+a+"`")
	}
	return strings.Join(out, ", ")
}

func TestThePageShowsTheEvents(t *testing.T) { doctest.TableOf(t, "events.md", "libs/event", page()) }

// The list and the streams know the same: each sort is kept by one stream, under one subject, and each verb that a stream
// names is one of the list.
func TestTheListIsWhatTheStreamsKeep(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range sorts {
		name := s.Kind + " " + s.Verb
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
		if s.Stream() == "" || !subject.EventKept(s.Kind, s.Verb) {
			t.Errorf("no stream keeps %s: name it in libs/subject", name)
		}
		if s.From == "" || s.Text == "" || strings.ContainsAny(s.Kind+s.Verb, ". *>") {
			t.Errorf("%s: by %q, %q", name, s.From, s.Text)
		}
	}
	for _, stream := range []string{subject.EventStream, subject.NodeEventStream} {
		for _, on := range subject.EventSubjects(stream, "node") {
			if verb := on[strings.LastIndexByte(on, '.')+1:]; !seen["node "+verb] {
				t.Errorf("stream %s keeps verb %s of nodes, which nothing has", stream, verb)
			}
		}
	}
}

func TestMay(t *testing.T) {
	s := Sort{Attributes: []string{"name", "image.*", "label.*.*"}}
	for a, want := range map[string]bool{
		"name": true, "image.old": true, "image.new": true, "label.zone.old": true, "label.a.b.new": true,
		"image": false, "image.x": false, "name.old": false, "label.zone": false, "": false, "other": false,
	} {
		if s.May(a) != want {
			t.Errorf("%q: %v", a, !want)
		}
	}
}
