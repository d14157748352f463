package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// around are the ways to print past package plain, and the files that have a reason to.
var around = map[string][]string{
	"fmt.Print": nil, "fmt.Printf": nil, "fmt.Println": nil, "fmt.Fprint": nil, "fmt.Fprintf": nil, "fmt.Fprintln": nil,
	"template.New": {"render/template.go"},                                   // whose templates make a cell of every value
	"os.Stdout":    {"cli.go"},                                               // which wraps it
	"os.Stderr":    {"cli.go", "../node/commands.go", "../node/upgrader.go"}, // the daemon's log, which its watcher goes on with
	".Raw":         {"backup.go", "exec.go", "logs.go", "waiting.go"},        // a sealed file, the user's own session, a pipe, which terminal it is
	"plain.Code":   {"top.go", "wait/display.go"},                            // what is painted
}

// TestEverythingIsPrintedPlain: a command prints through a.printf, a.tellf, a table, a page or plain.Fprintf, so that
// nobody has to remember what a host name may hold.
func TestEverythingIsPrintedPlain(t *testing.T) {
	var files []string
	for _, dir := range []string{".", "conn", "doctor", "render", "specflag", "wait", "../node", "../cmd/skep"} {
		list, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(list) == 0 {
			t.Fatalf("%s: no files, %v", dir, err)
		}
		files = append(files, list...)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") || path == "../cmd/skep/main.go" {
			continue // main hands the streams to Main
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			s, is := n.(*ast.SelectorExpr)
			if !is {
				return true
			}
			name := "." + s.Sel.Name
			allowed, known := around[name]
			if x, is := s.X.(*ast.Ident); is && !known {
				name = x.Name + name
				allowed, known = around[name]
			}
			if known && !slices.Contains(allowed, path) {
				t.Errorf("%s: %s prints what others chose as it is: use a.printf, a.tellf or plain.Fprintf", set.Position(n.Pos()), name)
			}
			return true
		})
	}
}
