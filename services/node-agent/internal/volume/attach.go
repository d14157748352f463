package volume

import (
	"context"
	"errors"
	"fmt"
)

// Wanted is a volume as a task mounts it.
type Wanted struct {
	Driver, Name    string
	Options, Labels map[string]string
}

// Attach makes the volume if it is not there, has it mounted for the task and returns where. It may be called again: before
// a task's process is made, since what was mounted is not any more after a restart of the machine.
func (s *Store) Attach(ctx context.Context, task string, w Wanted) (string, error) {
	if err := CheckName(w.Name); err != nil {
		return "", err
	}
	d, err := s.Use(w.Driver)
	if err != nil {
		return "", err
	}
	// Held first: from then on nobody removes it.
	for {
		err := s.uses.add(task, keyOf(w.Driver, w.Name))
		if err == nil {
			break
		}
		if !errors.Is(err, errRemoving) {
			return "", err
		}
		// Until who removes it is done.
		if err := s.do(ctx, w.Name, "wait for", s.cfg.Limit, func(context.Context) error { return nil }); err != nil {
			return "", err
		}
	}
	if err := s.ensure(ctx, d, w); err != nil {
		return "", err
	}
	return d.Mount(ctx, w.Name, task)
}

// ensure makes a volume at its first use. A task that gives no options takes the volume as it is.
func (s *Store) ensure(ctx context.Context, d Driver, w Wanted) error {
	if len(w.Options) == 0 {
		var err error
		if l, ok := d.(local); ok {
			_, err = l.s.readMeta(w.Name) // less than Get
		} else {
			_, err = d.Get(ctx, w.Name)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return s.Create(ctx, w)
}

// Release lets go of every volume that a task holds. None is fine.
func (s *Store) Release(ctx context.Context, task string) error {
	var failed []error
	for _, k := range s.uses.of(task) {
		d, err := s.Use(k.Driver)
		if err == nil {
			err = d.Unmount(ctx, k.Name, task)
		}
		if err == nil || errors.Is(err, ErrNotFound) {
			err = s.uses.drop(task, k)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("let go of volume %s: %w", k.Name, err))
		}
	}
	return errors.Join(failed...)
}

// Held are the volumes a task holds.
func (s *Store) Held(task string) []Key { return s.uses.of(task) }

// Holders are the tasks that hold a volume.
func (s *Store) Holders(driver, name string) []string { return s.uses.holders(keyOf(driver, name)) }
