// Package filetemplate fills in secrets and configs that are templates (--template-driver golang): text/template with
// Docker's fields and the functions secret, config, env and join (swarmkit template/context.go).
//
// What a template could hang or fill a node with is bounded by libs/boundtemplate. An error never repeats a part of the text, which may be secret: it
// names the line.
package filetemplate

import (
	"errors"
	"fmt"
	"regexp"
	"text/template"

	"skep.dev/libs/boundtemplate"
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
	out, err := t.Execute(fields)
	if err != nil {
		var missing *missingError
		var large *boundtemplate.TooLargeError
		switch {
		case errors.As(err, &missing):
			return nil, missing
		case errors.As(err, &large):
			return nil, errTooLarge
		}
		return nil, fmt.Errorf("the template cannot be filled in (%s)", line(err))
	}
	return []byte(out), nil
}

func parsed(text []byte, from Sources) (*boundtemplate.Template, error) {
	get := func(kind string, look func(string) (string, bool)) func(string) (string, error) {
		return func(target string) (string, error) {
			if v, ok := look(target); ok {
				return v, nil
			}
			return "", &missingError{kind, target}
		}
	}
	t, err := boundtemplate.Parse(string(text), boundtemplate.Bounds{Output: Limit, Loops: maxLoops}, template.FuncMap{
		"secret": get("secret", from.Secret), "config": get("config", from.Config), "env": from.Env,
	})
	var loop *boundtemplate.LoopError
	switch {
	case err == nil:
		return t, nil
	case errors.Is(err, boundtemplate.ErrNamed):
		return nil, errors.New("named templates (define, block) are not supported in secrets and configs")
	case errors.As(err, &loop) && loop.Deep:
		return nil, fmt.Errorf("line %d: loops more than %d deep are not supported in secrets and configs", loop.Line, maxLoops)
	case errors.As(err, &loop):
		return nil, fmt.Errorf("line %d: a loop in a secret or config goes over a field, such as .Service.Labels", loop.Line)
	}
	return nil, fmt.Errorf("it is not a valid Go template (%s)", line(err))
}

// missingError: the service has no such file.
type missingError struct{ kind, target string }

func (e *missingError) Error() string {
	return fmt.Sprintf("the template asks for the %s %q, and the service has no %s with that target", e.kind, e.target, e.kind)
}

var errTooLarge = fmt.Errorf("the template fills in to more than %d bytes", Limit)

var lineOf = regexp.MustCompile(`^template: [^:]*:(\d+)`)

// line is the part of text/template's errors that repeats nothing of the text.
func line(err error) string {
	if m := lineOf.FindStringSubmatch(err.Error()); m != nil {
		return "line " + m[1]
	}
	return "it fails"
}

const maxLoops = 2
