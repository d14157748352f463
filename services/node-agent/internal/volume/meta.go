package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"skep.dev/libs/atomicfile"
)

// meta is what a volume is: <root>/<name>/meta.json, only for root, since options may hold a password.
type meta struct {
	Options map[string]string `json:"options,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
}

func newMeta(opts, labels map[string]string) *meta {
	return &meta{Options: maps.Clone(opts), Labels: maps.Clone(labels), Created: time.Now().UTC()}
}

func writeMeta(dir string, m *meta) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return atomicfile.WriteSync(filepath.Join(dir, "meta.json"), b)
}

// readMeta tells what a volume is, ErrNotFound when there is none. A folder without meta.json is a plain one: an anonymous
// volume, or one that was made before there were options.
func (s *Store) readMeta(name string) (*meta, error) {
	file := filepath.Join(s.dir(name), "meta.json")
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		st, gone := os.Lstat(s.dir(name))
		if errors.Is(gone, os.ErrNotExist) {
			return nil, ErrNotFound
		}
		if gone != nil {
			return nil, fmt.Errorf("read what volume %s is: %w", name, gone)
		}
		// Again: a folder appears with its meta.json, and may have appeared just now.
		if b, err = os.ReadFile(file); errors.Is(err, os.ErrNotExist) {
			return &meta{Created: st.ModTime().UTC()}, nil
		}
	}
	m := &meta{}
	if err == nil {
		err = json.Unmarshal(b, m)
	}
	if err != nil {
		return nil, fmt.Errorf("read what volume %s is: %w", name, err)
	}
	return m, nil
}

// Create makes a volume, with labels. The same one again is fine.
func (s *Store) Create(ctx context.Context, w Wanted) error {
	if err := CheckName(w.Name); err != nil {
		return err
	}
	d, err := s.Use(w.Driver)
	if err != nil {
		return err
	}
	if l, ok := d.(local); ok {
		return l.s.createLocal(ctx, w.Name, w.Options, w.Labels)
	}
	if err := d.Create(ctx, w.Name, w.Options); err != nil || len(w.Labels) == 0 {
		return err
	}
	return s.SetLabels(ctx, w.Driver, w.Name, w.Labels)
}

// Labels are a volume's. Those of plug-ins' volumes are kept here: the plug-in protocol has none.
func (s *Store) Labels(driver, name string) (map[string]string, error) {
	if keyOf(driver, name).Driver == Local {
		m, err := s.readMeta(name)
		if err != nil {
			return nil, err
		}
		return m.Labels, nil
	}
	b, err := os.ReadFile(s.labelFile(driver, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var labels map[string]string
	if err == nil {
		err = json.Unmarshal(b, &labels)
	}
	if err != nil {
		return nil, fmt.Errorf("read the labels of volume %s: %w", name, err)
	}
	return labels, nil
}

// SetLabels replaces a volume's labels.
func (s *Store) SetLabels(ctx context.Context, driver, name string, labels map[string]string) error {
	return s.do(ctx, name, "label", s.cfg.Limit, func(context.Context) error {
		if keyOf(driver, name).Driver == Local {
			m, err := s.readMeta(name)
			if err != nil {
				return err
			}
			m.Labels = labels
			return writeMeta(s.dir(name), m)
		}
		b, err := json.Marshal(labels)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(s.labelFile(driver, name)), 0o700)
		}
		if err == nil {
			err = atomicfile.WriteSync(s.labelFile(driver, name), b)
		}
		if err != nil {
			return fmt.Errorf("keep the labels of volume %s: %w", name, err)
		}
		return nil
	})
}

// Remove removes a volume that no task holds.
func (s *Store) Remove(ctx context.Context, driver, name string) error {
	d, err := s.Use(driver)
	if err != nil {
		return err
	}
	if err := d.Remove(ctx, name); err != nil {
		return err
	}
	return s.DropLabels(driver, name)
}

// DropLabels forgets those kept here of a plug-in's volume.
func (s *Store) DropLabels(driver, name string) error {
	if keyOf(driver, name).Driver == Local {
		return nil
	}
	if err := os.Remove(s.labelFile(driver, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget the labels of volume %s: %w", name, err)
	}
	return nil
}

func (s *Store) labelFile(driver, name string) string {
	// Escaped, the name of a driver or volume is one part of a path; the letter keeps "." and ".." from being folders.
	return filepath.Join(s.root, ".labels", "d"+url.PathEscape(driver), "v"+url.PathEscape(name))
}
