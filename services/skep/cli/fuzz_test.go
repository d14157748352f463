package cli

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// usage fails unless a refusal is a mistake in the command.
func usage(t *testing.T, err error) {
	t.Helper()
	var f *Failure
	if !errors.As(err, &f) || f.Code != ExitUsage {
		t.Fatalf("%v is no mistake in a command", err)
	}
}

// FuzzWhen: what --since and --until take is a time that can be sent.
func FuzzWhen(f *testing.F) {
	for _, s := range []string{"", "10m", "-10m", "2562047h", "2026-01-02", "2026-01-02T15:04:05.5+01:00", "0000-01-01", "9999-12-31T23:59:59Z", "1767366000", "1767366000.5", "1.-5", "9223372036854775807", "-9223372036854775808", "1."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		at, err := parseWhen("since", s, testNow)
		if err != nil {
			usage(t, err)
			return
		}
		if s != "" && (at.CheckValid() != nil || at.AsTime().Year() < 1 || at.AsTime().Year() > 9999) {
			t.Fatalf("%q is %v", s, at)
		}
		if d, err := time.ParseDuration(s); err == nil && !at.AsTime().Equal(testNow.Add(-d)) {
			t.Fatalf("%q ago is %s", s, at.AsTime())
		}
	})
}

// FuzzWords: filters and ports are refused or are what was written.
func FuzzWords(f *testing.F) {
	for _, s := range []string{"name=web", "LABEL = a=b", "=x", "x", "label!=a", "8080", "53/UDP", "0", "65536/tcp", "80/icmp", "+80", "8080/", "\u212aey=1"} {
		f.Add(s, "name=b")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		got, err := (&filterFlag{given: []string{a, b}, keys: []string{"name", "label", "label!", "key"}}).parse()
		if err != nil {
			usage(t, err)
		}
		n := 0
		for _, x := range got {
			n += len(x.Values)
			if x.Key == "" || x.Key != strings.TrimSpace(strings.ToLower(x.Key)) {
				t.Fatalf("%q, %q: %v", a, b, got)
			}
		}
		if err == nil && n != 2 {
			t.Fatalf("%q, %q: %v", a, b, got)
		}
		port, err := tracePort(a)
		if err != nil {
			usage(t, err)
		} else if again, err := tracePort(port); err != nil || again != port {
			t.Fatalf("%q is %q is %q, %v", a, port, again, err)
		}
	})
}
