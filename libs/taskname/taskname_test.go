package taskname

import (
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestExpand(t *testing.T) {
	n := Of("node1", "w1", "amd64", &skepv1.TaskRecord{Id: "t1", ServiceId: "s1", Slot: 3}, &skepv1.ServiceSpec{Name: "web", Labels: map[string]string{"tier": "db"}})
	for text, want := range map[string]string{
		"data": "data", "data-{{.Task.Slot}}": "data-3", "data-{{ .Task.Slot }}": "data-3", `{{join "-" .Service.Name .Node.Hostname}}`: "web-w1",
		`{{index .Service.Labels "tier"}}`: "db", "{{.Task.Name}}": "web.3.t1",
	} {
		if got, err := n.Expand(text); got != want || err != nil {
			t.Errorf("%s: %q, %v", text, got, err)
		}
		if _, err := Plain(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	if g := Of("node1", "w1", "amd64", &skepv1.TaskRecord{Id: "t1"}, nil); g.Task.Slot != "node1" {
		t.Errorf("a task of a global service has slot %s", g.Task.Slot)
	}
}

// What could cost a manager time or memory, or is no name at all.
func TestPlainRefuses(t *testing.T) {
	for _, text := range []string{
		`{{printf "%1000000000d" 1}}`, "{{range .Service.Labels}}x{{end}}", "{{with .Task}}{{.Slot}}{{end}}", `{{define "a"}}{{end}}x`, "{{.Task.Slot",
		"{{$x := .Task.Slot}}{{$x}}", "{{.Task.Slot | html}}", "{{if .Task.Slot}}a{{end}}", "{{(index .Service.Labels .Task.Slot)}}", `{{block "a" .}}{{end}}`,
	} {
		if _, err := Plain(text); err == nil {
			t.Errorf("%s is plain", text)
		}
	}
	for text, want := range map[string]bool{"{{.Node.ID}}": true, `{{join "" .Task.Slot .Node.Hostname}}`: true, "{{.Task.Slot}}": false, "x": false} {
		if got, err := Plain(text); got != want || err != nil {
			t.Errorf("%s: of the node %v, %v", text, got, err)
		}
	}
	if _, err := Plain(strings.Repeat("{{.Task.Slot}}", 3)); err != nil {
		t.Error(err)
	}
}
