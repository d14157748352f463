package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A file is replaced as a whole by any number of writers at once, is its owner's alone, and nothing stays beside it.
func TestReplace(t *testing.T) {
	for name, write := range map[string]func(string, []byte) error{"Write": Write, "WriteSync": WriteSync} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "record")
			if err := os.WriteFile(path, []byte("what was there, and longer"), 0o666); err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					if err := write(path, []byte("two")); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			holds(t, path, "two")
		})
	}
}

// A write that fails leaves what was there, and nothing else.
func TestFailedReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	if err := os.MkdirAll(filepath.Join(path, "occupied"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteSync(path, []byte("new")); err == nil {
		t.Error("a directory was replaced")
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != 1 {
		t.Errorf("the new content stays: %v, %v", all, err)
	}
	if err := Write(filepath.Join(path, "nowhere", "record"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is none: %v", err)
	}
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := Create(path, []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, []byte("second")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one: %v", err)
	}
	holds(t, path, "first")
}

// What an attempt that died left behind is no content and no mode of the next.
func TestStage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.new")
	if err := os.WriteFile(path, []byte("half of what was to be written"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := Stage(path, []byte("key")); err != nil {
		t.Fatal(err)
	}
	holds(t, path, "key")
}

func holds(t *testing.T, path, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != text {
		t.Errorf("%q, %v; want %q", b, err, text)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != 1 {
		t.Errorf("beside it: %v, %v", all, err)
	}
}
