package plain

import (
	"fmt"
	"io"
	"sync"
	"unicode/utf16"
	"unicode/utf8"
)

// Writer passes on what is written to it with every hidden character written out, but tabs and ends of lines. It is
// safe for several goroutines; what one Write says stays together.
type Writer struct {
	mu   sync.Mutex
	w    io.Writer
	rest []byte // the beginning of a character whose end was not written yet
}

// NewWriter wraps w; a Writer is returned as it is.
func NewWriter(w io.Writer) *Writer {
	if p, ok := w.(*Writer); ok {
		return p
	}
	return &Writer{w: w}
}

// Write never writes a part of a character: it keeps one that is not complete for the next Write, or Flush.
func (p *Writer) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := b
	if len(p.rest) > 0 {
		text = append(p.rest, b...)
	}
	end := complete(text)
	p.rest = append([]byte(nil), text[end:]...)
	return len(b), p.put(escape(string(text[:end]), "\t\n"))
}

// Flush writes what is left of a character that was begun and never ended.
func (p *Writer) Flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := escape(string(p.rest), "")
	p.rest = nil
	return p.put(text)
}

func (p *Writer) put(s string) error {
	if s == "" {
		return nil
	}
	_, err := io.WriteString(p.w, s)
	return err
}

// complete is where in b a last character begins that is not all there, len(b) without one.
func complete(b []byte) int {
	for i := len(b) - 1; i >= 0 && i >= len(b)-utf8.UTFMax+1; i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return i
			}
			break
		}
	}
	return len(b)
}

// Code is a control sequence of skep's own, for Draw. It never holds text that comes from elsewhere.
type Code string

// Draw writes codes as they are and, between them, strings as Line makes them: for what is painted on a terminal.
func (p *Writer) Draw(parts ...any) error {
	var b []byte
	for _, x := range parts {
		switch x := x.(type) {
		case Code:
			b = append(b, x...)
		case string:
			b = append(b, Line(x)...)
		default:
			return fmt.Errorf("draw a %T: neither a code nor a string", x)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.put(string(b))
}

// Raw is the writer below, for bytes that are the user's own: an exec session, the output of tasks that goes to a pipe.
func (p *Writer) Raw() io.Writer { return p.w }

// Fprintf prints as fmt.Fprintf does, with every string, error and other text among the values made a Cell. The
// format is the program's own and keeps its tabs and ends of lines. An error is that of w.
func Fprintf(w io.Writer, format string, a ...any) (int, error) {
	for i, v := range a {
		a[i] = Arg(v)
	}
	return fmt.Fprintf(w, format, a...)
}

// MaxNote is how many characters of a value Notef shows.
const MaxNote = 4096

// Notef is Fprintf for what is said beside a result — errors, warnings, progress: what a node or a program says of
// itself has no end of its own, and is cut.
func Notef(w io.Writer, format string, a ...any) (int, error) {
	for i, v := range a {
		a[i] = Arg(v)
		if s, is := a[i].(string); is {
			a[i] = Cut(s, MaxNote)
		}
	}
	return fmt.Fprintf(w, format, a...)
}

func utf16Units(r rune) []uint16 { return utf16.AppendRune(nil, r) }
