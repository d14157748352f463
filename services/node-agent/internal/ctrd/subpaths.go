package ctrd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"skep.dev/services/node-agent/internal/inroot"
)

// subpaths are the mounts of paths inside volumes, <root>/<task>/<n>. runc opens a mount's source by its name, so it is
// handed a name that no container can change. They are made with the container and go with it; those of a killed agent
// are found by their folder.
type subpaths struct{ root string }

// next is where the task's next one goes.
func (s subpaths) next(task string) string {
	for n := 0; ; n++ {
		at := filepath.Join(s.root, task, strconv.Itoa(n))
		if _, err := os.Lstat(at); errors.Is(err, os.ErrNotExist) {
			return at
		}
	}
}

// check tells whether all of a task's are still mounted: after a restart of the machine the mount points are there, and
// empty folders of the host in their place are not what the user asked for.
func (s subpaths) check(task string) error {
	return s.each(task, func(at string) error {
		bound, err := inroot.Bound(at)
		if err == nil && !bound {
			err = fmt.Errorf("the volume subpath at %s is not mounted any more", at)
		}
		return err
	})
}

// release unmounts a task's. None is fine.
func (s subpaths) release(task string) error {
	if err := s.each(task, inroot.Unbind); err != nil {
		return fmt.Errorf("let go of the volume subpaths of %s: %w", task, err)
	}
	if err := os.Remove(filepath.Join(s.root, task)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("let go of the volume subpaths of %s: %w", task, err)
	}
	return nil
}

// sweep releases those of tasks that are not known.
func (s subpaths) sweep(known func(task string) bool) error {
	tasks, err := os.ReadDir(s.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var failed []error
	for _, t := range tasks {
		if !known(t.Name()) {
			failed = append(failed, s.release(t.Name()))
		}
	}
	return errors.Join(failed...)
}

func (s subpaths) each(task string, f func(at string) error) error {
	dir := filepath.Join(s.root, task)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var failed []error
	for _, e := range entries {
		failed = append(failed, f(filepath.Join(dir, e.Name())))
	}
	return errors.Join(failed...)
}
