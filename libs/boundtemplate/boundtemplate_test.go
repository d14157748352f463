package boundtemplate

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

var data = map[string]any{"Labels": map[string]string{"a": "1", "b": "2"}, "Big": strings.Repeat("x", 50_000)}

func fill(text string) (string, error) {
	t, err := Parse(text, Bounds{Output: 64 << 10, Loops: 1}, nil)
	if err != nil {
		return "", err
	}
	return t.Execute(data)
}

func TestFills(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "{{/* note */}}": "", `{{join "," "x" "y"}}`: "x,y", "{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}": "a=1;b=2;", `{{printf "%03d" 7}}`: "007", "{{print 1 2}}": "1 2",
		`{{html "<"}}`: "&lt;",
	} {
		if got, err := fill(text); got != want || err != nil {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
}

// What is refused when it is read.
func TestRefuses(t *testing.T) {
	for _, text := range []string{`{{define "a"}}{{end}}`, `{{template "a"}}`, `{{block "a" .}}{{end}}`} {
		if _, err := fill(text); err == nil {
			t.Errorf("%s was read", text)
		}
	}
	var loop *LoopError
	for _, text := range []string{"{{range 1000000000}}x{{end}}", "{{range .Labels}}{{if 1}}{{range .Labels}}{{end}}{{end}}{{end}}", "{{range (len .Big)}}{{end}}"} {
		if _, err := fill(text); !errors.As(err, &loop) || loop.Line != 1 {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Whatever somebody writes, filling it in takes a bounded share of memory: one text, and all those that functions make, which variables keep.
func TestMemoryIsBounded(t *testing.T) {
	var many strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&many, `{{$a%d := print .Big}}`, i)
	}
	for name, text := range map[string]string{
		"variables": many.String(), "print": `{{$a := .Big}}` + strings.Repeat(`{{$a = print $a $a}}`, 40), "println": strings.Repeat(`{{$x := println .Big}}`, 1000),
		"join": `{{$a := "xxxx"}}` + strings.Repeat(`{{$a = join $a $a $a $a}}`, 40), "html": `{{$a := "&&&&"}}` + strings.Repeat(`{{$a = html $a $a $a}}`, 40),
		"printf": `{{printf "%1000000000d" 1}}`, "printf of a star": `{{printf "%*d" 1000000000 1}}`, "printf of one argument": `{{$a := .Big}}{{printf "` + strings.Repeat("%[1]s", 100) + `" $a}}`,
		"output": strings.Repeat("{{.Big}}", 2), "a loop": `{{range .Labels}}` + strings.Repeat(`{{$x := print $.Big}}`, 100) + `{{end}}`,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := fill(text)
		runtime.ReadMemStats(&after)
		var large *TooLargeError
		if !errors.As(err, &large) || large.Limit != 64<<10 {
			t.Errorf("%s: %v", name, err)
		}
		// All that was ever allocated, reading the longest of these included.
		if took := after.TotalAlloc - before.TotalAlloc; took > 100<<20 {
			t.Errorf("%s: took %d MiB", name, took>>20)
		}
	}
}
