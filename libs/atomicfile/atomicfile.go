// Package atomicfile replaces files in one step: who reads one, also after the writer has died half-way, finds the old
// content or the new. Files are readable by their owner alone. Of several who write one file at once the last wins. One
// that dies half-way may leave a file NAME.new-* beside it, which nobody reads and Sweep removes.
//
// What root writes stays readable for the services of the node that do not run as root: a file belongs to whom the file it
// replaces belonged, a new one to the owner of its folder. Either could have put it there without root's help.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces a file. A power cut may take the new content with it; WriteSync is for what must outlive that.
func Write(path string, b []byte) error { return replace(path, b, false) }

// WriteSync replaces a file; the new content is on disk when it returns.
func WriteSync(path string, b []byte) error {
	if err := replace(path, b, true); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Create writes a file that must not exist yet, else it is fs.ErrExist; it is on disk when it returns.
func Create(path string, b []byte) error {
	if err := create(path, b); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Stage writes a file that is to be renamed together with others, in the place of one that an earlier attempt may have
// left. Its content is on disk when it returns, its name is after SyncDir.
func Stage(path string, b []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return create(path, b)
}

// SyncDir makes names that were added to a directory, or taken from it, outlive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func replace(path string, b []byte, sync bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*") // of mode 0600
	if err != nil {
		return err
	}
	if err = inherit(f, path); err != nil {
		err = errors.Join(err, f.Close())
	} else {
		err = fill(f, b, sync)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // a full disk leaves half a file
	}
	return err
}

func create(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := inherit(f, path); err != nil {
		return errors.Join(err, f.Close())
	}
	return fill(f, b, true)
}

// fill writes all of a new file and closes it.
func fill(f *os.File, b []byte, sync bool) error {
	_, err := f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
