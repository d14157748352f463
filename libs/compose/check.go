package compose

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"skep.dev/libs/typo"
)

// composeSchema is the compose specification's, that compose-go carries.
var composeSchema = sync.OnceValues(func() (*jsonschema.Schema, error) {
	raw, err := jsonschema.UnmarshalJSON(strings.NewReader(schema.Schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("compose-spec.json", raw); err != nil {
		return nil, err
	}
	return c.Compile("compose-spec.json")
})

// check looks at each file on its own: variables, keys and types. All that is wrong is told, not only the first.
func (l *loading) check(context.Context) {
	s, err := composeSchema()
	if err != nil {
		l.wrong(Where{}, "", "the schema of compose files: %v", err)
		return
	}
	for _, d := range l.docs {
		before := len(l.problems)
		l.fill(d)
		told := map[string]bool{} // what has no value has no type either
		for _, p := range l.problems[before:] {
			told[p.Path] = true
		}
		var bad *jsonschema.ValidationError
		if errors.As(s.Validate(d.values), &bad) {
			for _, leaf := range leaves(bad) {
				if !told[joinPath(leaf.InstanceLocation)] {
					l.schemaProblem(d, leaf)
				}
			}
			if len(l.problems) == before {
				l.wrong(Where{File: d.name}, "", "it is not as the compose specification has it: %s", leaves(bad)[0].ErrorKind.KeywordPath())
			}
		}
		if len(l.problems) == before {
			l.checkLists(d)
		}
	}
}

// leaves are the errors that say something: of alternatives, the one that goes deepest was meant.
func leaves(e *jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(e.Causes) == 0 {
		return []*jsonschema.ValidationError{e}
	}
	var out []*jsonschema.ValidationError
	for _, c := range e.Causes {
		out = append(out, leaves(c)...)
	}
	switch e.ErrorKind.(type) {
	case *kind.OneOf, *kind.AnyOf:
	default:
		return out
	}
	// The alternatives that want another type were not meant, if there is one that wants this type.
	var meant []*jsonschema.ValidationError
	all := &kind.Type{}
	for _, x := range out {
		if t, ok := x.ErrorKind.(*kind.Type); ok && len(x.InstanceLocation) == len(e.InstanceLocation) {
			all.Got = t.Got
			all.Want = append(all.Want, t.Want...)
			continue
		}
		meant = append(meant, x)
	}
	if len(meant) > 0 {
		return []*jsonschema.ValidationError{slices.MaxFunc(meant, func(a, b *jsonschema.ValidationError) int { return depth(a) - depth(b) })}
	}
	return []*jsonschema.ValidationError{{SchemaURL: e.SchemaURL, InstanceLocation: e.InstanceLocation, ErrorKind: all}}
}

// depth counts a key that should not be there as if the error stood at it.
func depth(e *jsonschema.ValidationError) int {
	if _, ok := e.ErrorKind.(*kind.AdditionalProperties); ok {
		return len(e.InstanceLocation) + 1
	}
	return len(e.InstanceLocation)
}

// schemaProblem says it in words, without the value.
func (l *loading) schemaProblem(d *document, e *jsonschema.ValidationError) {
	path := e.InstanceLocation
	tell := func(path []string, format string, a ...any) {
		_, at, _ := d.locate(path)
		l.wrong(d.at(at), joinPath(path), format, a...)
	}
	switch k := e.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		for _, key := range k.Properties {
			tell(with(path, key), "unknown key%s", l.suggest(path, key))
		}
	case *kind.Type:
		text := fmt.Sprintf("it is %s and must be %s", typeWord(k.Got), typeWords(k.Want))
		switch {
		case k.Got == "null":
			text += ": give it a value, or remove the line"
		case slices.Contains(k.Want, "string") && k.Got != "object" && k.Got != "array":
			text += ": put it in quotes"
		}
		tell(path, "%s", text)
	case *kind.Required:
		tell(path, "%s is missing: add it", strings.Join(k.Missing, ", "))
	case *kind.Enum:
		words := make([]string, 0, len(k.Want))
		for _, w := range k.Want {
			words = append(words, fmt.Sprint(w))
		}
		tell(path, "the value is none of %s", strings.Join(words, ", "))
	case *kind.Format:
		tell(path, "it is no %s: write a number with its unit, such as 10s", k.Want)
	case *kind.Pattern:
		tell(path, "the value does not have the form %s", k.Want)
	case *kind.UniqueItems:
		tell(path, "the items %d and %d are the same: remove one", k.Duplicates[0]+1, k.Duplicates[1]+1)
	case *kind.Minimum:
		tell(path, "it must be %s or more", k.Want.RatString())
	case *kind.Maximum:
		tell(path, "it must be %s or less", k.Want.RatString())
	case *kind.FalseSchema: // a key that no part of the schema took: either none knows it, or the part that does has another error
		if key := path[len(path)-1]; byPath[rowOf(path)].path == "" {
			tell(path, "unknown key%s", l.suggest(path[:len(path)-1], key))
		}
	default:
		tell(path, "it is not as the compose specification has it (%s)", strings.Join(e.ErrorKind.KeywordPath(), " "))
	}
}

func typeWord(t string) string {
	switch t {
	case "object":
		return "a mapping"
	case "array":
		return "a list"
	case "null":
		return "empty"
	case "boolean":
		return "true or false"
	case "string":
		return "text"
	case "integer":
		return "a whole number"
	}
	return "a " + t
}

func typeWords(want []string) string {
	var words []string
	for _, t := range want {
		if w := typeWord(t); t != "null" && !slices.Contains(words, w) {
			words = append(words, w)
		}
	}
	slices.Sort(words)
	return strings.Join(words, " or ")
}

// suggest names the key that was meant, and where a key stands that stands in the wrong place.
func (l *loading) suggest(path []string, key string) string {
	if len(l.problems) > shownProblems {
		return "" // nobody sees it
	}
	parent := treePath(path)
	best, least := "", 3
	var elsewhere []string
	for _, p := range schema.AttributePaths() {
		parts := p.Parts()
		last := parts[len(parts)-1]
		if last == "*" {
			continue
		}
		switch up := p.Parent(); {
		case parent.Matches(up) || parent == "" && up == "":
			if n := typo.Distance(key, last, least-1); n < least {
				best, least = last, n
			}
		case last == key && strings.HasPrefix(string(p), "services.*.") && len(parts) <= 5 && !strings.Contains(string(p), "build.") && !strings.Contains(string(p), "develop.") && !strings.Contains(string(p), "pre_start"):
			elsewhere = append(elsewhere, string(p))
		}
	}
	switch {
	case best != "":
		return ": did you mean " + best + "?"
	case len(elsewhere) > 0 && len(elsewhere) <= 3:
		return ": it belongs to " + strings.Join(elsewhere, " or ")
	}
	return ": remove it, or write x-" + key + " if it is a note for people"
}
