package render

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/template"
)

// missing is how text/template says that a template names what its value has not; the chain of names is in <>.
var missing = regexp.MustCompile(`<\$?((?:\.[A-Za-z0-9_]+)+)>: (?:map has no entry for key|can't evaluate field)`)

// unknownField reports whether a template failed for a field there is not.
func unknownField(err error) bool {
	var fe *ErrFormat
	return errors.As(err, &fe) && missing.MatchString(fe.Err.Error())
}

// withFields adds to such an error the fields there are where the template looked for another one.
func withFields(err error, tp *template.Template, v any) error {
	m := missing.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	if text := tp.Root.String(); strings.Contains(text, "{{range") || strings.Contains(text, "{{with") {
		return err // the dot is not what the template began with
	}
	at := reflect.ValueOf(v)
	for _, name := range strings.Split(m[1], ".")[1:] {
		at = behind(at)
		next := reflect.Value{}
		switch {
		case at.Kind() == reflect.Map && at.Type().Key().Kind() == reflect.String:
			next = at.MapIndex(reflect.ValueOf(name).Convert(at.Type().Key()))
		case at.Kind() == reflect.Struct:
			next = at.FieldByName(name)
		}
		if !next.IsValid() {
			if names := fieldsOf(at); len(names) > 0 {
				return fmt.Errorf("%w; there are %s", err, strings.Join(names, ", "))
			}
			return err
		}
		at = next
	}
	return err
}

// behind is what a pointer or interface stands for.
func behind(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	return v
}

func fieldsOf(v reflect.Value) (out []string) {
	switch v.Kind() {
	case reflect.Map:
		for _, k := range v.MapKeys() {
			out = append(out, "."+k.String())
		}
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(v.Type()) {
			if f.IsExported() && !f.Anonymous {
				out = append(out, "."+f.Name)
			}
		}
	}
	slices.Sort(out)
	return out
}
