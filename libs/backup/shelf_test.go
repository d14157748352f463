package backup

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "skep.dev/proto/skep/v1"
)

const shelfCluster = "0123456789abcdefghijklmno"

// shelved writes a whole backup of some size.
func shelved(t *testing.T, s *Shelf, due time.Time, by string, size int) string {
	t.Helper()
	name := FileName(shelfCluster, due)
	_, err := s.Put(name, func(w io.Writer) error {
		p, err := NewPassphrase()
		if err != nil {
			return err
		}
		out, err := NewWriter(w, &pb.BackupHeader{ClusterId: shelfCluster, MadeBy: by, MadeAt: timestamppb.New(due), Passphrase: p}, Derived(make([]byte, KeySize)))
		if err != nil {
			return err
		}
		if err := out.Master(bytes.Repeat([]byte("m"), max(size, 1))); err != nil {
			return err
		}
		return out.Close()
	}, func(io.Reader) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func names(t *testing.T, s *Shelf) (out []string) {
	t.Helper()
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		out = append(out, k.Name)
	}
	return out
}

func anything(Shelved) bool { return true }

// The newest stay, by their number and by what they take; the very newest stays whatever it takes.
func TestShelfIsBounded(t *testing.T) {
	s := &Shelf{Dir: filepath.Join(t.TempDir(), ShelfName), Bytes: 1 << 20}
	day := time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)
	if got := names(t, s); got != nil {
		t.Fatal(got)
	}
	var made []string
	for i := range 5 {
		made = append(made, shelved(t, s, day.AddDate(0, 0, i), "m1", 100))
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "notes.txt"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if gone, err := s.Prune(3, anything); err != nil || len(gone) != 2 || gone[0] != made[0] || gone[1] != made[1] {
		t.Errorf("%v %v", gone, err)
	}
	if got := names(t, s); len(got) != 3 || got[0] != made[4] {
		t.Error(got)
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "notes.txt")); err != nil {
		t.Error("what is no backup was taken away")
	}
	st, err := os.Stat(filepath.Join(s.Dir, made[4]))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if st, err := os.Stat(s.Dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	s.Bytes = uint64(st.Size()) + 10
	if _, err := s.Prune(3, anything); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s); len(got) != 1 || got[0] != made[4] {
		t.Error(got)
	}
	s.Bytes = 1
	if gone, err := s.Prune(1, anything); err != nil || len(gone) != 0 {
		t.Errorf("the last one went: %v %v", gone, err)
	}
}

// What may not be taken away stays, and others go.
func TestShelfKeepsOthers(t *testing.T) {
	s := &Shelf{Dir: t.TempDir(), Bytes: 1 << 20}
	day := time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)
	old := shelved(t, s, day, "before", 1)
	shelved(t, s, day.AddDate(0, 0, 1), "m1", 1)
	newest := shelved(t, s, day.AddDate(0, 0, 2), "m1", 1)
	if _, err := s.Prune(2, func(k Shelved) bool { return k.Header.MadeBy == "m1" }); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s); len(got) != 2 || got[0] != newest || got[1] != old {
		t.Error(got)
	}
}

// What cannot be finished leaves nothing: no space, no spare, an error of who writes, what does not read back.
func TestShelfUnfinished(t *testing.T) {
	due := time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)
	name := FileName(shelfCluster, due)
	fine := func(io.Reader) error { return nil }
	much := func(w io.Writer) error {
		for range 100 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
		}
		return nil
	}
	for what, x := range map[string]struct {
		shelf Shelf
		write func(io.Writer) error
		check func(io.Reader) error
		want  string
	}{
		"no spare":    {Shelf{Bytes: 1 << 40, Spare: 1 << 60}, much, fine, "stay free for the manager's store: make room there"},
		"too large":   {Shelf{Bytes: 8 << 20}, much, fine, "larger than the 8 MiB that scheduled backups may take"},
		"who writes":  {Shelf{Bytes: 1 << 40}, func(io.Writer) error { return errors.New("the store is away") }, fine, "the store is away"},
		"reads badly": {Shelf{Bytes: 1 << 40}, func(io.Writer) error { return nil }, func(io.Reader) error { return ErrDamaged }, "read the backup again: the backup was altered"},
	} {
		t.Run(what, func(t *testing.T) {
			s := &x.shelf
			s.Dir = t.TempDir()
			_, err := s.Put(name, x.write, x.check)
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%v", err)
			}
			if left, _ := os.ReadDir(s.Dir); len(left) != 0 {
				t.Errorf("it leaves %v", left)
			}
			if s.Has(name) {
				t.Error("it is there")
			}
		})
	}
	// One that died half-way left its file; the next holder takes it away. Meanwhile it is no backup.
	s := &Shelf{Dir: t.TempDir(), Bytes: 1 << 20}
	if err := os.WriteFile(filepath.Join(s.Dir, name+unfinished), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.Has(name) || names(t, s) != nil {
		t.Error("half a backup counts")
	}
	release, ok, err := s.Hold()
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if _, again, err := s.Hold(); again || err != nil {
		t.Errorf("two hold it: %v %v", again, err)
	}
	if err := s.Clear(); err != nil {
		t.Error(err)
	}
	release()
	if left, _ := os.ReadDir(s.Dir); len(left) != 0 {
		t.Errorf("%v", left)
	}
	if release, ok, err := s.Hold(); err != nil || !ok {
		t.Error("it is not let go")
	} else {
		release()
	}
}

// A name is looked for on the shelf; a path, and a file that is there, are what they are.
func TestShelfFind(t *testing.T) {
	t.Chdir(t.TempDir())
	s := &Shelf{Dir: filepath.Join(t.TempDir(), ShelfName), Bytes: 1 << 20}
	name := shelved(t, s, time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC), "m1", 1)
	for in, want := range map[string]string{
		name: filepath.Join(s.Dir, name), "./" + name: "./" + name, "cluster.skep": "cluster.skep", "../../etc/passwd": "../../etc/passwd",
		"skep-other-20260301-030000.backup": "skep-other-20260301-030000.backup",
	} {
		if got := s.Find(in); got != want {
			t.Errorf("%s: %s, not %s", in, got, want)
		}
	}
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.Find(name); got != name {
		t.Error(got)
	}
}
