package atomicfile

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Inherit gives a file that is open to the owner of another file or folder. Only root gives files away; for everybody else
// nothing happens, nor to a file that has a second name, which somebody else may have given it.
func Inherit(f *os.File, from string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	st, err := os.Lstat(from)
	if err != nil {
		return fmt.Errorf("find the owner of %s: %w", from, err)
	}
	is, err := f.Stat()
	if err != nil {
		return err
	}
	want, ok := st.Sys().(*syscall.Stat_t)
	has, same := is.Sys().(*syscall.Stat_t)
	if !ok || !same || want.Uid == has.Uid || has.Nlink != 1 {
		return nil
	}
	if err := f.Chown(int(want.Uid), int(want.Gid)); err != nil {
		return fmt.Errorf("give %s to user %d: %w", f.Name(), want.Uid, err)
	}
	return nil
}

// inherit gives a new file that is to be at path the owner of the file there, else of the folder.
func inherit(f *os.File, path string) error {
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && path != f.Name() {
		return Inherit(f, path)
	}
	return Inherit(f, filepath.Dir(path))
}
