package specflag

import (
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestNothingIsPassedOver: a value is refused whole when a part of it could not be what is meant.
func TestNothingIsPassedOver(t *testing.T) {
	for _, x := range []struct{ flag, value, text string }{
		{"publish", "target=80\npublished=81", "more than one line"},
		{"mount", "type=volume,dst=/v\nro", "more than one line"},
		{"network", "name=front\nalias=a", "more than one line"},
		{"secret", "source=a\ntarget=b", "more than one line"},
		{"config", "source=a\n\"", "more than one line"},
		{"env", "A=\xff", "not UTF-8"},
		{"label", "a=\xff", "not UTF-8"},
		{"workdir", "/\x00", "NUL"},
		{"host", "a\n10.0.0.1 b:10.0.0.2", "bad format for add-host"},
		{"host", "a#:10.0.0.2", "bad format for add-host"},
		{"dns-search", ":example.com", "not a valid domain"},
		{"dns-search", "example:.com", "not a valid domain"},
	} {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		Create(fs)
		if err := fs.Set(x.flag, x.value); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), x.text) {
			t.Errorf("--%s %q: %v", x.flag, x.value, err)
		}
	}
	for _, v := range []string{"example.com", "a.b-c.example.", "x", "ingress.local"} {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		Create(fs)
		if err := fs.Set("dns-search", v); err != nil {
			t.Errorf("%s: %v", v, err)
		}
	}
	c := Create(pflag.NewFlagSet("", pflag.ContinueOnError))
	if _, err := c.Spec("httpd", []string{"ok", "a\xff"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("an argument that is no text: %v", err)
	}
	c.LookupEnv = func(string) (string, bool) { return "\xff", true }
	if _, err := environment(c.LookupEnv, nil, []string{"A"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a variable of the caller that is no text: %v", err)
	}
}

// TestEnvFile: where the mistake is, is said; a long line is fine, an endless one is not.
func TestEnvFile(t *testing.T) {
	got, err := parseEnvFile("vars", strings.NewReader("\ufeffA=1\r\n# c\n\n\tB\nC=x=y \nL="+strings.Repeat("x", 100_000)))
	if err != nil || len(got) != 4 || strings.Join(got[:3], "|") != "A=1|B|C=x=y " || len(got[3]) != 100_002 {
		t.Errorf("%.40q %v", got, err)
	}
	for text, want := range map[string]string{
		"A=1\n=x": "vars:2: ", "a b=c": "vars:1: ", "A=1\n\nB=\xff": "vars:3: ", "A=\x00": "vars:1: ", "A=1\n\ufeffB=2\n=": "vars:3: ", "A=" + strings.Repeat("x", maxEnvFile): "larger than 1048576 bytes",
	} {
		if _, err := parseEnvFile("vars", strings.NewReader(text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

// A line is as long as it likes, up to what the limits of a service take.
func TestLongLinesOfEnvFiles(t *testing.T) {
	for _, n := range []int{64 << 10, 200 << 10, maxEnvFile - 20} {
		long := strings.Repeat("x", n)
		got, err := parseEnvFile("vars", strings.NewReader("A=1\r\nBIG="+long+"\nB"))
		if err != nil || len(got) != 3 || got[0] != "A=1" || got[1] != "BIG="+long || got[2] != "B" {
			t.Errorf("a line of %d bytes: %d lines, %v", n, len(got), err)
		}
	}
}
