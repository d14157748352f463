package id

import (
	"strings"
	"testing"
)

func TestSafe(t *testing.T) {
	for _, s := range []string{New(), "a", "t-1_B", strings.Repeat("x", 64)} {
		if !Safe(s) {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range []string{"", ".", "..", "a/b", "a.b", "a*", "a b", "ä", "a\x00", strings.Repeat("x", 65)} {
		if Safe(s) {
			t.Errorf("%q is taken for a file's name", s)
		}
	}
}
