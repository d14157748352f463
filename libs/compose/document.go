package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// document is one compose file, parsed but neither merged nor interpolated: it knows where everything stands.
type document struct {
	name string            // as it was named
	path string            // absolute, "" for standard input
	dir  string            // what its relative paths start from
	env  map[string]string // what its variables are looked up in
	root *yaml.Node
	// The file with its variables filled in, see values.go.
	values map[string]any
}

var yamlPlace = regexp.MustCompile(`line (\d+)(?:, column (\d+))?:? ?`)

// parseDocument reads YAML. What is wrong comes back as notes without a path.
func parseDocument(name string, data []byte) (*document, []Note) {
	whole := func(format string, a ...any) []Note {
		return []Note{{Where: Where{File: name}, Text: fmt.Sprintf(format, a...)}}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, whole("it is empty: write services: and the services below it")
		}
		return nil, []Note{yamlNote(name, err)}
	}
	switch err := dec.Decode(&next); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, []Note{yamlNote(name, err)}
	default:
		return nil, []Note{{Where: Where{name, max(next.Line, 1), max(next.Column, 1)},
			Text: "a second YAML document begins here (after ---): put them into files of their own, and name each with -c"}}
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, whole("it is no mapping: write services: and the services below it")
	}
	d := &document{name: name, root: doc.Content[0]}
	if n := d.bounds(); n != nil {
		return nil, []Note{*n}
	}
	if notes := d.keys(d.root, map[*yaml.Node]bool{}); len(notes) > 0 {
		return nil, notes
	}
	d.asText()
	return d, nil
}

// asText makes text of what can be nothing else: a driver's options, which are true or empty in many files.
func (d *document) asText() {
	for _, section := range []string{"networks", "volumes"} {
		_, decls := child(d.root, section)
		for _, decl := range entries(decls) {
			_, options := child(decl.value, "driver_opts")
			for _, o := range entries(options) {
				switch v := target(o.value); v.ShortTag() {
				case "!!bool", "!!null":
					if v.ShortTag() == "!!null" {
						v.Value = ""
					}
					v.Tag, v.Style = "!!str", yaml.DoubleQuotedStyle
				}
			}
		}
	}
}

// yamlNote is the parser's error at its place. Its text holds no values, only what it looked for.
func yamlNote(name string, err error) Note {
	w := Where{File: name}
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	for _, m := range yamlPlace.FindAllStringSubmatch(text, -1) {
		w.Line, _ = strconv.Atoi(m[1])
		w.Column, _ = strconv.Atoi(m[2])
		w.Column = max(w.Column, 1)
	}
	if fmt.Sprintf("%T", err) == "libyaml.ParserError" {
		w.Line++ // the parser counts lines from 0, its scanner from 1
	}
	text = yamlPlace.ReplaceAllString(strings.ReplaceAll(text, " at <unknown position>", ""), "")
	return Note{Where: w, Text: "it is not valid YAML: " + text}
}

func (d *document) at(n *yaml.Node) Where { return Where{d.name, n.Line, n.Column} }

// bounds counts what the file holds once every alias is replaced by what it stands for, without doing it.
func (d *document) bounds() *Note {
	type extent struct{ size, height int }
	known := map[*yaml.Node]extent{}
	open := map[*yaml.Node]bool{}
	var bad *Note
	var measure func(n *yaml.Node, depth int) extent
	measure = func(n *yaml.Node, depth int) extent {
		if e, ok := known[n]; ok || bad != nil {
			return e
		}
		if open[n] {
			bad = &Note{Where: d.at(n), Text: fmt.Sprintf("&%s holds itself", n.Anchor)}
			return extent{}
		}
		open[n] = true
		parts := n.Content
		if n.Kind == yaml.AliasNode {
			parts = []*yaml.Node{n.Alias}
		}
		e := extent{size: 1}
		for _, c := range parts {
			if depth == maxDepth {
				e.height = maxDepth
				break
			}
			in := measure(c, depth+1)
			e.size, e.height = e.size+in.size, max(e.height, in.height)
			if e.size > maxNodes && bad == nil {
				bad = &Note{Where: d.at(c), Text: fmt.Sprintf("with its aliases replaced it has more than %d values", maxNodes)}
			}
		}
		if e.height++; e.height > maxDepth && bad == nil {
			bad = &Note{Where: d.at(n), Text: fmt.Sprintf("it is nested deeper than %d levels", maxDepth)}
		}
		open[n] = false
		known[n] = e
		return e
	}
	measure(d.root, 1)
	return bad
}

// keys finds keys that are no text, and those that stand twice.
func (d *document) keys(n *yaml.Node, seen map[*yaml.Node]bool) (notes []Note) {
	if seen[n] {
		return nil
	}
	seen[n] = true
	if n.Kind == yaml.MappingNode {
		first := map[string]*yaml.Node{}
		for i := 0; i < len(n.Content); i += 2 {
			k := n.Content[i]
			switch before := first[k.Value]; {
			case k.Kind == yaml.AliasNode:
			case k.Kind != yaml.ScalarNode:
				notes = append(notes, Note{Where: d.at(k), Text: "a key must be text: if this is a value with {{ }}, put it in quotes"})
				continue
			case k.ShortTag() == "!!null":
				notes = append(notes, Note{Where: d.at(k), Text: "a key must be text, and this is empty"})
			case before != nil:
				notes = append(notes, Note{Where: d.at(k), Path: k.Value, Text: fmt.Sprintf("the key stands in line %d already: remove one of them", before.Line)})
			default:
				first[k.Value] = k
			}
		}
	}
	for _, c := range n.Content {
		notes = append(notes, d.keys(c, seen)...)
	}
	return notes
}

func isMerge(k *yaml.Node) bool {
	return k.Kind == yaml.ScalarNode && k.Value == "<<" && (k.Tag == "" || k.ShortTag() == "!!merge")
}

func target(n *yaml.Node) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// child finds a key, in the mapping or in what is merged into it: at is the key, value what it has.
func child(n *yaml.Node, key string) (at, value *yaml.Node) {
	if n = target(n); n == nil {
		return nil, nil
	}
	switch n.Kind {
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(key); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i], n.Content[i]
		}
		for _, item := range n.Content { // NAME=value, as environment and labels may be written
			if name, _, _ := strings.Cut(target(item).Value, "="); name == key && target(item).Kind == yaml.ScalarNode {
				return item, item
			}
		}
	case yaml.MappingNode:
		for i := 0; i < len(n.Content); i += 2 {
			if target(n.Content[i]).Value == key {
				return n.Content[i], n.Content[i+1]
			}
		}
		for i := 0; i < len(n.Content); i += 2 {
			if !isMerge(n.Content[i]) {
				continue
			}
			for _, m := range merged(n.Content[i+1]) {
				if at, value = child(m, key); at != nil {
					return at, value
				}
			}
		}
	}
	return nil, nil
}

// locate finds the deepest part of a path that the document has: how many parts of it, and where that stands.
func (d *document) locate(path []string) (parts int, at *yaml.Node, value *yaml.Node) {
	at, value = d.root, d.root
	for _, key := range path {
		a, v := child(value, key)
		if a == nil {
			break
		}
		parts, at, value = parts+1, a, v
	}
	return parts, at, value
}

// find is where a path stands: in the last of the documents that has most of it. An item of a list that several documents
// add to has no place of its own.
func find(docs []*document, path []string) Where {
	best, count := 0, 0
	var w Where
	for _, d := range docs {
		parts, at, _ := d.locate(path)
		switch {
		case parts > best:
			best, count, w = parts, 1, d.at(at)
		case parts == best:
			count++
			if parts > 0 {
				w = d.at(at)
			}
		}
	}
	if best == 0 && len(docs) > 0 {
		return Where{File: docs[0].name}
	}
	if _, err := strconv.Atoi(path[best-1]); err == nil && count > 1 && best > 1 {
		return find(docs, path[:best-1])
	}
	return w
}
