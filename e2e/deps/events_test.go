package deps

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"skep.dev/libs/event"
)

// tellers are the functions that make an event of a verb they are given: which argument it is, and of which kinds.
var tellers = map[string]struct {
	arg   int
	kinds []string
}{
	"stackEvent": {1, []string{"stack"}}, "networkEvent": {1, []string{"network"}}, "tellClaim": {2, []string{"volume"}}, "tellLock": {1, []string{"cluster"}},
	"tellToken": {1, []string{"cluster"}}, "said": {2, []string{"secret", "config", "registry"}},
}

// site is what a place in the code says of an event. What is no literal there is "" or missing.
type site struct {
	at         string
	kinds      []string // nil = any
	verb       string
	attributes []string
}

// sites are all places that make events, and every literal text of the services, by which a verb that nobody uses is noticed.
func sites(t *testing.T) (out []site, texts map[string]bool) {
	texts = map[string]bool{}
	for _, p := range workspace(t) {
		if part(p.ImportPath) == "e2e" || strings.HasPrefix(p.ImportPath, root+"services/skep/cli") || p.ImportPath == root+"libs/event" || strings.HasPrefix(p.ImportPath, root+"proto") {
			continue
		}
		for _, name := range p.GoFiles {
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			at := func(n ast.Node) string {
				return p.ImportPath + "/" + name + ":" + strconv.Itoa(set.Position(n.Pos()).Line)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.BasicLit:
					texts[text(n)] = true
				case *ast.CompositeLit:
					if s, ok := n.Type.(*ast.SelectorExpr); ok && s.Sel.Name == "Event" && len(n.Elts) > 0 {
						out = append(out, eventLiteral(at(n), n))
					}
				case *ast.AssignStmt: // attr["x"], e.Attributes["x"] = …
					for _, l := range n.Lhs {
						if ix, ok := l.(*ast.IndexExpr); ok && slices.Contains([]string{"attr", "attrs", "Attributes"}, called(ix.X)) && text(ix.Index) != "" {
							out = append(out, site{at: at(n), attributes: []string{text(ix.Index)}})
						}
					}
				case *ast.CallExpr:
					teller, tells := tellers[called(n.Fun)]
					switch {
					case tells && len(n.Args) > teller.arg:
						s := site{at: at(n), kinds: teller.kinds, verb: text(n.Args[teller.arg])}
						for _, a := range n.Args {
							s.attributes = append(s.attributes, literalKeys(a)...)
						}
						out = append(out, s)
					case called(n.Fun) == "differ" && p.ImportPath == root+"services/state":
						out = append(out, site{at: at(n), kinds: []string{"service", "node"}, attributes: []string{text(n.Args[0]) + ".old", text(n.Args[0]) + ".new"}})
					}
				}
				return true
			})
		}
	}
	return out, texts
}

func eventLiteral(at string, lit *ast.CompositeLit) site {
	s := site{at: at}
	for _, e := range lit.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		switch called(kv.Key) {
		case "Kind":
			if k := text(kv.Value); k != "" {
				s.kinds = []string{k}
			}
		case "Verb":
			s.verb = text(kv.Value)
		case "Attributes":
			s.attributes = literalKeys(kv.Value)
		}
	}
	return s
}

// called is the last word of a name.
func called(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// text is what a literal text says, "" for anything else.
func text(e ast.Expr) string {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	s, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return s
}

// literalKeys are the keys of a literal map of texts.
func literalKeys(e ast.Expr) (out []string) {
	lit, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil
	}
	if _, ok := lit.Type.(*ast.MapType); !ok {
		return nil
	}
	for _, e := range lit.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok && text(kv.Key) != "" {
			out = append(out, text(kv.Key))
		}
	}
	return out
}

// Every event that the code makes is one of the list in libs/event, which docs/events.md shows, with attributes that the list
// has; and what the list has, something makes.
func TestEventsAreThoseOfTheList(t *testing.T) {
	found, texts := sites(t)
	if len(found) < 60 {
		t.Errorf("only %d places that make events were found", len(found))
	}
	for _, s := range found {
		fits := func(e event.Sort) bool {
			return (s.kinds == nil || slices.Contains(s.kinds, e.Kind)) && (s.verb == "" || s.verb == e.Verb)
		}
		if !slices.ContainsFunc(event.Sorts(), fits) {
			t.Errorf("%s makes an event of kind %q, verb %s: name it in libs/event", s.at, s.kinds, s.verb)
		}
		for _, a := range s.attributes {
			if !slices.ContainsFunc(event.Sorts(), func(e event.Sort) bool { return fits(e) && e.May(a) }) {
				t.Errorf("%s gives an event of kind %q, verb %s the attribute %s: name it in libs/event", s.at, s.kinds, s.verb, a)
			}
		}
	}
	for _, e := range event.Sorts() {
		for _, word := range append([]string{e.Verb}, e.Attributes...) {
			key := strings.TrimSuffix(word, ".*")
			states := word == e.Verb && (e.Kind == "task" || e.Kind == "node") // words of TaskState, NodeState, HealthState
			if !states && !texts[key] && !texts[key+".old"] && !texts[key+".new"] && !texts[strings.TrimSuffix(key, "*")] {
				t.Errorf("nothing makes %s of an event %s %s: the list in libs/event has it", word, e.Kind, e.Verb)
			}
		}
	}
}
