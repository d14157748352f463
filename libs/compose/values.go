package compose

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/interpolation"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/tree"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v4"
)

// reader fills in the variables of one document, and knows the place of each that is wrong or has no value. compose-go
// does it again over the merged model; it has no places.
type reader struct {
	l     *loading
	d     *document
	casts map[tree.Path]interpolation.Cast
	// The paths of casts: asking it costs less than asking each of them.
	casted *tree.Matcher
	unset  map[string]bool // variables told of
}

// fill makes d.values.
func (l *loading) fill(d *document) {
	r := &reader{l: l, d: d, casts: casts(), unset: map[string]bool{}}
	r.casted = tree.NewMatcher(slices.Collect(maps.Keys(r.casts))...)
	d.values, _ = r.value(d.root, nil).(map[string]any)
}

// casts are compose-go's, by path, without the lines that they would log about yes and no.
func casts() map[tree.Path]interpolation.Cast {
	out := map[tree.Path]interpolation.Cast{}
	for path, cast := range loader.ToOptions(&types.ConfigDetails{}, nil).Interpolate.TypeCastMapping {
		out[path] = func(text string) (any, error) {
			word := map[string]string{"y": "true", "yes": "true", "on": "true", "n": "false", "no": "false", "off": "false"}[strings.ToLower(text)]
			if word == "" {
				return cast(text)
			}
			return cast(word) // of a number: refused, either way
		}
	}
	return out
}

// value is what a node stands for: map[string]any, []any, string, bool, int, float64 or nil.
func (r *reader) value(n *yaml.Node, path []string) any {
	n = target(n)
	switch n.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		for _, e := range entries(n) {
			if target(e.value).Tag != "!reset" {
				out[e.name] = r.value(e.value, with(path, e.name))
			}
		}
		return out
	case yaml.SequenceNode:
		out := make([]any, 0, len(n.Content))
		for i, v := range n.Content {
			if target(v).Tag != "!reset" {
				out = append(out, r.value(v, with(path, strconv.Itoa(i))))
			}
		}
		return out
	}
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err == nil {
			return v
		}
	case "!!binary":
		r.l.wrong(r.d.at(n), joinPath(path), "binary values are not read: put them into a file of their own")
		return nil
	}
	return r.text(n, path)
}

// text is a string with its variables filled in, of the type that its attribute has.
func (r *reader) text(n *yaml.Node, path []string) any {
	text, err := template.SubstituteWithOptions(n.Value, r.lookup(n, path), template.WithoutLogging)
	if err != nil {
		var missing *template.MissingRequiredError
		if errors.As(err, &missing) {
			why := missing.Reason
			if why == "" {
				why = "set it in the shell or in .env"
			}
			r.l.wrong(r.d.at(n), joinPath(path), "the variable %s is required and has no value: %s", missing.Variable, why)
			return n.Value
		}
		r.l.wrong(r.d.at(n), joinPath(path), "${ } holds no variable's name: write $$ for a $ that is meant as it stands")
		return n.Value
	}
	at := treePath(path)
	if !r.casted.Matches(at) {
		return text
	}
	for pattern, cast := range r.casts {
		if !at.Matches(pattern) {
			continue
		}
		v, err := cast(text)
		if err != nil {
			if text == "" {
				r.l.wrong(r.d.at(n), joinPath(path), "the value is empty: a variable in it has no value")
			} else {
				r.l.wrong(r.d.at(n), joinPath(path), "%.40q is no %s", n.Value, wanted(cast))
			}
			return n.Value
		}
		return v
	}
	return text
}

func (r *reader) lookup(n *yaml.Node, path []string) template.Mapping {
	return func(name string) (string, bool) {
		v, ok := r.d.env[name]
		if ok {
			r.l.filled[v] = name
		}
		if !ok && !defaulted(n.Value, name) {
			r.l.unset[joinPath(path)] = name
			if r.unset[name] {
				return v, ok
			}
			r.unset[name] = true
			r.l.note(r.d.at(n), joinPath(path), "the variable %s is not set, so it is empty: set it, or write $$ if a $ is meant", name)
		}
		return v, ok
	}
}

// wanted is what a cast makes.
func wanted(cast interpolation.Cast) string {
	if v, err := cast("true"); err == nil && v == true {
		return "true or false"
	}
	return "number"
}

// defaulted: the text says what stands in for the variable, or asks whether there is one.
func defaulted(text, name string) bool {
	for _, op := range []string{":", "-", "?", "+"} {
		if strings.Contains(text, "${"+name+op) {
			return true
		}
	}
	return false
}

// treePath is a path as compose-go writes it: any item of a list is [].
func treePath(path []string) tree.Path {
	p := tree.NewPath()
	for _, part := range path {
		if _, err := strconv.Atoi(part); err == nil {
			part = tree.PathMatchList
		}
		p = p.Next(part)
	}
	return p
}

func with(path []string, part string) []string { return append(path[:len(path):len(path)], part) }

func joinPath(path []string) string { return strings.Join(path, ".") }

// textOf is a scalar as text, "" for everything else.
func textOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case int:
		return strconv.Itoa(v)
	}
	return ""
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
