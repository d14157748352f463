package compose

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

// Whatever a file holds, Load ends with a stack or with Problems that name a place, tells no value, and says the same when
// asked again; what it takes can be printed and read again.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/corpus/*.yml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, text := range []string{"", "a: &a [*a]", "services: {a: {<<: *b}}", "services: {web: {image: '${X", "include: [-]", "services: {0: {image: i}}", "services: {a: {image: i, extends: a}}",
		"services: {a: {image: i, ports: ['1-9:1-9', {target: 1}], volumes: [a, {type: volume, target: /}]}}", "networks: {n: {external: {name: x}}}", "x-a: !reset 1\nservices: !override {a: !reset null}"} {
		f.Add([]byte(text))
	}
	const value = "hunter2-Zq"
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		load := func(text []byte) (*Stack, error) {
			return Load(context.Background(), Options{Files: []string{"-"}, Stdin: bytes.NewReader(text), Dir: dir, Stack: "s", Env: []string{"PW=" + value}})
		}
		s, err := load(text)
		again, err2 := load(text)
		if err != nil {
			var p Problems
			if !errors.As(err, &p) || len(p) == 0 {
				t.Fatalf("no problems: %v", err)
			}
			for _, n := range p {
				if n.Where.File == "" || n.Text == "" {
					t.Errorf("a problem without a place or words: %+v", n)
				}
				if strings.Contains(n.Text, "the compose library failed") {
					t.Errorf("%v", err)
				}
			}
			if err2 == nil || err2.Error() != err.Error() {
				t.Errorf("refused with\n%v\nthen with\n%v", err, err2)
			}
			if strings.Contains(err.Error(), value) && !bytes.Contains(text, []byte(value)) {
				t.Errorf("it tells a value: %v", err)
			}
			return
		}
		if err2 != nil || !proto.Equal(s.Spec, again.Spec) || notesOf(s) != notesOf(again) {
			t.Fatalf("another time it is another stack: %v", err2)
		}
		out, err := Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		printed, err := load(out)
		if err != nil {
			t.Fatalf("what it printed is refused: %v\n%s", err, out)
		}
		if !proto.Equal(s.Spec, printed.Spec) {
			t.Fatalf("what it printed is another stack\n%s\n%s\n%s", out, s.Spec, printed.Spec)
		}
	})
}
