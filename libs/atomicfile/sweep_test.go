package atomicfile

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What a crash left goes, what is being written and what has another name stays, and nothing below the depth is looked at.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-time.Hour)
	want := map[string]bool{"a.json.new-1234": false, "sub/b.new-9": false, "fresh.new-77": true, "a.json": true, "notes.new-year": true, "sub/deep/c.new-5": true}
	for name := range want {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if name != "fresh.new-77" {
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Symlink(filepath.Join(dir, "a.json"), filepath.Join(dir, "link.new-3")); err != nil {
		t.Fatal(err)
	}
	if n := Sweep(dir, 1); n != 2 {
		t.Errorf("removed %d", n)
	}
	for name, stays := range want {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := Sweep(filepath.Join(dir, "nowhere"), 3); n != 0 {
		t.Errorf("removed %d of nothing", n)
	}
}
