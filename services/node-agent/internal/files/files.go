// Package files keeps the secrets and configs of tasks in memory that is a file system: one tmpfs a task, which the kernel
// never writes to a disk, with the owner and mode that were asked for. The container gets each file by a read-only bind
// mount of its own.
//
// A task's file system outlives the agent: an agent that restarts finds what the task was given and asks nobody. It does
// not outlive the machine, nor the task. What stands in it besides the values is a list: which version of what is where.
package files

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"skep.dev/libs/id"
)

// File is one file of a task.
type File struct {
	Path     string // in the container
	ID       string // of the secret or config
	Version  uint64
	UID, GID int
	Mode     os.FileMode
	Value    []byte
	Template bool // it was filled in: it may change with other files
}

// Placed is a file that stands.
type Placed struct {
	Path    string `json:"path"` // in the container
	Source  string `json:"-"`    // on this host
	Name    string `json:"name"` // in the task's folder
	ID      string `json:"id"`
	Version uint64 `json:"version"`
	// Template: it was filled in.
	Template bool `json:"template,omitempty"`
	// Below are older files of this place that new ones were mounted over, on a kernel that cannot take them away: to remove
	// one would take away what is mounted on it.
	Below []string `json:"below,omitempty"`
}

// Store is the folder of all tasks' file systems.
type Store struct{ root string }

// Open makes the folder. Nobody but root may look into it, whatever stands in it.
func Open(root string) (*Store, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of secrets: %w", err)
	}
	if err := os.Chmod(root, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of secrets: %w", err)
	}
	return &Store{root}, nil
}

const listName = "list.json"

func (s *Store) dir(task string) string { return filepath.Join(s.root, task) }

// Placed are the files that an earlier Put finished, nil when there are none.
func (s *Store) Placed(task string) []Placed {
	if !id.Safe(task) || !mounted(s.dir(task)) {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(s.dir(task), listName))
	if err != nil {
		return nil
	}
	var list []Placed
	if json.Unmarshal(b, &list) != nil {
		return nil
	}
	for i := range list {
		list[i].Source = filepath.Join(s.dir(task), list[i].Name)
	}
	return list
}

// Put writes files into the task's file system, beside those that stand, and returns where. They count once Keep says so.
func (s *Store) Put(task string, files []File) ([]Placed, error) {
	if !id.Safe(task) {
		return nil, fmt.Errorf("write the secrets of task %q: its id is no file's name", task)
	}
	size := int64(reserve)
	for _, f := range files {
		size += (int64(len(f.Value)) + page - 1) / page * page
		size += page // so that many small ones do not fill it either
	}
	dir := s.dir(task)
	if err := s.mount(dir, size); err != nil {
		return nil, fmt.Errorf("write the secrets of task %s: %w", task, err)
	}
	next, err := nextName(dir)
	if err != nil {
		return nil, fmt.Errorf("write the secrets of task %s: %w", task, err)
	}
	var out []Placed
	for _, f := range files {
		p := Placed{Path: f.Path, Name: strconv.Itoa(next), ID: f.ID, Version: f.Version, Template: f.Template}
		p.Source = filepath.Join(dir, p.Name)
		next++
		if err := write(p.Source, f); err != nil {
			return nil, fmt.Errorf("write the file %s of task %s: %w", f.Path, task, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// Keep says which files the task has, all of them; what else stands in its file system is removed.
func (s *Store) Keep(task string, files []Placed) error {
	dir := s.dir(task)
	b, err := json.Marshal(files)
	if err != nil {
		return fmt.Errorf("list the secrets of task %s: %w", task, err)
	}
	next := filepath.Join(dir, listName+".new")
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return fmt.Errorf("list the secrets of task %s: %w", task, err)
	}
	if err := os.Rename(next, filepath.Join(dir, listName)); err != nil {
		return fmt.Errorf("list the secrets of task %s: %w", task, err)
	}
	keep := map[string]bool{listName: true}
	for _, f := range files {
		keep[f.Name] = true
		for _, name := range f.Below {
			keep[name] = true
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list the secrets of task %s: %w", task, err)
	}
	for _, e := range entries {
		if !keep[e.Name()] {
			_ = os.Remove(filepath.Join(dir, e.Name())) // it goes with the task at the latest
		}
	}
	return nil
}

// Remove removes a task's files. None is fine.
func (s *Store) Remove(task string) error {
	if !id.Safe(task) {
		return nil
	}
	dir := s.dir(task)
	for mounted(dir) {
		// A container that still ends may have one of them open; the memory is free when it has.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("remove the secrets of task %s: %w", task, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the secrets of task %s: %w", task, err)
	}
	return nil
}

// Sweep removes those of tasks that are not known.
func (s *Store) Sweep(known func(task string) bool) error {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return fmt.Errorf("look for secrets of no task: %w", err)
	}
	var failed []error
	for _, e := range entries {
		if !known(e.Name()) {
			failed = append(failed, s.Remove(e.Name()))
		}
	}
	return errors.Join(failed...)
}

const (
	page = 4096
	// reserve is for the list, twice while it is replaced: a service has at most spec.MaxFiles files, a path at most 1024
	// bytes, each at most six of JSON. It bounds and takes up nothing.
	reserve = 8 << 20
)

// mount gives the task's folder a file system of at least that much room beside what is in it.
func (s *Store) mount(dir string, size int64) error {
	if mounted(dir) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return fmt.Errorf("look how much room there is: %w", err)
		}
		if st.Type != unix.TMPFS_MAGIC {
			return nil // ramfs has no bound
		}
		used := int64(st.Blocks-st.Bfree) * int64(st.Bsize)
		return os.NewSyscallError("remount", unix.Mount("tmpfs", dir, "tmpfs", mountFlags|unix.MS_REMOUNT, fmt.Sprintf("size=%d", used+size)))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	err := error(unix.EINVAL)
	if noswap {
		err = unix.Mount("tmpfs", dir, "tmpfs", mountFlags, fmt.Sprintf("mode=0700,noswap,size=%d", size))
	}
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.4: what ramfs holds is never swapped out either
		err = unix.Mount("ramfs", dir, "ramfs", mountFlags, "mode=0700")
	}
	if err != nil {
		return fmt.Errorf("mount a file system in memory: %w", err)
	}
	return os.NewSyscallError("mount", unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
}

// noswap: tests make it false, as on an older kernel.
var noswap = true

const mountFlags = unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC

// mounted reports whether something is mounted there.
func mounted(dir string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

func nextName(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	next := 0
	for _, e := range entries {
		if n, err := strconv.Atoi(strings.TrimSuffix(e.Name(), ".new")); err == nil && n >= next {
			next = n + 1
		}
	}
	return next, nil
}

func write(path string, f File) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = out.Write(f.Value)
	if err == nil {
		err = out.Chown(f.UID, f.GID)
	}
	if err == nil { // after chown, which takes setuid bits away
		err = out.Chmod(f.Mode)
	}
	return errors.Join(err, out.Close())
}
