package compose

import (
	"fmt"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/compose-spec/compose-go/v2/tree"

	"skep.dev/libs/doctest"
)

// Every attribute that the compose specification has is on a row, or stands below a row that speaks for all below it.
// When compose-go learns a new one, somebody decides what becomes of it.
func TestEveryAttributeIsDecided(t *testing.T) {
	used := map[tree.Path]bool{}
	for _, p := range schema.AttributePaths() {
		parts := p.Parts()
		found := false
		for n := 1; n <= len(parts); n++ {
			row, ok := byPath[tree.NewPath(parts[:n]...)]
			if !ok {
				continue
			}
			used[row.path] = true
			if n == len(parts) || row.verdict == refused || row.verdict == passed || row.free || row.path == "include" {
				found = true
			}
		}
		if !found {
			t.Errorf("%s is on no row of attributes", p)
		}
	}
	for _, a := range attributes {
		if !used[a.path] {
			t.Errorf("%s is on a row, and the specification has no such attribute", a.path)
		}
		if a.verdict == done && a.text != "" || a.verdict != done && a.text == "" {
			t.Errorf("%s is %s with the text %q: what is done needs none, everything else does", a.path, a.verdict, a.text)
		}
		if strings.HasSuffix(a.text, ".") {
			t.Errorf("%s: the text ends with a point", a.path)
		}
	}
}

// docs/compose.md shows the rows: those that are done in one list, every other one with its text.
func TestAttributesInTheDocs(t *testing.T) {
	var out strings.Builder
	for _, v := range []verdict{mapped, passed, refused} {
		title := map[verdict]string{mapped: "Done in another way", passed: "Without effect, with a note", refused: "Refused, or noted with `--ignore-unsupported`"}[v]
		fmt.Fprintf(&out, "\n### %s\n\n| attribute | |\n|---|---|\n", title)
		for _, a := range attributes {
			if a.verdict == v {
				fmt.Fprintf(&out, "| `%s` | %s |\n", strings.ReplaceAll(string(a.path), ".[]", "[]"), a.text)
			}
		}
	}
	fmt.Fprintf(&out, "\n### Done\n\n")
	section := ""
	for _, a := range attributes {
		if a.verdict != done {
			continue
		}
		parts := a.path.Parts()
		if len(parts) < 3 {
			continue
		}
		if parts[0] != section {
			if section = parts[0]; out.Len() > 0 {
				fmt.Fprintf(&out, "\n- `%s.*`:", section)
			}
		}
		fmt.Fprintf(&out, " `%s`", strings.ReplaceAll(strings.Join(parts[2:], "."), ".[]", "[]"))
	}
	out.WriteString("\n\n")
	doctest.TableOf(t, "compose.md", "compose", out.String())
}
