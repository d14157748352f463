// Package volume owns the directories behind local volumes: <data>/agent/volumes/<name>/_data, and those of
// anonymous ones, which live and die with their task.
//
// It refuses to remove a named volume: the data is the user's. Failure story: a volume whose filling was interrupted
// carries a mark and is filled afresh.
package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/continuity/fs"
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

// Fill puts the image's content into an empty volume; dir is the volume's data.
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
	data, mark := filepath.Join(dir, "_data"), filepath.Join(dir, "filling")
	if _, err := os.Lstat(mark); err == nil {
		if err := os.RemoveAll(data); err != nil {
			return "", fmt.Errorf("clear half-filled volume %s: %w", name, err)
		}
	}
	if _, err := os.Stat(data); err == nil {
		if fill == nil {
			return data, nil
		}
		if entries, err := os.ReadDir(data); err != nil || len(entries) > 0 {
			return data, err
		}
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", fmt.Errorf("make volume %s: %w", name, err)
	}
	if fill != nil {
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			return "", fmt.Errorf("make volume %s: %w", name, err)
		}
	}
	if err := os.MkdirAll(data, 0o755); err != nil {
		return "", fmt.Errorf("make volume %s: %w", name, err)
	}
	if fill != nil {
		if err := fill(data); err != nil {
			return "", fmt.Errorf("fill volume %s: %w", name, err)
		}
		if err := os.Remove(mark); err != nil {
			return "", fmt.Errorf("fill volume %s: %w", name, err)
		}
	}
	return data, nil
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

// Subpath resolves a path inside a volume without leaving it.
func Subpath(data, sub string) (string, error) {
	if sub == "" {
		return data, nil
	}
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("volume subpath %q leaves the volume", sub)
	}
	p, err := fs.RootPath(data, sub)
	if err != nil {
		return "", fmt.Errorf("volume subpath %q: %w", sub, err)
	}
	if _, err := os.Stat(p); err != nil {
		return "", fmt.Errorf("volume subpath %q does not exist in the volume", sub)
	}
	return p, nil
}
