package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"skep.dev/libs/atomicfile"
)

// key names one use of a volume: a plug-in is asked to mount once for each.
type key struct{ driver, name, task string }

// entry is what the disk knows of it, <dir>/<driver>/<volume>/<task>. The path alone says what is held: a file that cannot be
// read still does. It is on the disk platter before the plug-in is asked to mount, and goes once it has confirmed the unmount.
type entry struct {
	// Path is what the plug-in gave, "" = it was asked, and nobody knows what came of it.
	Path string `json:",omitempty"`
	// Calls is how often it was asked, as far as it may have heard.
	Calls int
	Boot  string // of the machine: the next one knows none of its mounts
	Since time.Time
}

type records struct{ dir string }

func (r records) file(k key) string { return filepath.Join(r.dir, k.driver, k.name, k.task) }

func (r records) write(k key, e entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode the record of a mount: %w", err)
	}
	file := r.file(k)
	for _, dir := range []string{filepath.Dir(filepath.Dir(file)), filepath.Dir(file)} {
		if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("record the mount of volume %s: %w", k.name, err)
		}
		if err := atomicfile.SyncDir(filepath.Dir(dir)); err != nil {
			return fmt.Errorf("record the mount of volume %s: %w", k.name, err)
		}
	}
	if err := atomicfile.WriteSync(file, b); err != nil {
		return fmt.Errorf("record the mount of volume %s: %w", k.name, err)
	}
	return nil
}

func (r records) remove(k key) error {
	file := r.file(k)
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of the mount of volume %s: %w", k.name, err)
	}
	// Others may be in them.
	_, _ = os.Remove(filepath.Dir(file)), os.Remove(filepath.Dir(filepath.Dir(file)))
	return nil
}

// load returns everything that may still be mounted.
func (r records) load() (map[key]entry, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the record of mounted volumes: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(r.dir, "*", "*", "*"))
	if err != nil {
		return nil, fmt.Errorf("read the record of mounted volumes: %w", err)
	}
	out := map[key]entry{}
	for _, file := range files {
		rel, err := filepath.Rel(r.dir, file)
		if err != nil {
			return nil, fmt.Errorf("read the record of mounted volumes: %w", err)
		}
		dir, task := filepath.Split(rel)
		driver, name := filepath.Split(filepath.Clean(dir))
		k := key{filepath.Clean(driver), name, task}
		if !k.valid() {
			_ = os.Remove(file) // half of a record, written beside it: nothing was mounted for it
			continue
		}
		e := entry{}
		b, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(b, &e)
		}
		if err != nil || e.Calls < 1 {
			e = entry{Calls: 1}
		}
		out[k] = e
	}
	return out, nil
}
