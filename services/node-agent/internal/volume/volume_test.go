package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestVolumes(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "v"))
	if err != nil {
		t.Fatal(err)
	}
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
	if _, err := s.Named("a", broken); err == nil {
		t.Fatal("a failed fill is no error")
	}
	dir, err := s.Named("a", CopyUp(root, "/data"))
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
		if _, err := s.Named(bad, nil); err == nil {
			t.Errorf("volume name %q is allowed", bad)
		}
	}
	for _, bad := range []string{"../..", "/etc", "none"} {
		if _, err := Subpath(dir, bad); err == nil {
			t.Errorf("subpath %q is allowed", bad)
		}
	}
	an, err := s.Anonymous("task1", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveAnonymous("task1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(an); !os.IsNotExist(err) {
		t.Error("the anonymous volume is still there")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("a named volume went with a task: %v", err)
	}
}
