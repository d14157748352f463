package vault

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/unlockkey"
)

func newDisk(t testing.TB) disk {
	t.Helper()
	return disk{dir: t.TempDir(), log: zap.NewNop()}
}

func newUnlockKey(t testing.TB) unlockkey.Key {
	t.Helper()
	k, err := unlockkey.New()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func infoOf(k unlockkey.Key, generation uint64) *skepv1.UnlockKeyInfo {
	return &skepv1.UnlockKeyInfo{Id: k.ID(), On: true, Generation: generation, MadeAt: timestamppb.New(time.Unix(1_790_000_000, 0))}
}

// Whatever is wrong with the file of the master key, the error says what and what to do.
func TestMasterKeyFile(t *testing.T) {
	good := strings.Repeat("0a", masterSize)
	for name, c := range map[string]struct {
		prepare func(path string) error
		want    []string
	}{
		"missing":        {func(string) error { return nil }, []string{"neither master.key nor master.sealed", "restore", "backup"}},
		"empty":          {content("", 0o600), []string{"does not hold 32 bytes in hexadecimal"}},
		"too short":      {content(good[:62], 0o600), []string{"does not hold 32 bytes", "restore it from a backup"}},
		"too long":       {content(good+"00", 0o600), []string{"does not hold 32 bytes"}},
		"not hex":        {content(strings.Repeat("x", 64), 0o600), []string{"does not hold 32 bytes"}},
		"world-readable": {content(good, 0o644), []string{"others may read or write", "mode 0644", "chmod 600 "}},
		"group":          {content(good, 0o620), []string{"mode 0620", "chmod 600 "}},
		"a link": {func(p string) error {
			if err := os.WriteFile(p+".else", []byte(good), 0o600); err != nil {
				return err
			}
			return os.Symlink(p+".else", p)
		}, []string{"is not a plain file"}},
		"a folder": {func(p string) error { return os.Mkdir(p, 0o700) }, []string{"is not a plain file"}},
		"another's": {func(p string) error {
			if os.Geteuid() != 0 {
				return nil // then it is missing
			}
			if err := content(good, 0o600)(p); err != nil {
				return err
			}
			return os.Chown(p, 4321, -1)
		}, []string{map[bool]string{true: "belongs to user 4321, not to the one that skep runs as (0)", false: "neither"}[os.Geteuid() == 0]}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			if err := c.prepare(d.path(masterFile)); err != nil {
				t.Fatal(err)
			}
			_, err := d.read()
			for _, w := range c.want {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("%v, want %q", err, w)
				}
			}
			if err != nil && strings.Contains(err.Error(), good[:20]) {
				t.Error("the error repeats the key")
			}
		})
	}
	d := newDisk(t)
	if err := content(" "+strings.ToUpper(good)+"\n", 0o600)(d.path(masterFile)); err != nil {
		t.Fatal(err)
	}
	if r, err := d.read(); err != nil || hex.EncodeToString(r.master) != good {
		t.Error(err)
	}
}

func content(text string, mode os.FileMode) func(string) error {
	return func(path string) error {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
		return os.Chmod(path, mode)
	}
}

// A sealed file that was altered opens with no key, and never takes the vault for unlocked.
func TestSealedFile(t *testing.T) {
	d, k, master := newDisk(t), newUnlockKey(t), bytes.Repeat([]byte{7}, masterSize)
	if err := d.writeSealed(k, infoOf(k, 3), master); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(d.path(sealedFile))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), k.ID()) || !strings.Contains(string(text), "2026-09-21") || bytes.Contains(text, []byte(k.Text()[12:40])) {
		t.Errorf("what stands in clear: %s", text)
	}
	r, err := d.read()
	if err != nil || r.master != nil {
		t.Fatal(err)
	}
	if got, err := r.sealed.open(k); err != nil || !bytes.Equal(got, master) {
		t.Fatal(err)
	}
	if _, err := r.sealed.open(newUnlockKey(t)); !errors.Is(err, unlockkey.ErrOpen) {
		t.Error(err)
	}
	opened := 0
	for i := range text {
		for _, c := range []byte{text[i] ^ 1, ' ', '\n', 'A'} {
			bad := bytes.Clone(text)
			bad[i] = c
			if bytes.Equal(bad, text) {
				continue
			}
			s, err := parseSealed(bad)
			if err != nil {
				continue
			}
			if _, err := s.open(k); err == nil {
				opened++
				if i < bytes.IndexByte(text, '\n') {
					t.Fatalf("byte %d of what stands in clear altered to %q", i, c)
				}
			}
		}
		if s, err := parseSealed(text[:i]); err == nil && i < len(text)-1 {
			if _, err := s.open(k); err == nil {
				t.Fatalf("it opens cut off at %d", i)
			}
		}
	}
	if opened > 2 { // the newline at the end may be another white space
		t.Errorf("%d alterations open", opened)
	}
	for _, bad := range []string{"", "\n", "{}\nAAAA", "{\"id\":\"x\"}", "{\"id\":\"x\"}\n", "{\"id\":\"x\"}\n!!"} {
		if err := os.WriteFile(d.path(sealedFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.read(); err == nil || !strings.Contains(err.Error(), "restore it from a backup") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseSealed(f *testing.F) {
	f.Add([]byte("{\"id\":\"x\",\"generation\":\"3\"}\nAAAA\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseSealed(text)
		if err == nil && (s.info.Id == "" || len(s.box) == 0) {
			t.Error("it is half read")
		}
	})
}

func TestPlan(t *testing.T) {
	k := newUnlockKey(t)
	on := func(g uint64) *skepv1.UnlockKeyInfo { return infoOf(k, g) }
	off := func(g uint64) *skepv1.UnlockKeyInfo { return &skepv1.UnlockKeyInfo{Generation: g} }
	key := []byte{1}
	sealed := func(g uint64) *sealedMaster { return &sealedMaster{info: on(g)} }
	for name, c := range map[string]struct {
		disk   resting
		record *skepv1.UnlockKeyInfo
		want   move
	}{
		"never on":                     {resting{master: key}, nil, stay},
		"turned on":                    {resting{master: key}, on(1), doSeal},
		"is on":                        {resting{sealed: sealed(1)}, on(1), stay},
		"died before the key went":     {resting{master: key, sealed: sealed(1)}, on(1), doDropClear},
		"died while the key went":      {resting{broken: true, sealed: sealed(1)}, on(1), doDropClear},
		"rotated":                      {resting{sealed: sealed(1)}, on(2), doSeal},
		"died, then rotated":           {resting{master: key, sealed: sealed(1)}, on(2), doSeal},
		"turned off":                   {resting{sealed: sealed(1)}, off(2), doUnseal},
		"died before the seal went":    {resting{master: key, sealed: sealed(1)}, off(2), doDropSealed},
		"is off":                       {resting{master: key}, off(2), stay},
		"off over a damaged one":       {resting{broken: true, sealed: sealed(1)}, off(2), doUnseal},
		"off, on while it was away":    {resting{sealed: sealed(1)}, on(3), doSeal},
		"an old record: off":           {resting{sealed: sealed(5)}, off(4), stay},
		"an old record: another key":   {resting{sealed: sealed(5)}, on(4), stay},
		"an old record, and both":      {resting{master: key, sealed: sealed(5)}, off(4), stay},
		"no record, and sealed":        {resting{sealed: sealed(5)}, nil, stay},
		"no record, and both are here": {resting{master: key, sealed: sealed(5)}, nil, stay},
	} {
		if got := plan(c.disk, c.record); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestNextRecord(t *testing.T) {
	now := time.Unix(1_790_000_000, 0)
	var r *skepv1.UnlockKeyInfo
	for i := range 30 {
		r = next(r, nil, fmt.Sprint("k", i), now.Add(time.Duration(i)*time.Hour))
	}
	if r.Generation != 30 || len(r.Former) != formerUnlockKeys || r.Former[0].Id != "k28" || !r.Former[0].ReplacedAt.AsTime().Equal(r.MadeAt.AsTime()) {
		t.Errorf("%v", r)
	}
	off := next(r, &skepv1.UnlockKeyInfo{Generation: 70}, "", now)
	if off.On || off.Id != "" || off.MadeAt != nil || off.Generation != 71 || off.Former[0].Id != "k29" {
		t.Errorf("%v", off)
	}
	if again := next(off, nil, "x", now); again.Former[0].Id != "k29" || !again.On {
		t.Errorf("%v", again)
	}
}

// Five wrong keys are answered at once, then each makes the next wait longer; no wait is for ever.
func TestAttempts(t *testing.T) {
	var a attempts
	now := time.Unix(0, 0)
	var waits []time.Duration
	for range 20 {
		a.failed(now)
		waits = append(waits, a.wait(now))
		if a.wait(now.Add(a.wait(now))) != 0 {
			t.Error("the right key never passes")
		}
	}
	for i, want := range []time.Duration{0, 0, 0, 0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second} {
		if waits[i] != want {
			t.Errorf("wrong key %d: %s, want %s", i+1, waits[i], want)
		}
	}
	if waits[19] != longestWait {
		t.Error(waits)
	}
}

// What goes is overwritten before its name is taken away, leftovers of a crash too.
func TestDropClear(t *testing.T) {
	d := newDisk(t)
	for _, name := range []string{masterFile, masterFile + ".new-123"} {
		if err := os.WriteFile(d.path(name), []byte("the key"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept := filepath.Join(t.TempDir(), "linked")
	if err := os.Link(d.path(masterFile), kept); err != nil {
		t.Fatal(err)
	}
	if err := d.dropClear(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(d.dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	if b, _ := os.ReadFile(kept); string(b) != "-------" {
		t.Errorf("its blocks hold %q", b)
	}
	if err := d.dropClear(); err != nil {
		t.Errorf("a second time: %v", err)
	}
}
