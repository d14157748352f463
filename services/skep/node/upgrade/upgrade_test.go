package upgrade

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/services/skep/program"
)

const oldProgram, newProgram = "the old program", "the new program, which is longer"

// at is a site with the old program in place, which says that it is 1, and the new one 2.
func at(t *testing.T) Site {
	t.Helper()
	dir, data := t.TempDir(), t.TempDir()
	s := Site{Program: filepath.Join(dir, "skep"), Data: data, Identify: func(file string) (string, error) {
		switch b, err := os.ReadFile(file); {
		case err != nil:
			return "", err
		case string(b) == newProgram:
			return "2", nil
		default:
			return "", fmt.Errorf("exit status 1 of %s", b)
		}
	}}
	s.Running = s.Program
	write(t, s.Program, oldProgram)
	return s
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func offer(text string) Offer {
	sum := sha256.Sum256([]byte(text))
	return Offer{From: "1", To: "2", SHA256: sum[:], Size: int64(len(text)), By: "user-ada", Address: "10.0.0.9"}
}

func (s Site) stage(t *testing.T, text string) {
	t.Helper()
	if err := s.Stage(t.Context(), offer(text), strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
}

// node is a daemon: it runs what is in place when it is started, if that is not broken.
type node struct {
	s      Site
	broken []string // programs that do not come up
	runs   string
	starts []string
}

func (n *node) StartAgain(context.Context) error {
	b, err := os.ReadFile(n.s.Program)
	if err != nil {
		return err
	}
	n.runs = ""
	n.starts = append(n.starts, string(b))
	if slices.Contains(n.broken, string(b)) {
		return errors.New("the daemon ended (exit status 1)")
	}
	n.runs = string(b)
	return nil
}

func (n *node) Version(context.Context) (string, error) {
	return map[string]string{oldProgram: "1", newProgram: "2"}[n.runs], nil
}

func holds(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s holds %q (%v), want %q", filepath.Base(path), b, err, want)
	}
}

func step(t *testing.T, s Site, want Step, why string) *Record {
	t.Helper()
	r, err := s.Load()
	if err != nil || r == nil || r.Step != want || !strings.Contains(r.Error, why) {
		t.Fatalf("the record says %+v (%v), want %s because of %q", r, err, want, why)
	}
	return r
}

func TestUpgrade(t *testing.T) {
	s := at(t)
	s.stage(t, newProgram)
	step(t, s, Staged, "")
	holds(t, s.Program, oldProgram)
	n := &node{s: s}
	if err := s.Watch(t.Context(), n, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	step(t, s, Done, "")
	holds(t, s.Program, newProgram)
	holds(t, s.Old(), oldProgram)
	if st, err := os.Stat(s.Program); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("its mode is %v (%v)", st.Mode(), err)
	}
	if n.runs != newProgram || len(n.starts) != 1 {
		t.Errorf("the daemon runs %q after %d starts", n.runs, len(n.starts))
	}
}

func TestWhatDoesNotStartIsTakenBack(t *testing.T) {
	s := at(t)
	s.stage(t, newProgram)
	n := &node{s: s, broken: []string{newProgram}}
	if err := s.Watch(t.Context(), n, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	if r := step(t, s, Undone, "exit status 1"); r.Told || r.By != "user-ada" || r.Address != "10.0.0.9" {
		t.Errorf("the record is %+v", r)
	}
	holds(t, s.Program, oldProgram)
	if n.runs != oldProgram {
		t.Errorf("the daemon runs %q", n.runs)
	}
}

// Another program is started than the one that was replaced: a unit that names another path.
func TestAnotherProgramIsStarted(t *testing.T) {
	s := at(t)
	s.stage(t, newProgram)
	elsewhere := s
	elsewhere.Program = filepath.Join(t.TempDir(), "skep")
	write(t, elsewhere.Program, oldProgram)
	if err := s.Watch(t.Context(), &node{s: elsewhere}, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	step(t, s, Undone, "is version 1: it is not started from")
	holds(t, s.Program, oldProgram)
}

// Whoever dies at whatever step: the program in place is whole at every moment, and what starts next finishes it one way or
// the other.
func TestCrashes(t *testing.T) {
	for _, broken := range []bool{false, true} {
		for _, point := range []string{"recorded", "received", "kept", "renamed", "placed", "started", "restored", "noted"} {
			t.Run(fmt.Sprintf("%s/broken=%v", point, broken), func(t *testing.T) {
				s := at(t)
				n := &node{s: s, runs: oldProgram}
				if broken {
					n.broken = []string{newProgram}
				}
				type died struct{}
				crash := s
				crash.Passing = func(p string) {
					if p == point {
						panic(died{})
					}
				}
				crashed := func() (crashed bool) {
					defer func() {
						switch r := recover(); r.(type) {
						case nil:
						case died:
							crashed = true
						default:
							panic(r)
						}
					}()
					if err := crash.Stage(t.Context(), offer(newProgram), strings.NewReader(newProgram)); err != nil {
						t.Fatal(err)
					}
					if err := crash.Watch(t.Context(), n, zap.NewNop()); err != nil {
						t.Fatal(err)
					}
					return false
				}()
				if crashed == (point == "restored" && !broken) {
					t.Fatalf("crashed at %s: %v", point, crashed)
				}
				b, err := os.ReadFile(s.Program)
				if err != nil || string(b) != oldProgram && string(b) != newProgram {
					t.Fatalf("in place is %q (%v)", b, err)
				}
				// The machine starts again, or the init system starts the daemon.
				again, err := s.Resume()
				if err != nil {
					t.Fatal(err)
				}
				_ = n.StartAgain(t.Context())
				if again {
					if err := s.Watch(t.Context(), n, zap.NewNop()); err != nil {
						t.Fatal(err)
					}
				}
				if n.runs == "" {
					t.Fatalf("no daemon runs; it was started as %q", n.starts)
				}
				holds(t, s.Program, n.runs)
				if r, err := s.Load(); err != nil || r.Step != Done && r.Step != Undone || (r.Step == Done) != (n.runs == newProgram) {
					t.Errorf("%q runs, and the record says %+v (%v)", n.runs, r, err)
				}
				if _, err := os.Stat(s.fresh()); err == nil {
					t.Error("the new program still lies beside the old one")
				}
				// And an upgrade that is right goes through after that.
				if n.runs == oldProgram {
					n.broken = nil
					s.stage(t, newProgram)
					if err := s.Watch(t.Context(), n, zap.NewNop()); err != nil {
						t.Fatal(err)
					}
					step(t, s, Done, "")
				}
			})
		}
	}
}

// What is refused leaves the program as it was, and nothing beside it.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		offer Offer
		bytes string
		want  string
	}{
		"other bytes of that length": {offer(newProgram), strings.ToUpper(newProgram), "what came is not the program that was announced"},
		"too few":                    {offer(newProgram), newProgram[:5], "what came is not the program that was announced: 5 bytes of 32"},
		"too many":                   {offer(newProgram), newProgram + "; rm -rf /", "what came is not the program that was announced"},
		"it does not run":            {offer("not a program"), "not a program", "does not run on this machine: exit status 1 of not a program"},
		"it is another version":      {func() Offer { o := offer(newProgram); o.To = "3"; return o }(), newProgram, "the program is version 2 and was announced as 3"},
		"no sum":                     {func() Offer { o := offer(newProgram); o.SHA256 = nil; return o }(), newProgram, "without its SHA-256"},
		"too large":                  {func() Offer { o := offer(newProgram); o.Size = program.Most + 1; return o }(), newProgram, "no build of skep has more than 256 MiB"},
		"of no size":                 {func() Offer { o := offer(newProgram); o.Size = -1; return o }(), newProgram, "a program of -1 bytes is not taken"},
		"no version":                 {func() Offer { o := offer(newProgram); o.To = "2\n"; return o }(), newProgram, "is no version"},
	} {
		t.Run(name, func(t *testing.T) {
			s := at(t)
			err := s.Stage(t.Context(), c.offer, bytes.NewReader([]byte(c.bytes)))
			if err == nil || !strings.Contains(err.Error(), c.want) || fault.Of(err) != fault.CodeInvalid {
				t.Errorf("%v, want %q", err, c.want)
			}
			holds(t, s.Program, oldProgram)
			if left, _ := filepath.Glob(s.Program + ".*"); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			if r, err := s.Load(); err != nil || r != nil && (r.Step != Undone || !r.Told) {
				t.Errorf("the record says %+v (%v)", r, err)
			}
			if again, err := s.Resume(); again || err != nil {
				t.Errorf("there is something to go on with: %v", err)
			}
		})
	}
}

// Somebody replaced the program by hand after the daemon's start: what is kept is the one that runs.
func TestTheRunningProgramIsKept(t *testing.T) {
	s := at(t)
	s.Running = filepath.Join(t.TempDir(), "exe")
	write(t, s.Running, oldProgram)
	write(t, s.Program, "by hand")
	s.stage(t, newProgram)
	holds(t, s.Old(), oldProgram)
	n := &node{s: s, broken: []string{newProgram}}
	if err := s.Watch(t.Context(), n, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	holds(t, s.Program, oldProgram)
}
