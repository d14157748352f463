package plain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"skep.dev/libs/printable"
)

func TestCell(t *testing.T) {
	for in, want := range map[string]string{
		"":                                     "",
		"w1":                                   "w1",
		"grün λόγος 節點 🚢 é":                    "grün λόγος 節點 🚢 é", // a combining mark is no control
		"\u00a0\u3000�":                        "\u00a0\u3000�",
		`C:\x1b`:                               `C:\x1b`,
		"\x1b[2J\x1b]0;x\a":                    `\x1b[2J\x1b]0;x\a`,
		"a\nb\r\n\tc":                          `a\nb\r\n\tc`,
		"\x00\x7f\u0080\u009b31m":              `\x00\x7f\u0080\u009b31m`,
		"\u202e\u202a\u2066\u2069":             `\u202e\u202a\u2066\u2069`,
		"\u200b\u200d\ufeff\u2028\u00ad\u061c": `\u200b\u200d\ufeff\u2028\u00ad\u061c`,
		"a\u3164\u034f\u115f":                  `a\u3164\u034f\u115f`,
		"⚠\ufe0f":                              "⚠\ufe0f",
		"\U000e0041":                           `\U000e0041`,
		"\x9b1m\xff\xe2":                       `\x9b1m\xff\xe2`,
		"ü\xc3":                                `ü\xc3`,
	} {
		if got := Cell(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	if got := Line("a\tb\nc\x1b"); got != "a\tb\\nc\\x1b" {
		t.Errorf("line %q", got)
	}
}

func TestCut(t *testing.T) {
	for _, x := range []struct {
		in   string
		n    int
		want string
	}{{"", 3, ""}, {"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"äöü", 3, "äöü"}, {"äöüß", 3, "äö…"}, {"äö", 1, "…"}, {"ä", 1, "ä"}} {
		if got := Cut(x.in, x.n); got != x.want {
			t.Errorf("%q to %d: %q", x.in, x.n, got)
		}
	}
}

func TestFprintf(t *testing.T) {
	var b bytes.Buffer
	n := 3
	if _, err := Fprintf(&b, "%s\t%v|%-4s|%d|%s|%v|%s|%q|%v\n", "a\nb", errors.New("\x1b[m"), "é", 5, 2*time.Second, []string{"x", "y\r"}, []byte("\u202e"), "q\x1b", nil); err != nil {
		t.Fatal(err)
	}
	if want := "a\\nb\t\\x1b[m|é   |5|2s|[x y\\r]|\\u202e|\"q\\\\x1b\"|<nil>\n"; b.String() != want {
		t.Errorf("%q\n%q", b.String(), want)
	}
	b.Reset()
	if _, err := Fprintf(&b, "%d %t %.1f %03d", n, true, 1.5, uint8(7)); err != nil || b.String() != "3 true 1.5 007" {
		t.Errorf("%q %v", b.String(), err)
	}
}

func TestNotef(t *testing.T) {
	var b bytes.Buffer
	if _, err := Notef(&b, "%s: %v %d\n", strings.Repeat("x", 1<<20), errors.New(strings.Repeat("y\n", MaxNote)), 5); err != nil {
		t.Fatal(err)
	}
	if utf8.RuneCountInString(b.String()) != 2*MaxNote+len(":  5\n") || strings.Count(b.String(), "\n") != 1 {
		t.Errorf("%d characters: %.20q", b.Len(), b.String())
	}
}

// TestWriterAtEveryCut: whatever the pieces a text is written in, the same comes out.
func TestWriterAtEveryCut(t *testing.T) {
	text := "ä\t節\n\x1b[31m\u202e🚢\xff\u009b\xf0\x9f ok\xe2\x82"
	want := "ä\t節\n\\x1b[31m\\u202e🚢\\xff\\u009b\\xf0\\x9f ok\\xe2\\x82"
	for i := range len(text) + 1 {
		for j := i; j <= len(text); j++ {
			var b bytes.Buffer
			w := NewWriter(&b)
			for _, part := range []string{text[:i], text[i:j], text[j:]} {
				if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
					t.Fatal(n, err)
				}
			}
			if err := w.Flush(); err != nil || b.String() != want {
				t.Fatalf("cut at %d and %d: %q %v", i, j, b.String(), err)
			}
		}
	}
	if w := NewWriter(&bytes.Buffer{}); NewWriter(w) != w {
		t.Error("a writer was wrapped twice")
	}
}

func TestDraw(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	if err := w.Draw(Code("\x1b[H"), "a\x1b[2J\nb", Code("\x1b[K\r\n")); err != nil || b.String() != "\x1b[Ha\\x1b[2J\\nb\x1b[K\r\n" {
		t.Errorf("%q %v", b.String(), err)
	}
	if err := w.Draw(1); err == nil {
		t.Error("a number was drawn")
	}
}

func TestJSON(t *testing.T) {
	in := map[string]string{"a\u202e": "\u009b\x7f\x1b\n\U000e0041 ü🚢"}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	got := JSON(text)
	if want := `{"a\u202e":"\u009b\u007f\u001b\n\udb40\udc41 ü🚢"}`; string(got) != want {
		t.Errorf("%s", got)
	}
	var back map[string]string
	if err := json.Unmarshal(got, &back); err != nil || back["a\u202e"] != in["a\u202e"] {
		t.Errorf("%q %v", back, err)
	}
}

// FuzzPlain: nothing hidden comes out of any door, and what had nothing hidden is as it was.
func FuzzPlain(f *testing.F) {
	f.Add("w1", 1)
	f.Add("\x1b]0;\u202e\x9b\xe2\x82", 5)
	f.Fuzz(func(t *testing.T, s string, cut int) {
		c := Cell(s)
		if strings.ContainsFunc(c, printable.Hidden) || !utf8.ValidString(c) || Cell(c) != c {
			t.Fatalf("cell %q of %q", c, s)
		}
		if utf8.ValidString(s) && !strings.ContainsFunc(s, printable.Hidden) && c != s {
			t.Fatalf("%q was changed to %q", s, c)
		}
		if cut > 0 && cut < 1<<16 && utf8.RuneCountInString(Cut(c, cut)) > cut {
			t.Fatalf("%q is longer than %d", Cut(c, cut), cut)
		}
		var b bytes.Buffer
		w := NewWriter(&b)
		at := max(0, min(cut, len(s)))
		_, _ = w.Write([]byte(s[:at]))
		_, _ = w.Write([]byte(s[at:]))
		_ = w.Flush()
		seen := strings.NewReplacer("\t", "", "\n", "").Replace(b.String())
		if strings.ContainsFunc(seen, printable.Hidden) || !utf8.ValidString(seen) {
			t.Fatalf("%q was written of %q", b.String(), s)
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var was, is string
		out := JSON(text)
		if strings.ContainsFunc(string(out), printable.Hidden) || json.Unmarshal(text, &was) != nil || json.Unmarshal(out, &is) != nil || was != is {
			t.Fatalf("%s of %s", out, text)
		}
	})
}

func TestErrorf(t *testing.T) {
	gone := errors.New("gone\nError: all is lost\x1b[2J")
	err := Errorf("job %s failed: %w\nSee %d.", "we\nb", gone, 3)
	if want := "job we\\nb failed: gone\\nError: all is lost\\x1b[2J\nSee 3."; err.Error() != want || !errors.Is(err, gone) {
		t.Errorf("%q", err)
	}
	if got := Lines(Errorf("%w\nTry again.", err)); len(got) != 3 || got[2] != "Try again." {
		t.Errorf("%q", got)
	}
	if got := Lines(fmt.Errorf("w\n1: %w (%s)", err, "a\nb")); len(got) != 2 || got[0] != "w\\n1: job we\\nb failed: gone\\nError: all is lost\\x1b[2J" || got[1] != "See 3. (a\\nb)" {
		t.Errorf("%q", got)
	}
	for _, e := range []error{gone, fmt.Errorf("w1: %v", err), fmt.Errorf("w1: %w", gone)} {
		if got := Lines(e); len(got) != 1 || strings.ContainsFunc(got[0], printable.Hidden) {
			t.Errorf("%q", got)
		}
	}
}
