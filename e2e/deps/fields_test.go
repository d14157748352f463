package deps

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	skepv1 "skep.dev/proto/skep/v1"
)

var listFields = flag.Bool("list-fields", false, "print every field of the specs with the packages that read a field of its name")

// asked are the messages that hold what users ask for.
var asked = []protoreflect.MessageDescriptor{
	(&skepv1.ServiceSpec{}).ProtoReflect().Descriptor(), (&skepv1.NodeSpec{}).ProtoReflect().Descriptor(),
	(&skepv1.ClusterSpec{}).ProtoReflect().Descriptor(), (&skepv1.NetworkSpec{}).ProtoReflect().Descriptor(),
	(&skepv1.SecretSpec{}).ProtoReflect().Descriptor(), (&skepv1.CreateVolumeRequest{}).ProtoReflect().Descriptor(),
}

// askedFields are all fields of these, Message.field, of messages within them too.
func askedFields() []string {
	var out []string
	seen := map[protoreflect.FullName]bool{}
	var walk func(m protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] || m.IsMapEntry() || !strings.HasPrefix(string(m.FullName()), "skep.") {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			out = append(out, string(m.Name())+"."+string(f.Name()))
			if f.Message() != nil {
				walk(f.Message())
			}
		}
	}
	for _, m := range asked {
		walk(m)
	}
	slices.Sort(out)
	return out
}

// goName is the name of a field in generated code.
func goName(field string) string {
	var b strings.Builder
	for _, w := range strings.Split(field, "_") {
		b.WriteString(strings.ToUpper(w[:1]) + w[1:])
	}
	return b.String()
}

// readers are the packages that act on what is asked for, with the names of all fields they read. The command, which
// writes specs and shows them, and the packages that check, default and compare them act on nothing.
func readers(t *testing.T) map[string]map[string]bool {
	t.Helper()
	out := map[string]map[string]bool{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			skip := []string{"e2e", "proto", "services/skep/cli", "libs/compose", "libs/stack", "bin", "docs", ".git", "deploy"}
			if slices.Contains(skip, rel) || d.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		pkg := filepath.Dir(rel)
		if out[pkg] == nil {
			out[pkg] = map[string]bool{}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				out[pkg][strings.TrimPrefix(s.Sel.Name, "Get")] = true
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What is asked for is acted on, or refused: no flag may be stored and do nothing. testdata/fields names for each field of the
// specs a package that reads it, or what refuses it; a field that is new, or that nobody reads any more, fails here.
func TestWhatIsAskedForIsActedOn(t *testing.T) {
	by := readers(t)
	if *listFields {
		for _, f := range askedFields() {
			_, name, _ := strings.Cut(f, ".")
			var pkgs []string
			for pkg, names := range by {
				if names[goName(name)] {
					pkgs = append(pkgs, pkg)
				}
			}
			slices.Sort(pkgs)
			t.Logf("FIELD %s %s", f, strings.Join(pkgs, " "))
		}
		return
	}
	text, err := os.ReadFile(filepath.Join("testdata", "fields"))
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		field, who, _ := strings.Cut(line, " ")
		said[field] = strings.TrimSpace(who)
	}
	for _, f := range askedFields() {
		who, ok := said[f]
		delete(said, f)
		_, name, _ := strings.Cut(f, ".")
		switch {
		case !ok || who == "":
			t.Errorf("%s: who acts on it? name the package in testdata/fields, or refuse it in libs/spec", f)
		case strings.HasPrefix(who, "refused:"), strings.HasPrefix(who, "shown:"):
		case by[who] == nil || !by[who][goName(name)]:
			t.Errorf("%s: %s does not read it (any more)", f, who)
		}
	}
	for f := range said {
		t.Errorf("%s: there is no such field", f)
	}
}
