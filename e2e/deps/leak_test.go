package deps

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// watched is a TestMain that looks for goroutines at the end.
var watched = regexp.MustCompile(`(?s)func TestMain\(.*(leaktest\.|kvtest\.Main|nstest\.Main)`)

// Every package that starts goroutines and has tests ends them all: its tests fail when one is left.
func TestGoroutinesEnd(t *testing.T) {
	found := 0
	for _, p := range workspace(t) {
		if len(p.TestGoFiles)+len(p.XTestGoFiles) == 0 || !starts(t, p) {
			continue
		}
		found++
		ok := false
		for _, f := range append(p.TestGoFiles, p.XTestGoFiles...) {
			text, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			ok = ok || watched.Match(text)
		}
		if !ok {
			t.Errorf("%s starts goroutines, and its tests do not look for those left: add `func TestMain(m *testing.M) { leaktest.Main(m) }`", p.ImportPath)
		}
	}
	if found < 20 {
		t.Errorf("only %d packages that start goroutines were found", found)
	}
}

// starts reports whether a package's code has a go statement, or calls a method Go as those of sync.WaitGroup and errgroup.
func starts(t *testing.T, p pkg) (yes bool) {
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				yes = true
			case *ast.CallExpr:
				if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Go" {
					yes = true
				}
			}
			return !yes
		})
	}
	return yes
}
