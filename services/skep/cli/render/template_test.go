package render

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"text/template"

	"skep.dev/libs/printable"
	"skep.dev/services/skep/cli/plain"
)

const evil = "x\x1b[2J\nFORGED\t\u009b\u202e"

// someone is what templates are tried on.
type someone struct {
	Name    string
	Count   *uint64
	Gone    *uint64
	Labels  map[string]string
	List    []string
	State   spoken
	Any     any
	private string
}

type spoken string

func (s spoken) String() string { return "state " + string(s) }

func subject() someone {
	n := uint64(3)
	return someone{Name: evil, Count: &n, Labels: map[string]string{"k": evil}, List: []string{"a", evil}, State: evil, Any: evil, private: evil}
}

// TestTemplates: ends of lines and tabs of a template are its own, those of values are not; json is exact.
func TestTemplates(t *testing.T) {
	const cell = `x\x1b[2J\nFORGED\t\u009b\u202e`
	for text, want := range map[string]string{
		"{{.Name}}":                                        cell,
		"a\n{{.Name}}\tb":                                  "a\n" + cell + "\tb",
		"{{println .Name}}":                                cell + "\n",
		"{{.Name | println}}":                              cell + "\n",
		`{{printf "%s\n%5d|%-2s" .Name 7 "é"}}`:            cell + "\n    7|é ",
		`{{print .Name " " .Count}}`:                       cell + " 3",
		`{{join .List "\n"}}`:                              "a\n" + cell,
		`{{"a\n"}}`:                                        "a\n",
		"{{.Count}} {{.State}}":                            "3 state " + cell,
		"{{.Gone}}":                                        "<nil>",
		"{{.Any}}":                                         cell,
		"{{index .Labels `k`}}{{index .List 0}}":           cell + "a",
		"{{.List}}":                                        "[a " + cell + "]",
		"{{range .List}}{{.}};{{else}}-{{end}}":            "a;" + cell + ";",
		"{{with .Name}}{{. | upper}}{{end}}":               strings.ToUpper("x") + `\x1b[2J\nFORGED\t\u009b\u202e`,
		"{{if .Name}}{{$x := .Name}}{{$x}}{{end}}":         cell,
		`{{define "t"}}{{.}}{{end}}{{template "t" .Name}}`: cell,
		`{{block "b" .Name}}{{.}}{{end}}`:                  cell,
		"{{html .Name}}":                                   cell,
		"{{truncate .Name 2}}":                             `x\x1b`,
		`{{pad "a" 1 2}}{{title "über"}}{{title ""}}{{lower "A"}}`: " a  Übera",
		"{{json .Name}}":                 `"x\u001b[2J\nFORGED\t\u009b\u202e"`,
		"{{.Name | json | printf `%s`}}": `"x\u001b[2J\nFORGED\t\u009b\u202e"`,
		"{{len .Name}}":                  "18",
		"{{.Name}}{{/* c */}}{{`\n`}}":   cell + "\n",
	} {
		tp, err := NewTemplate(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var b bytes.Buffer
		if err := tp.Execute(&b, subject()); err != nil || b.String() != want {
			t.Errorf("%s: %q %v, want %q", text, b.String(), err, want)
		}
	}
	for _, text := range []string{`{{pad "a" -1 0}}`, `{{pad "a" 0 999999999}}`, `{{truncate "a" -1}}`, "{{.private}}", "{{.Nope}}"} {
		var fe *ErrFormat
		if tp, err := NewTemplate(text); err != nil || !errors.As(Execute(&bytes.Buffer{}, tp, subject()), &fe) {
			t.Errorf("%s is not refused", text)
		}
	}
	if _, err := NewTemplate("{{" + cellFunc + "x .}}"); err == nil {
		t.Error("a function that is none")
	}
}

// TestLongCells: one endless value does not push the columns behind it off the screen, and the last one is whole.
func TestLongCells(t *testing.T) {
	long := strings.Repeat("x", 5000)
	tab := &Table{Columns: []Column{{"Hostname", "HOSTNAME"}, {"Image", "IMAGE"}, {"Text", "TEXT"}}, Rows: []Row{{"Hostname": long, "Image": long, "Text": long}}}
	show := func(format string) string {
		var b bytes.Buffer
		if err := tab.Print(&b, format, false); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if f := strings.Fields(strings.Split(show(""), "\n")[1]); len(f) != 3 || f[0] != long[:MaxName-1]+"…" || f[1] != long[:maxCell-1]+"…" || f[2] != long {
		t.Errorf("%d characters", len(f[0]))
	}
	for _, format := range []string{"{{.Hostname}}", "table {{.Hostname}}\t{{.Image}}", "json"} {
		if !strings.Contains(show(format), long) {
			t.Errorf("%s is cut", format)
		}
	}
	tab.Wide = true
	if !strings.HasPrefix(strings.Split(show(""), "\n")[1], long) {
		t.Error("--no-trunc cuts")
	}
}

// FuzzTemplate: whatever a --format says, it is refused, or what it makes of hostile values holds no character that
// steers a terminal but ends of lines and tabs; and those only if the template has them.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"{{.Name}}", "table {{.Name}}\t{{.List}}", `{{range $i, $x := .List}}{{if $i}}, {{end}}{{$x}}{{end}}`, `{{with .Labels}}{{.k}}{{else}}-{{end}}`, "{{json .}}", "{{printf `%q %v` .Name .Count}}",
		`{{define "a"}}{{.}}{{end}}{{template "a" .Any}}`, `{{pad .Name 3 3 | truncate 2}}`, "{{split .Name `\n` | join `,`}}", "{{.Any.Nope}}", "{{slice .Name 1 2 | html | js | urlquery}}", "{{while .}}", "{{break}}"} {
		f.Add(s)
	}
	value, plainValue := subject(), someone{Name: "web", Labels: map[string]string{"k": "v"}, List: []string{"a", "ü"}, State: "up", Any: 1.5}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "template") || strings.Contains(text, "block") || strings.Contains(text, "range") && strings.ContainsAny(text, "0123456789") {
			return // what calls itself or counts takes as long as it says; TestTemplates has them
		}
		tp, err := NewTemplate(text)
		if err != nil {
			return
		}
		var b bytes.Buffer
		if plainly, err := template.New("").Funcs(functions).Parse(text); err == nil && !strings.Contains(text, "_") {
			var want bytes.Buffer
			err, werr := Execute(&b, tp, plainValue), Execute(&want, plainly, plainValue)
			// What is hidden in a text of the template is written out too once it is a value: "{{split `\n` `,`}}".
			exact := plain.Cell(text) == text && !strings.Contains(text, `\`) && plain.Cell(want.String()) == want.String()
			if err == nil && werr == nil && exact && b.String() != want.String() {
				t.Fatalf("%q makes %q of values that are plain, not %q", text, b.String(), want.String())
			}
			b.Reset()
		}
		if Execute(plain.NewWriter(&b), tp, value) != nil {
			return
		}
		seen := strings.NewReplacer("\t", "", "\n", "").Replace(b.String())
		if strings.ContainsFunc(seen, printable.Hidden) {
			t.Fatalf("%q makes %q", text, b.String())
		}
		if !strings.ContainsAny(text, "\n\\`") && !strings.Contains(text, "println") && !strings.Contains(text, "printf") && strings.Count(b.String(), "\n") > 1 {
			t.Fatalf("%q makes several lines: %q", text, b.String())
		}
		if text == "{{json .}}" && !json.Valid(b.Bytes()) {
			t.Fatalf("%s", b.String())
		}
	})
}
