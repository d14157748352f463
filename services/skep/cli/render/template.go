package render

import (
	"fmt"
	"reflect"
	"strings"
	"text/template"
	"text/template/parse"
	"unicode/utf8"

	"skep.dev/services/skep/cli/plain"
)

// maxPad bounds what pad adds on each side.
const maxPad = 1 << 12

// cellFunc is the name of the function that makes a cell of what an action prints; nobody can write it.
const cellFunc = "_cell_"

// functions are Docker's. Those that put several values together take care of each of them, see NewTemplate.
var functions = template.FuncMap{
	"json":  templateJSON,
	"split": strings.Split, "title": title, "lower": strings.ToLower, "upper": strings.ToUpper, "truncate": truncate, "pad": pad,
	"join": func(list []string, sep string) string {
		out := make([]string, len(list))
		for i, s := range list {
			out[i] = plain.Cell(s)
		}
		return strings.Join(out, sep)
	},
	"print":   func(a ...reflect.Value) string { return fmt.Sprint(cells(a)...) },
	"println": func(a ...reflect.Value) string { return fmt.Sprintln(cells(a)...) },
	"printf":  func(format string, a ...reflect.Value) string { return fmt.Sprintf(format, cells(a)...) },
	cellFunc:  func(v reflect.Value) string { return plain.Cell(fmt.Sprint(printed(v))) },
}

// composers are the functions whose result holds ends of lines that the template asked for, or is exact as it is.
var composers = map[string]bool{"json": true, "join": true, "print": true, "println": true, "printf": true}

// NewTemplate parses a --format template with Docker's functions. What its actions print is data: each value becomes a
// cell, see plain.Cell, so that a newline or tab is the template's own, written in its text or by println, printf and
// join. {{json .X}} is exact.
func NewTemplate(text string) (*template.Template, error) {
	tp, err := template.New("").Funcs(functions).Parse(text)
	if err != nil {
		return nil, err
	}
	for _, t := range tp.Templates() {
		if t.Tree != nil {
			guard(t.Tree, t.Tree.Root)
		}
	}
	return tp, nil
}

// guard ends the pipeline of every action below n in a cell, as html/template ends them in an escaper.
func guard(tree *parse.Tree, n parse.Node) {
	branch := func(b *parse.BranchNode) {
		guard(tree, b.List)
		if b.ElseList != nil {
			guard(tree, b.ElseList)
		}
	}
	switch n := n.(type) {
	case *parse.ListNode:
		for _, x := range n.Nodes {
			guard(tree, x)
		}
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	case *parse.ActionNode:
		if len(n.Pipe.Decl) > 0 {
			return // it prints nothing
		}
		switch last := n.Pipe.Cmds[len(n.Pipe.Cmds)-1].Args[0].(type) {
		case *parse.StringNode:
			return // the template's own text
		case *parse.IdentifierNode:
			if composers[last.Ident] {
				return
			}
		}
		n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{
			NodeType: parse.NodeCommand, Pos: n.Pos, Args: []parse.Node{parse.NewIdentifier(cellFunc).SetTree(tree).SetPos(n.Pos)},
		})
	}
}

// printed is the value a template prints: what a pointer points at, unless it describes itself.
func printed(v reflect.Value) any {
	for v.IsValid() && (v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface) && !v.IsNil() {
		switch v.Interface().(type) {
		case error, fmt.Stringer:
			return v.Interface()
		}
		v = v.Elem()
	}
	if !v.IsValid() || v.Kind() == reflect.Interface {
		return "<no value>"
	}
	if v.CanAddr() && v.Addr().CanInterface() {
		switch p := v.Addr().Interface().(type) {
		case error, fmt.Stringer:
			return p
		}
	}
	if !v.CanInterface() {
		return "<no value>" // a field nobody may read
	}
	return v.Interface()
}

// cells are values with every text among them made a cell; numbers stay, for printf.
func cells(vs []reflect.Value) []any {
	out := make([]any, len(vs))
	for i, v := range vs {
		out[i] = plain.Arg(printed(v))
	}
	return out
}

func templateJSON(v any) (string, error) {
	b, err := jsonLine(v)
	return strings.TrimSpace(string(b)), err
}

func pad(s string, before, after int) (string, error) {
	if before < 0 || after < 0 || before > maxPad || after > maxPad {
		return "", fmt.Errorf("pad: %d and %d are not between 0 and %d", before, after, maxPad)
	}
	return strings.Repeat(" ", before) + s + strings.Repeat(" ", after), nil
}

func truncate(s string, n int) (string, error) {
	if n < 0 {
		return "", fmt.Errorf("truncate: %d is below 0", n)
	}
	for i := range s {
		if n--; n < 0 {
			return s[:i], nil
		}
	}
	return s, nil
}

func title(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 || r == utf8.RuneError {
		return s
	}
	return strings.ToUpper(string(r)) + s[n:]
}
