package unlockkey

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func fresh(t testing.TB) Key {
	t.Helper()
	k, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestText(t *testing.T) {
	k := fresh(t)
	text := k.Text()
	if len(text) != 58 || !strings.HasPrefix(text, "SKEPKEY-1-") {
		t.Errorf("%d characters, %s…", len(text), text[:10])
	}
	if got, err := Parse(" \t" + text + "\r\n"); err != nil || got != k {
		t.Errorf("%v", err)
	}
	if len(k.ID()) != 12 || k.ID() == fresh(t).ID() || strings.Contains(text, k.ID()) {
		t.Error(k.ID())
	}
	for _, f := range []string{"%v", "%s", "%+v", "%#v", "%d"} {
		if out := fmt.Sprintf(f, k); strings.Contains(out, text[12:20]) {
			t.Errorf("%s shows the key", f)
		}
	}
}

// Every single wrong character is a mistake in copying, not another key.
func TestAMistakeInCopyingIsNoticed(t *testing.T) {
	text := fresh(t).Text()
	for i := range text {
		for _, c := range "Az09+/-" {
			if byte(c) == text[i] {
				continue
			}
			bad := text[:i] + string(c) + text[i+1:]
			_, err := Parse(bad)
			if err == nil || !strings.HasPrefix(err.Error(), "malformed unlock key: ") {
				t.Fatalf("character %d: %v", i, err)
			}
			if strings.Contains(err.Error(), bad[10:30]) {
				t.Fatal("the error repeats the key")
			}
		}
	}
	for in, want := range map[string]string{
		"": "it is empty", "  ": "it is empty", "hello": "does not begin with SKEPKEY-1-", "SWMKEY-1-8jDg": "a Docker Swarm key",
		"SKEP-1-aaa-bbb": "a join token", "SKEPKEY-2-abc": "its version is not 1", text[:57]: "47 characters follow", text + "A": "49 characters follow",
		"SKEPKEY-1-" + strings.Repeat("é", 24): "characters other than", "SKEPKEY-1-" + strings.Repeat("é", 9): "9 characters follow", "SKEPKEY-1-" + strings.Repeat("-", 48): "characters other than",
		"SKEPKEY-1-" + strings.Repeat("A", 48): "its checksum does not fit", text[:30] + "\x00" + text[31:]: "characters other than",
		text[:20] + "\n" + text[20:]: "49 characters follow",
	} {
		if _, err := Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestSealed(t *testing.T) {
	k, secret, beside := fresh(t), []byte("a master key"), []byte(`{"id":"x"}`)
	sealed, err := k.Seal(secret, beside)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := k.Seal(secret, beside); err != nil || bytes.Equal(again, sealed) {
		t.Error("twice the same", err)
	}
	if got, err := k.Open(sealed, beside); err != nil || !bytes.Equal(got, secret) {
		t.Error(err)
	}
	if _, err := fresh(t).Open(sealed, beside); !errors.Is(err, ErrOpen) {
		t.Errorf("another key: %v", err)
	}
	if _, err := k.Open(sealed, []byte(`{"id":"y"}`)); !errors.Is(err, ErrOpen) {
		t.Errorf("something else beside it: %v", err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := k.Open(bad, beside); !errors.Is(err, ErrOpen) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
		if _, err := k.Open(sealed[:i], beside); !errors.Is(err, ErrOpen) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("SKEPKEY-1-" + strings.Repeat("A", 48))
	f.Add(fresh(f).Text())
	f.Fuzz(func(t *testing.T, text string) {
		k, err := Parse(text)
		if err == nil && strings.TrimSpace(text) != k.Text() {
			t.Errorf("%q is read as another key", text)
		}
	})
}
