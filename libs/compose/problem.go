package compose

import (
	"fmt"
	"slices"
	"strings"

	"skep.dev/libs/fault"
)

// Where is a place in a file. Line and Column begin at 1; 0 = the file as a whole.
type Where struct {
	File         string // as it was named, "stdin" for standard input
	Line, Column int
}

func (w Where) String() string {
	if w.Line == 0 {
		return w.File
	}
	return fmt.Sprintf("%s:%d:%d", w.File, w.Line, w.Column)
}

// Note is a remark about a place: a warning, or one of Problems.
type Note struct {
	Where Where
	Path  string // of the attribute, such as services.web.build; "" = none
	Text  string
}

func (n Note) String() string {
	parts := make([]string, 0, 3)
	for _, p := range []string{n.Where.String(), n.Path, n.Text} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ": ")
}

// Problems is everything that is wrong with the files: each says where, and what to do. It never holds a value of a
// secret or of an environment variable.
type Problems []Note

// shownProblems bounds the text: a file of another kind has thousands.
const shownProblems = 50

func (p Problems) Error() string {
	lines := make([]string, 0, len(p))
	for i, n := range p {
		if i == shownProblems {
			lines = append(lines, fmt.Sprintf("and %d more", len(p)-i))
			break
		}
		lines = append(lines, n.String())
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes it the fault that every caller knows: the files can never be deployed as they are.
func (p Problems) Unwrap() error { return fault.Invalid("%s", p.Error()) }

// sorted puts notes in the order of files, lines and texts, each once.
func sorted(notes []Note) []Note {
	slices.SortFunc(notes, func(a, b Note) int {
		return cmpNote(a, b)
	})
	return slices.Compact(notes)
}

func cmpNote(a, b Note) int {
	if c := strings.Compare(a.Where.File, b.Where.File); c != 0 {
		return c
	}
	if a.Where.Line != b.Where.Line {
		return a.Where.Line - b.Where.Line
	}
	if a.Where.Column != b.Where.Column {
		return a.Where.Column - b.Where.Column
	}
	if c := strings.Compare(a.Path, b.Path); c != 0 {
		return c
	}
	return strings.Compare(a.Text, b.Text)
}
