package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"
)

// Whatever text a stranger gets into the log, a line stays short and says nothing to a terminal.
func TestTextsInTheLogAreCut(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLogger("info", &out)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("é\x1b[2J\u009b1m\u202e", 100_000)
	var none *os.PathError
	log.With(zap.String("with", long)).Warn(long, zap.String("string", long), zap.Error(errors.New(long)), zap.ByteString("bytes", []byte(long)),
		zap.Stringer("stringer", bytes.NewBufferString(long)), zap.Error(none))
	if n := out.Len(); n > 6*2*maxText {
		t.Errorf("one line of %d bytes", n)
	}
	for _, bad := range []string{"\x1b", "\u009b", "\u202e", `\u001b`} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("%q is in the log", bad)
		}
	}
	if strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), "… (1300000 bytes)") {
		t.Errorf("%.300q", out.String())
	}
	out.Reset()
	log.Info("short", zap.String("s", "one\ntwo"), zap.Error(fmt.Errorf("wrapped: %w", errors.New("cause"))))
	if !strings.Contains(out.String(), `"s":"one\ntwo","error":"wrapped: cause"`) {
		t.Errorf("%s", out.String())
	}
}

// 16 MiB a second into a log that never rotated: the lines of a minute are bounded (and the file: see logfile).
func TestAFloodDoesNotFillTheLog(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "skep.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	log, err := NewLogger("info", f)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20_000 {
		log.Error("publish violation", zap.String("subject", strings.Repeat("x", 3500)))
		log.Error(fmt.Sprint("kinds nobody foresaw ", i), zap.String("subject", strings.Repeat("x", 3500)))
	}
	// 1,000 lines of the first, as many as there may be kinds of the others.
	b, err := os.ReadFile(path)
	if n := bytes.Count(b, []byte("\n")); err != nil || n > 5*perMinute || len(b) > 6<<20 {
		t.Errorf("%d lines, %d bytes, %v", n, len(b), err)
	}
	if n := bytes.Count(b, []byte("publish violation")); n != perMinute {
		t.Errorf("%d lines of one kind", n)
	}
}

// Whatever the text, what is logged of it is short and prints as it reads.
func FuzzCut(f *testing.F) {
	for _, s := range []string{"", "plain", "two\nlines", "\x1b[2J", "\u202eevil", strings.Repeat("é", maxText), "\xff\xfe"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := cut(s)
		if len(got) > 3*maxText+64 {
			t.Errorf("%d bytes", len(got))
		}
		for _, r := range got {
			if r != '\n' && r != '\t' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
				t.Errorf("%q holds %U", got, r)
			}
		}
		if len(s) <= maxText && utf8.ValidString(s) && got == strings.ToValidUTF8(got, "") && !strings.ContainsRune(got, utf8.RuneError) && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}
