package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVolumes(t *testing.T) {
	s := open(t, Config{})
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "data/f"), []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	broken := func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o600), errors.New("disk full"))
	}
	if _, err := named(s, "a", broken); err == nil {
		t.Fatal("a failed fill is no error")
	}
	dir, err := named(s, "a", CopyUp(root, "/data"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "half")); err == nil {
		t.Error("what an interrupted fill left is still there")
	}
	if st, err := os.Stat(filepath.Join(dir, "f")); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", st, err)
	}
	for _, bad := range []string{"", "../x", "_task.1.0", "a/b"} {
		if _, err := named(s, bad, nil); err == nil {
			t.Errorf("volume name %q is allowed", bad)
		}
	}
	for _, bad := range []string{"../..", "/etc", "none"} {
		if err := BindSubpath(dir, bad, filepath.Join(root, "mounts/0")); err == nil {
			t.Errorf("subpath %q is allowed", bad)
		}
	}
	an, err := s.Anonymous(context.Background(), "task1", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Forget("task1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(an); !os.IsNotExist(err) {
		t.Error("the anonymous volume is still there")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("a named volume went with a task: %v", err)
	}
}

// An agent that was killed while it moved a complete copy goes on; one that was killed while it copied begins again.
func TestInterruptedFill(t *testing.T) {
	s := open(t, Config{})
	put := func(path string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put(filepath.Join(s.root, "a/_data/moved"))
	put(filepath.Join(s.root, "a/filled/rest"))
	put(filepath.Join(s.root, "b/filling/half"))
	fill := func(dir string) error { put(filepath.Join(dir, "whole")); return nil }
	for name, want := range map[string]string{"a": "moved rest", "b": "whole"} {
		dir, err := named(s, name, fill)
		if err != nil {
			t.Fatal(err)
		}
		if got := names(t, dir); got != want {
			t.Errorf("volume %s holds %q, want %q", name, got, want)
		}
		if got := names(t, filepath.Dir(dir)); got != "_data" {
			t.Errorf("beside the data of %s: %q", name, got)
		}
	}
}

// A container that has the empty volume puts a link to the host where the copy goes: nothing is written through it, and
// what the container put there stays.
func TestFillWhileAContainerLooksOn(t *testing.T) {
	s := open(t, Config{})
	host := t.TempDir()
	dir, err := named(s, "a", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = named(s, "a", func(to string) error {
		if to == dir {
			t.Error("the copy goes where the container writes")
		}
		return errors.Join(os.Mkdir(filepath.Join(to, "d"), 0o755), os.Symlink(host, filepath.Join(dir, "d")),
			os.WriteFile(filepath.Join(to, "d/f"), nil, 0o600), os.WriteFile(filepath.Join(to, "g"), nil, 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, host); got != "" {
		t.Errorf("written to the host: %s", got)
	}
	if got := names(t, dir); got != "d g" {
		t.Errorf("the volume holds %q", got)
	}
}

func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	if cfg.Root == "" {
		cfg.Root = filepath.Join(t.TempDir(), "v")
	}
	cfg.Node = "n1"
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// named attaches and fills a volume as a task does.
func named(s *Store, name string, fill Fill) (string, error) {
	dir, err := s.Attach(context.Background(), "task", Wanted{Name: name})
	if err != nil {
		return "", err
	}
	return dir, s.Fill(context.Background(), "", name, dir, fill)
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

// Who looks while a volume is made sees it with its options or not at all, never as a plain one.
func TestSeenWholeOrNotAtAll(t *testing.T) {
	s := open(t, Config{})
	for i := range 300 {
		name := fmt.Sprint("v", i)
		made := make(chan error, 1)
		go func() { made <- s.make(name, newMeta(tmpfs, nil)) }()
		for {
			m, err := s.readMeta(name)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil || len(m.Options) != len(tmpfs) {
				t.Fatalf("%s: %+v %v", name, m, err)
			}
			break
		}
		if err := <-made; err != nil {
			t.Fatal(err)
		}
	}
}
