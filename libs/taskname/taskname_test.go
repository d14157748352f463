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

// What could hang a node or a manager, or fill its memory, is refused or ends with an error.
func TestExpandIsBounded(t *testing.T) {
	n := Example("web", map[string]string{"a": strings.Repeat("x", 1000)})
	grow := `{{$a := "xxxxxxxxxxxxxxxx"}}` + strings.Repeat(`{{$a = printf "`+strings.Repeat("%[1]s", 50)+`" $a}}`, 6)
	double := `{{$a := "xxxxxxxxxxxxxxxx"}}` + strings.Repeat(`{{$a = print $a $a}}`, 40)
	joins := `{{$a := "xxxxxxxxxxxxxxxx"}}` + strings.Repeat(`{{$a = join $a $a $a $a}}`, 40)
	html := `{{$a := "&&&&&&&&&&&&&&&&"}}` + strings.Repeat(`{{$a = html $a $a $a}}`, 40)
	for _, text := range []string{
		`{{printf "%1000000000d" 1}}`, `{{printf "%*d" 1000000000 1}}`, grow, double, joins, html, strings.Repeat(`{{index .Service.Labels "a"}}`, 100),
		"{{range 1000000000}}x{{end}}", "{{range .Service.Labels}}{{range .Service.Labels}}x{{end}}{{end}}", `{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`,
	} {
		if got, err := n.Expand(text); err == nil {
			t.Errorf("%.60q: %d bytes", text, len(got))
		}
	}
	for text, want := range map[string]string{
		`{{printf "%s-%03d" .Service.Name 7}}`: "web-007", "{{range $k, $v := .Service.Labels}}{{$k}}{{end}}": "a", `{{if eq .Task.Slot "1"}}first{{else}}other{{end}}`: "first",
		`{{"{{"}} toJSON .Data }}`: "{{ toJSON .Data }}", "{{/* nothing */}}": "", `{{.Service.Name | html}}`: "web", `{{print .Service.Name "x"}}`: "webx",
	} {
		if got, err := n.Expand(text); err != nil || got != want {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"{{ toJSON .Data }}", "{{", "a{{b}}c{{"} {
		if got, err := n.Expand(Literal(text)); err != nil || got != text {
			t.Errorf("%s written as %s: %q, %v", text, Literal(text), got, err)
		}
	}
}
