// Package volume owns the directories behind local volumes: <data>/agent/volumes/<name>/_data, and those of
// anonymous ones, which live and die with their task.
//
// It refuses to remove a named volume: the data is the user's. Failure story: a volume is filled beside
// its data; what an interrupted filling left there is copied afresh, or moved on once it is complete.
package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"skep.dev/services/node-agent/internal/inroot"
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$`)

// Store is the folder of all volumes.
type Store struct {
	root string

	mu    sync.Mutex
	locks map[string]*sync.Mutex
}

// Open makes the folder.
func Open(root string) (*Store, error) {
	// 0711: a container's own user walks through to its data, and cannot list its neighbours.
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("make volume directory: %w", err)
	}
	return &Store{root: root, locks: map[string]*sync.Mutex{}}, nil
}

// Fill puts the image's content into dir, which becomes the content of an empty volume.
type Fill func(dir string) error

// Named returns the data directory of a volume, made and filled at its first use.
func (s *Store) Named(name string, fill Fill) (string, error) {
	if !validName.MatchString(name) {
		return "", fmt.Errorf("invalid volume name %q: use letters, digits, '_', '.' and '-'", name)
	}
	return s.ensure(name, fill)
}

const anonymous = "_task."

// Anonymous returns the n-th volume of a task that named none.
func (s *Store) Anonymous(task string, n int, fill Fill) (string, error) {
	return s.ensure(fmt.Sprintf("%s%s.%d", anonymous, task, n), fill)
}

func (s *Store) ensure(name string, fill Fill) (string, error) {
	s.mu.Lock()
	l := s.locks[name]
	if l == nil {
		l = &sync.Mutex{}
		s.locks[name] = l
	}
	s.mu.Unlock()
	l.Lock()
	defer l.Unlock()
	dir := filepath.Join(s.root, name)
	data := filepath.Join(dir, "_data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return "", fmt.Errorf("make volume %s: %w", name, err)
	}
	if fill == nil {
		return data, nil
	}
	if err := s.fill(dir, fill); err != nil {
		return "", fmt.Errorf("fill volume %s: %w", name, err)
	}
	return data, nil
}

// fill copies into a folder that no container sees, and moves what is complete to the data: a container that has the
// empty volume already could otherwise put a link where the copy goes on.
func (s *Store) fill(dir string, fill Fill) error {
	data, filling, filled := filepath.Join(dir, "_data"), filepath.Join(dir, "filling"), filepath.Join(dir, "filled")
	if _, err := os.Lstat(filled); errors.Is(err, os.ErrNotExist) {
		if entries, err := os.ReadDir(data); err != nil || len(entries) > 0 {
			return err
		}
		if err := os.RemoveAll(filling); err != nil { // of a fill that was interrupted
			return err
		}
		if err := os.Mkdir(filling, 0o755); err != nil {
			return err
		}
		if err := fill(filling); err != nil {
			return err
		}
		if err := os.Rename(filling, filled); err != nil {
			return err
		}
	}
	st, err := os.Stat(filled)
	if err != nil {
		return err
	}
	owner := st.Sys().(*syscall.Stat_t)
	entries, err := os.ReadDir(filled)
	if err != nil {
		return err
	}
	for _, e := range entries {
		// What a container has put there meanwhile stays.
		err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(filled, e.Name()), unix.AT_FDCWD, filepath.Join(data, e.Name()), unix.RENAME_NOREPLACE)
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("move %s to the volume: %w", e.Name(), err)
		}
	}
	if err := os.Chown(data, int(owner.Uid), int(owner.Gid)); err != nil {
		return err
	}
	if err := os.Chmod(data, st.Mode()); err != nil {
		return err
	}
	return os.RemoveAll(filled)
}

// RemoveAnonymous removes the anonymous volumes of a task.
func (s *Store) RemoveAnonymous(task string) error {
	return s.Sweep(func(id string) bool { return id != task })
}

// Sweep removes the anonymous volumes of tasks that are not known.
func (s *Store) Sweep(known func(task string) bool) error {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	var failed []error
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), anonymous)
		if !ok {
			continue
		}
		id, _, _ := strings.Cut(rest, ".")
		if known(id) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.root, e.Name())); err != nil {
			failed = append(failed, err)
		}
		s.mu.Lock()
		delete(s.locks, e.Name())
		s.mu.Unlock()
	}
	return errors.Join(failed...)
}

// CopyUp returns a Fill that copies what an image has at target, its owner and mode included.
func CopyUp(rootfs, target string) Fill {
	return func(dir string) error {
		src, err := fs.RootPath(rootfs, target)
		if err != nil {
			return err
		}
		st, err := os.Stat(src)
		if errors.Is(err, os.ErrNotExist) || err == nil && !st.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		return fs.CopyDir(dir, src)
	}
}

// BindSubpath mounts a path inside a volume at target. It never leaves the volume, whatever a container that has the volume
// does to it meanwhile or later.
func BindSubpath(data, sub, target string) error {
	if !filepath.IsLocal(sub) {
		return fmt.Errorf("volume subpath %q leaves the volume", sub)
	}
	if err := inroot.Bind(data, sub, target); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("volume subpath %q does not exist in the volume", sub)
		}
		return fmt.Errorf("volume subpath %q: %w", sub, err)
	}
	return nil
}
