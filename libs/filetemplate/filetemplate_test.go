package filetemplate

import (
	"strings"
	"testing"
)

var fields = map[string]any{"Service": map[string]any{"Name": "web", "Labels": map[string]string{"a": "1", "b": "2"}}, "Task": map[string]string{"Slot": "3"}}

var sources = Sources{
	Secret: func(t string) (string, bool) { return "p\x00w\n", t == "db" },
	Config: func(t string) (string, bool) { return "conf", t == "/etc/c" },
	Env:    func(n string) string { return map[string]string{"MODE": "fast"}[n] },
}

func TestFill(t *testing.T) {
	for text, want := range map[string]string{
		"plain":                            "plain",
		"":                                 "",
		"{{/* note */}}":                   "",
		"pw={{secret \"db\"}}.":            "pw=p\x00w\n.",
		"{{config \"/etc/c\"}}\r\n":        "conf\r\n",
		"{{env \"MODE\"}}{{env \"X\"}}":    "fast",
		"{{.Service.Name}}.{{.Task.Slot}}": "web.3",
		"{{range $k, $v := .Service.Labels}}{{$k}}={{$v}};{{end}}": "a=1;b=2;",
		"{{join \",\" \"x\" \"y\"}}":                               "x,y",
		"\xef\xbb\xbf\xff{{if true}}a{{end}}":                      "\xef\xbb\xbf\xffa",
	} {
		if err := Check([]byte(text)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if got, err := Fill([]byte(text), fields, sources); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

// What a template may not do, and errors that repeat nothing of it.
func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		"a\nhush{{":                             "not a valid Go template (line 2)",
		"{{hush}}":                              "not a valid Go template (line 1)",
		"{{define \"hush\"}}{{end}}":            "named templates",
		"{{template \"hush\"}}":                 "named templates",
		"{{range 1000000000}}hush{{end}}":       "goes over a field",
		"{{range $i := (len \"hush\")}}{{end}}": "goes over a field",
		"{{range .A}}{{if 1}}{{range .B}}{{with .C}}{{range .D}}hush{{end}}{{end}}{{end}}{{end}}{{end}}": "loops more than 2 deep",
	} {
		err := Check([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	big := strings.Repeat("x", Limit/4)
	src := sources
	src.Secret = func(string) (string, bool) { return big, true }
	for text, want := range map[string]string{
		"{{.Service.Nothing.hush}}":                                                "cannot be filled in (line 1)",
		"{{printf \"%1000000d\" 1}}":                                               "more than 1024000 bytes",
		"{{printf \"%*d\" 1000000 1}}":                                             "more than 1024000 bytes",
		"{{$a := \"xxxxxxxx\"}}" + strings.Repeat("{{$a = print $a $a}}", 40):      "more than 1024000 bytes",
		"{{$a := \"xxxxxxxx\"}}" + strings.Repeat("{{$a = join $a $a $a $a}}", 40): "more than 1024000 bytes",
		"{{secret \"none\"}}":                                                      `the service has no secret with that target`,
		strings.Repeat("{{secret \"a\"}}", 5):                                      "more than 1024000 bytes",
	} {
		s := sources
		if strings.Contains(text, "\"a\"") {
			s = src
		}
		if got, err := Fill([]byte(text), fields, s); err == nil || !strings.Contains(err.Error(), want) || got != nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%.40q: %q %v, want %s", text, got, err, want)
		}
	}
}

func FuzzFill(f *testing.F) {
	for _, s := range []string{"{{secret \"db\"}}", "{{range .Service.Labels}}{{.}}{{end}}", "{{define \"a\"}}{{template \"a\"}}{{end}}{{template \"a\"}}", "{{", "{{printf \"%1000000d\" 1}}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		out, err := Fill(text, fields, sources)
		if len(out) > Limit {
			t.Errorf("%d bytes", len(out))
		}
		if cerr := Check(text); cerr != nil && err == nil {
			t.Errorf("refused, and filled in: %v", cerr)
		}
	})
}
