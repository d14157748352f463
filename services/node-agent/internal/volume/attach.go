package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"skep.dev/libs/fault"
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
		if w.Driver == "" {
			if err := s.elsewhere(ctx, w.Name); err != nil {
				return err
			}
		}
	}
	return s.Create(ctx, w)
}

// elsewherePatience is how long plug-ins may take to say that they have a volume.
const elsewherePatience = time.Second

// elsewhere refuses a name that a plug-in's volume has: a mount that names no driver means the node's own, and would get a
// new one that is empty.
func (s *Store) elsewhere(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, elsewherePatience)
	defer cancel()
	plugins := s.Plugins()
	has := make(chan string, len(plugins))
	for _, p := range plugins {
		go func() {
			if d, err := s.Use(p); err == nil {
				if _, err = d.Get(ctx, name); err == nil {
					has <- p
					return
				}
			}
			has <- ""
		}()
	}
	for range plugins {
		select {
		case p := <-has:
			if p != "" {
				return fault.Conflict("volume %s on node %s is of driver %s: say volume-driver=%s, or volume-driver=local for the node's own", name, s.cfg.Node, p, p)
			}
		case <-ctx.Done():
			return nil // who does not say so has none
		}
	}
	return nil
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
