// Package filetemplate fills in secrets and configs that are templates (--template-driver golang): text/template with
// Docker's fields and the functions secret, config, env and join (swarmkit template/context.go).
//
// It refuses what a template could hang or fill a node with: named templates, and loops over anything but a field, or more
// than two deep. What it writes is bounded by Limit. An error never repeats a part of the text, which may be secret: it
// names the line.
package filetemplate

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"text/template"
	"text/template/parse"
)

// Limit is how large a filled-in file may be, bytes: that of a config.
const Limit = 1000 << 10

// Sources are what a template may ask for beside its fields.
type Sources struct {
	// Secret and Config are the values of the service's other files, by target, and whether there is one.
	Secret, Config func(target string) (string, bool)
	// Env is a variable of the container, "" for one it does not have.
	Env func(name string) string
}

// Check refuses a text that Fill would refuse whatever it is filled in with.
func Check(text []byte) error {
	_, err := parsed(text, Sources{})
	return err
}

// Fill fills in a text. fields is what a dot stands for.
func Fill(text []byte, fields any, from Sources) ([]byte, error) {
	t, err := parsed(text, from)
	if err != nil {
		return nil, err
	}
	var out bounded
	if err := t.Execute(&out, fields); err != nil {
		var missing *missingError
		switch {
		case errors.As(err, &missing):
			return nil, missing
		case errors.Is(err, errTooLarge):
			return nil, errTooLarge
		}
		return nil, fmt.Errorf("the template cannot be filled in (%s)", line(err))
	}
	return out.Bytes(), nil
}

func parsed(text []byte, from Sources) (*template.Template, error) {
	get := func(kind string, look func(string) (string, bool)) func(string) (string, error) {
		return func(target string) (string, error) {
			if v, ok := look(target); ok {
				return v, nil
			}
			return "", &missingError{kind, target}
		}
	}
	t, err := template.New("").Option("missingkey=error").Funcs(template.FuncMap{
		"secret": get("secret", from.Secret), "config": get("config", from.Config), "env": from.Env,
		"join": func(sep string, s ...string) string { return strings.Join(s, sep) }, "printf": printf,
	}).Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("it is not a valid Go template (%s)", line(err))
	}
	if len(t.Templates()) > 1 {
		return nil, errors.New("named templates (define, block) are not supported in secrets and configs")
	}
	if t.Tree == nil { // nothing but comments
		return t, nil
	}
	return t, walk(t.Root, 0)
}

var wide = regexp.MustCompile(`[0-9]{4}|\*`)

// printf is text/template's, without what makes much of little: the result is in memory before it can be bounded.
func printf(format string, a ...any) (string, error) {
	if len(format) > 256 || wide.MatchString(format) {
		return "", errors.New("printf: the format is too long or too wide")
	}
	return fmt.Sprintf(format, a...), nil
}

// missingError: the service has no such file.
type missingError struct{ kind, target string }

func (e *missingError) Error() string {
	return fmt.Sprintf("the template asks for the %s %q, and the service has no %s with that target", e.kind, e.target, e.kind)
}

var errTooLarge = fmt.Errorf("the template fills in to more than %d bytes", Limit)

// bounded takes Limit bytes.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > Limit {
		return 0, errTooLarge
	}
	return b.Buffer.Write(p)
}

var lineOf = regexp.MustCompile(`^template: [^:]*:(\d+)`)

// line is the part of text/template's errors that repeats nothing of the text.
func line(err error) string {
	if m := lineOf.FindStringSubmatch(err.Error()); m != nil {
		return "line " + m[1]
	}
	return "it fails"
}

const maxLoops = 2

// walk refuses what could run without end.
func walk(n parse.Node, loops int) error {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, c := range n.Nodes {
			if err := walk(c, loops); err != nil {
				return err
			}
		}
	case *parse.IfNode:
		return errors.Join(walk(n.List, loops), walk(n.ElseList, loops))
	case *parse.WithNode:
		return errors.Join(walk(n.List, loops), walk(n.ElseList, loops))
	case *parse.RangeNode:
		if loops++; loops > maxLoops {
			return fmt.Errorf("line %d: loops more than %d deep are not supported in secrets and configs", n.Line, maxLoops)
		}
		if len(n.Pipe.Cmds) != 1 || len(n.Pipe.Cmds[0].Args) != 1 || n.Pipe.Cmds[0].Args[0].Type() != parse.NodeField {
			return fmt.Errorf("line %d: a loop in a secret or config goes over a field, such as .Service.Labels", n.Line)
		}
		return errors.Join(walk(n.List, loops), walk(n.ElseList, loops))
	case *parse.TemplateNode:
		return errors.New("named templates are not supported in secrets and configs")
	}
	return nil
}
