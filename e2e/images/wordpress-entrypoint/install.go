package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// last is the file whose presence says that a copy is complete. It is the last to be copied.
const last = "index.php"

// webUser is www-data in the image.
const webUser = 33

// install copies WordPress to where the server looks for it, unless it is there already. Every file appears complete or not at all, and
// none replaces one that is there: a copy that was killed is finished by the next start, and two copies at once do no harm.
func install(from, to string) error {
	if _, err := os.Stat(filepath.Join(to, last)); errors.Is(err, fs.ErrNotExist) {
		err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rest := strings.TrimPrefix(strings.TrimPrefix(path, from), "/")
			if rest == last {
				return nil
			}
			return place(path, filepath.Join(to, rest), d)
		})
		if err != nil {
			return err
		}
		info, err := os.Stat(filepath.Join(from, last))
		if err != nil {
			return err
		}
		if err := place(filepath.Join(from, last), filepath.Join(to, last), fs.FileInfoToDirEntry(info)); err != nil {
			return err
		}
		fmt.Println("wordpress: copied to", to)
	}
	file := filepath.Join(to, config)
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return write(file, 0o644, strings.NewReader(configPHP))
}

// place copies one file or makes one folder.
func place(from, to string, d fs.DirEntry) error {
	switch {
	case d.IsDir():
		if err := os.Mkdir(to, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return chown(to)
	case d.Type().IsRegular():
		if _, err := os.Lstat(to); err == nil {
			return nil
		}
		in, err := os.Open(from)
		if err != nil {
			return err
		}
		defer in.Close()
		return write(to, 0o644, in)
	}
	return nil // a link of the package, whose target is not in the image
}

func write(to string, mode fs.FileMode, content io.Reader) error {
	out, err := os.CreateTemp(filepath.Dir(to), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, content)
	if err = errors.Join(err, out.Chmod(mode), out.Close()); err != nil {
		return err
	}
	if err := chown(out.Name()); err != nil {
		return err
	}
	// A link, not a rename: what another container or its user put there first stays.
	if err := os.Link(out.Name(), to); err != nil && !errors.Is(err, fs.ErrExist) {
		return os.Rename(out.Name(), to) // a file system without links
	}
	return nil
}

var warned bool

// chown gives a file to the server's user. A file system that knows no owners is said once, and works: the files can be read.
func chown(path string) error {
	err := os.Chown(path, webUser, webUser)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOTSUP) {
		if !warned {
			warned = true
			fmt.Fprintln(os.Stderr, "wordpress: the volume's file system refuses to change owners: uploads and updates from the site will not work:", err)
		}
		return nil
	}
	return err
}
