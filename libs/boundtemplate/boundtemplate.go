// Package boundtemplate is text/template for templates that somebody else wrote and a manager or node fills in: what could run
// without end or fill the memory is refused when it is read, or ends with an error. Named templates are refused, and loops over
// anything but a field or deeper than is said; the functions that make texts of texts (print, printf, println, join, html, js,
// urlquery) are counted together, because what they make is in memory before it is written.
package boundtemplate

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"text/template"
	"text/template/parse"
)

// Bounds are what a template may cost.
type Bounds struct {
	Output int // bytes of what it fills in to, and of what one function makes
	Loops  int // how deep loops may stand in one another
}

// made is how many times Output all functions of a template may make together.
const made = 16

// ErrNamed: the template defines another one.
var ErrNamed = errors.New("named templates (define, block) are not supported")

// LoopError: a loop goes over something else than a field, or stands too deep in others.
type LoopError struct {
	Line int
	Deep bool
}

func (e *LoopError) Error() string {
	if e.Deep {
		return fmt.Sprintf("line %d: a loop stands too deep in others", e.Line)
	}
	return fmt.Sprintf("line %d: a loop goes over a field, such as .Service.Labels", e.Line)
}

// TooLargeError: the template, or a function in it, makes more than it may.
type TooLargeError struct{ Limit int }

func (e *TooLargeError) Error() string { return fmt.Sprintf("it makes more than %d bytes", e.Limit) }

// Template is a template that was read. One at a time may fill it in.
type Template struct {
	t      *template.Template
	bounds Bounds
	used   int // bytes that functions have made
}

// Parse reads a template. more are functions beside those of text/template and join; what they return is not counted. Errors are
// ErrNamed, a *LoopError, or text/template's own.
func Parse(text string, b Bounds, more template.FuncMap) (*Template, error) {
	out := &Template{bounds: b}
	t, err := template.New("").Option("missingkey=error").Funcs(out.functions()).Funcs(more).Parse(text)
	if err != nil {
		return nil, err
	}
	if len(t.Templates()) > 1 {
		return nil, ErrNamed
	}
	out.t = t
	if t.Tree == nil { // nothing but comments
		return out, nil
	}
	return out, out.walk(t.Root, 0)
}

// Nodes are what the template is made of.
func (t *Template) Nodes() []parse.Node {
	if t.t.Tree == nil {
		return nil
	}
	return t.t.Root.Nodes
}

// Execute fills the template in; data is what a dot stands for. Errors are a *TooLargeError or text/template's own, which may wrap one.
func (t *Template) Execute(data any) (string, error) {
	t.used = 0
	w := bounded{limit: t.bounds.Output}
	if err := t.t.Execute(&w, data); err != nil {
		return "", err
	}
	return w.String(), nil
}

func (t *Template) walk(n parse.Node, loops int) error {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, c := range n.Nodes {
			if err := t.walk(c, loops); err != nil {
				return err
			}
		}
	case *parse.IfNode:
		return errors.Join(t.walk(n.List, loops), t.walk(n.ElseList, loops))
	case *parse.WithNode:
		return errors.Join(t.walk(n.List, loops), t.walk(n.ElseList, loops))
	case *parse.RangeNode:
		if loops >= t.bounds.Loops {
			return &LoopError{Line: n.Line, Deep: true}
		}
		if len(n.Pipe.Cmds) != 1 || len(n.Pipe.Cmds[0].Args) != 1 || n.Pipe.Cmds[0].Args[0].Type() != parse.NodeField {
			return &LoopError{Line: n.Line}
		}
		return errors.Join(t.walk(n.List, loops+1), t.walk(n.ElseList, loops))
	case *parse.TemplateNode:
		return ErrNamed
	}
	return nil
}

// functions are text/template's that make texts of texts, and join, each within the bounds.
func (t *Template) functions() template.FuncMap {
	printed := func(f func(...any) string) func(...any) (string, error) {
		return func(a ...any) (string, error) { return t.within(func() string { return f(a...) }, lengths(a)) }
	}
	return template.FuncMap{
		"join": func(sep string, s ...string) (string, error) {
			n := len(s) * len(sep)
			for _, x := range s {
				n += len(x)
			}
			return t.within(func() string { return strings.Join(s, sep) }, n)
		},
		"print": printed(fmt.Sprint), "println": printed(fmt.Sprintln),
		"printf": func(format string, a ...any) (string, error) {
			longest := 0
			for _, v := range a {
				if s, ok := v.(string); ok {
					longest = max(longest, len(s))
				}
			}
			// A verb may name any argument, and be three digits wide.
			if wide.MatchString(format) || strings.Count(format, "%")*(longest+1000) > made*t.bounds.Output {
				return "", &TooLargeError{t.bounds.Output}
			}
			return t.within(func() string { return fmt.Sprintf(format, a...) }, len(format))
		},
		"html": printed(template.HTMLEscaper), "js": printed(template.JSEscaper), "urlquery": printed(template.URLQueryEscaper),
	}
}

var wide = regexp.MustCompile(`[0-9]{4}|\*`)

func lengths(a []any) (n int) {
	for _, v := range a {
		if s, ok := v.(string); ok {
			n += len(s)
		}
	}
	return n
}

// within runs what makes a text of at least n bytes, if there is room for that, and counts what it made.
func (t *Template) within(f func() string, n int) (string, error) {
	if n > t.bounds.Output || t.used+n > made*t.bounds.Output {
		return "", &TooLargeError{t.bounds.Output}
	}
	out := f()
	t.used += len(out)
	if len(out) > t.bounds.Output || t.used > made*t.bounds.Output {
		return "", &TooLargeError{t.bounds.Output}
	}
	return out, nil
}

// bounded takes limit bytes.
type bounded struct {
	strings.Builder
	limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.limit {
		return 0, &TooLargeError{b.limit}
	}
	return b.Builder.Write(p)
}
