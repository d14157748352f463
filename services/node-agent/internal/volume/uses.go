package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/fault"
)

// Key names a volume: each driver has names of its own.
type Key struct{ Driver, Name string }

func keyOf(driver, name string) Key {
	if driver == "" {
		driver = Local
	}
	return Key{driver, name}
}

// uses is the record of which tasks hold which volumes: a file for each task, <dir>/<task>. It is written before a volume is
// mounted and shortened after it was let go of.
type uses struct {
	dir string

	mu       sync.Mutex
	by       map[string][]Key
	removing map[Key]bool
}

// errRemoving says that a volume is just being removed.
var errRemoving = errors.New("the volume is being removed")

func openUses(dir string) (*uses, error) {
	u := &uses{dir: dir, by: map[string][]Key{}, removing: map[Key]bool{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the record of used volumes: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the record of used volumes: %w", err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read the record of used volumes: %w", err)
		}
		var keys []Key
		// An unreadable one, of a machine that lost power: nothing is mounted after that.
		if json.Unmarshal(b, &keys) == nil && len(keys) > 0 {
			u.by[e.Name()] = keys
		}
	}
	return u, nil
}

func (u *uses) add(task string, k Key) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if slices.Contains(u.by[task], k) {
		return nil
	}
	if u.removing[k] {
		return errRemoving
	}
	return u.set(task, append(slices.Clone(u.by[task]), k))
}

func (u *uses) drop(task string, k Key) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !slices.Contains(u.by[task], k) {
		return nil
	}
	return u.set(task, slices.DeleteFunc(slices.Clone(u.by[task]), func(have Key) bool { return have == k }))
}

func (u *uses) set(task string, keys []Key) error {
	path := filepath.Join(u.dir, task)
	if len(keys) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("record the volumes of task %s: %w", task, err)
		}
		delete(u.by, task)
		return nil
	}
	b, err := json.Marshal(keys)
	if err == nil {
		err = atomicfile.Write(path, b)
	}
	if err != nil {
		return fmt.Errorf("record the volumes of task %s: %w", task, err)
	}
	u.by[task] = keys
	return nil
}

// remove has f remove a volume that no task holds; none can take hold of it meanwhile.
func (u *uses) remove(k Key, f func() error) error {
	u.mu.Lock()
	if holders := u.holdersLocked(k); len(holders) > 0 {
		u.mu.Unlock()
		return fault.Conflict("remove volume %s: volume is in use by task %s", k.Name, strings.Join(holders, ", "))
	}
	u.removing[k] = true
	u.mu.Unlock()
	defer func() {
		u.mu.Lock()
		delete(u.removing, k)
		u.mu.Unlock()
	}()
	return f()
}

func (u *uses) of(task string) []Key {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.by[task])
}

func (u *uses) tasks() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make([]string, 0, len(u.by))
	for t := range u.by {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}

// holders are the tasks that hold a volume.
func (u *uses) holders(k Key) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.holdersLocked(k)
}

func (u *uses) holdersLocked(k Key) []string {
	var out []string
	for t, keys := range u.by {
		if slices.Contains(keys, k) {
			out = append(out, t)
		}
	}
	slices.Sort(out)
	return out
}
