package plain

import (
	"errors"
	"fmt"
	"strings"
)

// several is an error whose text has ends of lines of its own.
type several struct {
	text    string
	wrapped []error
}

func (e *several) Error() string   { return e.text }
func (e *several) Unwrap() []error { return e.wrapped }

// Errorf makes an error that may take several lines: those of its format, and of errors among the values that it made
// itself. Every other value is a Cell. It wraps the errors among the values, %w or not.
func Errorf(format string, a ...any) error {
	e := &several{}
	for i, v := range a {
		err, is := v.(error)
		if is {
			e.wrapped = append(e.wrapped, err)
			a[i] = strings.Join(Lines(err), "\n")
			continue
		}
		a[i] = Arg(v)
	}
	e.text = fmt.Sprintf(strings.ReplaceAll(format, "%w", "%s"), a...)
	return e
}

// Lines is the text of an error, ready to print. It is one line, whatever the text holds, but for the part that Errorf
// made: an end of line anywhere else comes from elsewhere.
func Lines(err error) []string {
	text := err.Error()
	if e := (*several)(nil); errors.As(err, &e) {
		if before, after, is := strings.Cut(text, e.text); is {
			return strings.Split(strings.TrimSpace(Cell(before)+e.text+Cell(after)), "\n")
		}
	}
	return []string{Cell(strings.TrimSpace(text))}
}
