package specflag

import (
	"encoding/csv"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// scalar is a flag that holds one parsed value and knows whether it was given.
type scalar[T any] struct {
	val   T
	set   bool
	text  string
	typ   string
	parse func(string) (T, error)
}

func (s *scalar[T]) Set(in string) error {
	if err := readable(in); err != nil {
		return err
	}
	v, err := s.parse(in)
	if err != nil {
		return err
	}
	s.val, s.set, s.text = v, true, in
	return nil
}

func (s *scalar[T]) String() string { return s.text }
func (s *scalar[T]) Type() string   { return s.typ }

// boolean is a scalar that may stand without a value (--init).
type boolean struct{ scalar[bool] }

func (b *boolean) IsBoolFlag() bool { return true }

// list is a flag that may be given many times; every value is parsed as it is read, so a mistake is reported
// with the flag that has it.
type list[T any] struct {
	vals  []T
	raw   []string
	typ   string
	parse func(string) ([]T, error)
}

func (l *list[T]) Set(in string) error {
	if err := readable(in); err != nil {
		return err
	}
	v, err := l.parse(in)
	if err != nil {
		return err
	}
	l.vals = append(l.vals, v...)
	l.raw = append(l.raw, in)
	return nil
}

func (l *list[T]) String() string {
	if len(l.raw) == 0 {
		return ""
	}
	return "[" + strings.Join(l.raw, " ") + "]"
}
func (l *list[T]) Type() string { return l.typ }
func (l *list[T]) set() bool    { return len(l.raw) > 0 }

// one turns a parser of a single value into a list's parser.
func one[T any](parse func(string) (T, error)) func(string) ([]T, error) {
	return func(s string) ([]T, error) {
		v, err := parse(s)
		if err != nil {
			return nil, err
		}
		return []T{v}, nil
	}
}

func text(s string) (string, error) { return s, nil }

// splitCommas reads several values of one flag: a,b.
func splitCommas(s string) ([]string, error) {
	out := strings.Split(s, ",")
	for i, v := range out {
		if out[i] = strings.TrimSpace(v); out[i] == "" {
			return nil, invalidf("%q has an empty part", s)
		}
	}
	return out, nil
}

// readable refuses what no spec can hold: bytes that are no UTF-8, and NUL, which ends a string for the kernel.
func readable(s string) error {
	switch {
	case !utf8.ValidString(s):
		return invalidf("%q is not UTF-8", s)
	case strings.ContainsRune(s, 0):
		return invalidf("%q holds a NUL", s)
	}
	return nil
}

// fields are the parts of a value of the form key=value,…, quoted as CSV where one holds a comma. All of the value is
// one record: nothing of it is passed over.
func fields(s string) ([]string, error) {
	r := csv.NewReader(strings.NewReader(s))
	out, err := r.Read()
	if err != nil {
		return nil, err
	}
	if _, err := r.Read(); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one line")
	}
	return out, nil
}
