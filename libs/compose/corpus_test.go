package compose

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"skep.dev/libs/doctest"
)

// The corpus: files as people write them, and what becomes of each: the StackSpec, what must exist already, what is noted
// and what is refused.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/corpus/*.yml")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	dir, err := filepath.Abs("testdata/corpus")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".yml"), func(t *testing.T) {
			o := func(o *Options) {
				o.Files, o.Dir, o.Stack = []string{filepath.Base(name)}, dir, "demo"
				o.Env = []string{"DB_PASSWORD=hunter2", "RABBIT_PASS=rabbit", "CIFS_PASS=cifs-pass", "MOTD=welcome", "TZ=Etc/UTC"}
				o.Profiles = []string{"web"}
			}
			got := outcome(t, o)
			got = strings.ReplaceAll(got, dir, "$DIR")
			golden := strings.TrimSuffix(name, ".yml") + ".golden"
			if doctest.Updating() {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s is not what %s has (go test ./compose -run Corpus -update writes it anew):\n%s", name, golden, got)
			}
		})
	}
}

// outcome is what a golden holds.
func outcome(t *testing.T, o func(*Options)) string {
	t.Helper()
	var opts Options
	o(&opts)
	s, err := Load(context.Background(), opts)
	var p Problems
	if errors.As(err, &p) {
		return "refused:\n" + p.Error() + "\n"
	}
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, s, o)
	var v any
	if err := yaml.Unmarshal([]byte(show(t, s.Spec, "")), &v); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(1)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	for _, e := range s.External {
		out.WriteString("external: " + e.Kind + " " + e.Name + " (" + e.Where.String() + ")\n")
	}
	for _, v := range append(s.Secrets, s.Configs...) {
		out.WriteString("value: " + v.String() + "\n")
	}
	for _, n := range s.Notes {
		out.WriteString("note: " + n.String() + "\n")
	}
	return out.String()
}
