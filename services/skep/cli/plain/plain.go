// Package plain prints text that comes from elsewhere — host names, versions, the output of checks, image tags, error
// texts — so that it can neither steer the terminal that shows it nor pass for other lines than its own.
//
// It works on two levels. A Writer, through which every command prints, lets no character pass that is not seen:
// whoever prints through it cannot forget that. Within what is printed, Fprintf, Cell and render's templates keep a
// value on its own line and in its own column, which only they can tell from the ends of lines the command wrote.
//
// What is not let through is shown as Go would write it in a string: \x1b, \u202e, \n. JSON has an exact form of its
// own, see JSON.
package plain

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"skep.dev/libs/printable"
)

// Cell is s for a place of its own: a cell, a field, a part of a sentence. Hidden characters and bytes that are no
// UTF-8 are written out, ends of lines and tabs too. Other text stays as it is.
func Cell(s string) string { return escape(s, "") }

// Line is s for a line of its own: as Cell, but tabs stay.
func Line(s string) string { return escape(s, "\t") }

// escape writes out what is hidden and not in keep.
func escape(s, keep string) string {
	at := next(s, keep)
	if at == len(s) {
		return s
	}
	b := make([]byte, 0, len(s)+16)
	for {
		b = append(b, s[:at]...)
		if s = s[at:]; s == "" {
			return string(b)
		}
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			b = fmt.Appendf(b, `\x%02x`, s[0])
		case strconv.IsPrint(r): // by its category
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			q := strconv.AppendQuoteRune(nil, r)
			b = append(b, q[1:len(q)-1]...)
		}
		s = s[n:]
		at = next(s, keep)
	}
}

// next is where in s the first character is that must be written out, len(s) without one.
func next(s, keep string) int {
	for i, r := range s {
		switch {
		case r == utf8.RuneError:
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return i
			}
		case printable.Hidden(r) && !strings.ContainsRune(keep, r):
			return i
		}
	}
	return len(s)
}

// Cut is s with at most n characters, the last of them an ellipsis where it was longer.
func Cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := range s {
		if n--; n == 0 {
			if _, size := utf8.DecodeRuneInString(s[i:]); i+size < len(s) {
				return s[:i] + "…"
			}
			break
		}
	}
	return s
}

// JSON is a JSON text in which the characters are escaped, as JSON escapes them, that JSON lets stand and a terminal
// or a reader is deceived by: DEL, C1 controls, bidi and zero-width characters. It says the same as before.
func JSON(text []byte) []byte {
	s := string(text)
	var b strings.Builder
	last := 0
	for i, r := range s {
		if r < 0x7f || !printable.Hidden(r) {
			continue
		}
		b.WriteString(s[last:i])
		last = i + utf8.RuneLen(r)
		for _, u := range utf16Units(r) {
			fmt.Fprintf(&b, `\u%04x`, u)
		}
	}
	if last == 0 {
		return text
	}
	b.WriteString(s[last:])
	return []byte(b.String())
}

// Arg is a value for a format: text, and what describes itself by one, becomes a cell; numbers stay.
func Arg(v any) any {
	switch v := v.(type) {
	case nil, bool, int, int32, int64, uint, uint16, uint32, uint64, float64:
		return v
	case string:
		return Cell(v)
	case []byte:
		return Cell(string(v))
	case error:
		return Cell(v.Error())
	}
	switch reflect.ValueOf(v).Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return v // a duration or a word of the API: what it says is in the code
	}
	return Cell(fmt.Sprint(v))
}
