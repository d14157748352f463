// Package printable says which characters of a stranger's text are not seen where it is shown, and cuts it.
package printable

import (
	"unicode"
	"unicode/utf8"
)

// Hidden tells whether a character has no look of its own but an effect on others: a control character (C0, DEL, C1;
// tab and newline too), a format character (bidi overrides and isolates, zero-width ones, tags, the byte order mark), a
// letter or mark for which nothing is drawn (Hangul fillers, the grapheme joiner) or a separator of lines or paragraphs.
// Other letters, marks, symbols and spaces of every script are none, nor are the variation selectors emoji have.
func Hidden(r rune) bool {
	if r < 0x7f {
		return r < ' '
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point)
}

// Cut is s with at most n bytes; it breaks no character.
func Cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
