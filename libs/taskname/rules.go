package taskname

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/template"
	"text/template/parse"
)

// Limit is how large a name that is filled in may be, bytes: an environment variable is the largest.
const Limit = 64 << 10

// Example fills Names for a task that does not exist yet, of a service with its real name and labels. What it makes of a
// template is as short as what any node makes.
func Example(service string, labels map[string]string) Names {
	var n Names
	n.Service.ID, n.Service.Name, n.Service.Labels = "s", service, labels
	n.Node.ID, n.Node.Hostname = "n", "n"
	n.Node.Platform.Architecture, n.Node.Platform.OS = "amd64", "linux"
	n.Task.ID, n.Task.Slot = "t", "1"
	n.Task.Name = service + ".1.t"
	return n
}

// Literal is how a text with braces is written that is to arrive as it is.
func Literal(text string) string { return strings.ReplaceAll(text, "{{", `{{"{{"}}`) }

// parsed reads a template by the rules that managers and nodes have in common: what could hang or fill either is refused.
func parsed(text string) (*template.Template, error) {
	t, err := template.New("").Option("missingkey=error").Funcs(functions).Parse(text)
	if err != nil {
		return nil, errors.New(saying(err))
	}
	if len(t.Templates()) > 1 {
		return nil, errNamed
	}
	if t.Tree == nil { // nothing but comments
		return t, nil
	}
	return t, walk(t.Root, 0)
}

var place = regexp.MustCompile(`^template: :\d+(?::\d+)?: `)

// saying is what text/template says, without the place in a text that is one line mostly and stands beside it.
func saying(err error) string { return place.ReplaceAllString(err.Error(), "") }

var errNamed = errors.New("named templates (define, block) are not supported")

// walk refuses loops over anything but a field, and loops in loops.
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
		if loops > 0 || len(n.Pipe.Cmds) != 1 || len(n.Pipe.Cmds[0].Args) != 1 || n.Pipe.Cmds[0].Args[0].Type() != parse.NodeField {
			return errors.New("a loop goes over a field, such as .Service.Labels, and stands in no other loop")
		}
		return errors.Join(walk(n.List, loops+1), walk(n.ElseList, loops))
	case *parse.TemplateNode:
		return errNamed
	}
	return nil
}

// functions are text/template's that make texts of texts, each with a bound: what they make is in memory before it is
// written, and a few of them in a row would make much of little.
var functions = template.FuncMap{
	"join": func(sep string, s ...string) (string, error) {
		return within(func() string { return strings.Join(s, sep) }, len(s)*len(sep), s...)
	},
	"print":   func(a ...any) (string, error) { return printed(fmt.Sprint, a) },
	"println": func(a ...any) (string, error) { return printed(fmt.Sprintln, a) },
	"printf": func(format string, a ...any) (string, error) {
		longest := 0
		for _, v := range a {
			if s, ok := v.(string); ok {
				longest = max(longest, len(s))
			}
		}
		// A verb may name any argument, and be three digits wide.
		if wide.MatchString(format) || strings.Count(format, "%")*(longest+1000) > 16*Limit {
			return "", errTooLong
		}
		return within(func() string { return fmt.Sprintf(format, a...) }, len(format))
	},
	"html": escaped(template.HTMLEscaper), "js": escaped(template.JSEscaper), "urlquery": escaped(template.URLQueryEscaper),
}

var (
	wide       = regexp.MustCompile(`[0-9]{4}|\*`)
	errTooLong = fmt.Errorf("it makes more than %d bytes", Limit)
)

func within(f func() string, n int, s ...string) (string, error) {
	for _, x := range s {
		n += len(x)
	}
	if n > Limit {
		return "", errTooLong
	}
	out := f()
	if len(out) > Limit {
		return "", errTooLong
	}
	return out, nil
}

func printed(f func(...any) string, a []any) (string, error) {
	var s []string
	for _, v := range a {
		if x, ok := v.(string); ok {
			s = append(s, x)
		}
	}
	return within(func() string { return f(a...) }, 0, s...)
}

func escaped(f func(...any) string) func(...any) (string, error) {
	return func(a ...any) (string, error) { return printed(f, a) }
}

// bounded takes Limit bytes.
type bounded struct{ strings.Builder }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > Limit {
		return 0, errTooLong
	}
	return b.Builder.Write(p)
}

var _ io.Writer = (*bounded)(nil)
