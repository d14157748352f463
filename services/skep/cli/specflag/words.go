package specflag

import (
	"strings"
)

// SplitWords splits a command line as a POSIX shell would, without expanding anything.
func SplitWords(s string) ([]string, error) {
	var (
		out    []string
		cur    strings.Builder
		inWord bool
		quote  rune
		esc    bool
	)
	for _, r := range s {
		switch {
		case esc:
			if quote == '"' && !strings.ContainsRune(`"\$`+"`", r) {
				cur.WriteByte('\\')
			}
			cur.WriteRune(r)
			esc = false
		case quote == '\'':
			if r == '\'' {
				quote = 0
			} else {
				cur.WriteRune(r)
			}
		case r == '\\':
			esc, inWord = true, true
		case quote == '"':
			if r == '"' {
				quote = 0
			} else {
				cur.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if inWord {
				out = append(out, cur.String())
				cur.Reset()
				inWord = false
			}
		default:
			inWord = true
			cur.WriteRune(r)
		}
	}
	if quote != 0 {
		return nil, invalidf("unbalanced %c in %q", quote, s)
	}
	if esc {
		return nil, invalidf("%q ends in a backslash", s)
	}
	if inWord {
		out = append(out, cur.String())
	}
	return out, nil
}
