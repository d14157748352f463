package printable

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestHidden(t *testing.T) {
	for _, r := range "\x00\t\n\x1b\x7f\u0085\u200b\u200f\u202e\u2028\u2029\u2066\ufeff\u3164\u034f\U000e0041" {
		if !Hidden(r) {
			t.Errorf("%U is seen", r)
		}
	}
	for _, r := range " aÄ~é漢🦊\ufe0f\u0301\u00a0" {
		if Hidden(r) {
			t.Errorf("%U is hidden", r)
		}
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		s    string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"aéb", 2, "a"}, {"aéb", 3, "aé"}, {"🦊", 3, ""}, {"", 0, ""}, {"é", 0, ""}} {
		if got := Cut(c.s, c.n); got != c.want {
			t.Errorf("%q at %d: %q, want %q", c.s, c.n, got, c.want)
		}
	}
}

func FuzzCut(f *testing.F) {
	f.Add("aé🦊\xff", uint8(3))
	f.Fuzz(func(t *testing.T, s string, n uint8) {
		got := Cut(s, int(n))
		if len(got) > int(n) || !strings.HasPrefix(s, got) || utf8.ValidString(s) && !utf8.ValidString(got) {
			t.Fatalf("%q at %d: %q", s, n, got)
		}
	})
}
