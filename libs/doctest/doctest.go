// Package doctest holds the tables of docs/ that are made from lists in the code.
package doctest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what is made from the code anew: tables of docs/, goldens")

// Updating tells whether -update was given.
func Updating() bool { return *update }

// Table fails the test unless docs/contracts.md shows want between the marks of the package, such as "libs/api", whose
// list it is made from; with -update it writes it.
func Table(t *testing.T, pkg, want string) {
	t.Helper()
	TableOf(t, "contracts.md", pkg, want)
}

// TableOf is Table for another file of docs/.
func TableOf(t *testing.T, doc, pkg, want string) {
	t.Helper()
	path := filepath.Join("..", "..", "docs", doc)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	how := "go test ./" + pkg + " -update"
	begins, ends := "<!-- the list of "+pkg+": "+how+" -->\n", "<!-- end of the list of "+pkg+" -->\n"
	head, rest, found := strings.Cut(string(b), begins)
	is, tail, closed := strings.Cut(rest, ends)
	switch {
	case !found || !closed:
		t.Fatalf("%s has no place for the list of %s", path, pkg)
	case is == want:
	case !*update:
		t.Fatalf("%s is not what the list says: %s", path, how)
	default:
		if err := os.WriteFile(path, []byte(head+begins+want+ends+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
