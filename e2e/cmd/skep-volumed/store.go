package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// store is the storage all hosts share: <dir>/<volume>/data, and <dir>/<volume>/attached with the name of the one host that
// may mount it.
type store struct{ dir string }

func (s store) volume(name string) string   { return filepath.Join(s.dir, name) }
func (s store) data(name string) string     { return filepath.Join(s.dir, name, "data") }
func (s store) attached(name string) string { return filepath.Join(s.dir, name, "attached") }

func (s store) create(name string) error {
	if name == "" || filepath.Base(name) != name || strings.HasPrefix(name, ".") {
		return fmt.Errorf("%q is not a name", name)
	}
	return os.MkdirAll(s.data(name), 0o755)
}

func (s store) has(name string) bool {
	st, err := os.Stat(s.data(name))
	return err == nil && st.IsDir()
}

func (s store) remove(name string) error {
	if host := s.holder(name); host != "" {
		return fmt.Errorf("volume %s is attached to host %s", name, host)
	}
	return os.RemoveAll(s.volume(name))
}

func (s store) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	var out []string
	for _, e := range entries {
		if s.has(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, err
}

// holder is the host a volume is attached to, "" = none.
func (s store) holder(name string) string {
	b, err := os.ReadFile(s.attached(name))
	if err != nil {
		return ""
	}
	return string(b)
}

// attach gives the volume to a host unless another one has it. The file appears with its content, in one step.
func (s store) attach(name, host string) error {
	tmp := filepath.Join(s.volume(name), ".attach-"+host)
	if err := os.WriteFile(tmp, []byte(host), 0o644); err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := os.Link(tmp, s.attached(name)); err != nil {
		if holder := s.holder(name); errors.Is(err, fs.ErrExist) && holder != host {
			return fmt.Errorf("volume %s is attached to host %s", name, holder)
		} else if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func (s store) detach(name, host string) error {
	if s.holder(name) != host {
		return nil // it was taken from it
	}
	return os.Remove(s.attached(name))
}

// forceDetach takes every volume from a host. What the host still has mounted is the empty shell of it: its content is moved
// into a new folder, so what the host opens from now on is not there.
func (s store) forceDetach(host string) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if s.holder(name) != host {
			continue
		}
		next := s.data(name) + ".next"
		if err := os.MkdirAll(next, 0o755); err != nil {
			return err
		}
		st, err := os.Stat(s.data(name))
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(s.data(name))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := os.Rename(filepath.Join(s.data(name), e.Name()), filepath.Join(next, e.Name())); err != nil {
				return err
			}
		}
		if err := errors.Join(chownLike(next, st), os.Remove(s.data(name)), os.Rename(next, s.data(name)), os.Remove(s.attached(name))); err != nil {
			return fmt.Errorf("take volume %s from host %s: %w", name, host, err)
		}
		fmt.Println(name)
	}
	return nil
}

func (s store) list(w io.Writer) error {
	names, err := s.names()
	for _, name := range names {
		fmt.Fprintf(w, "%s\t%s\n", name, s.holder(name))
	}
	return err
}
