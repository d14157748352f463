// Package cgroup reads what the kernel counts of each task: memory, CPU, processes, OOM kills, under version 1 and 2.
//
// It refuses to write anything but the removal of empty groups. Failure story: a file that is missing counts as zero; statistics
// never fail a task.
package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

// Tree is a mounted cgroup file system.
type Tree struct {
	root string
	v2   bool
}

// New looks which version it is.
func New(root string) Tree {
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	return Tree{root: root, v2: err == nil}
}

// Stats is what one task uses.
type Stats struct {
	CPUNanos, Memory, MemoryLimit, Pids uint64
}

func (t Tree) file(controller, group, name string) string {
	if t.v2 {
		return filepath.Join(t.root, group, name)
	}
	return filepath.Join(t.root, controller, group, name)
}

func number(path string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0 // "max"
	}
	return n
}

func keyed(path, key string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		k, v, _ := strings.Cut(sc.Text(), " ")
		if k == key {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// Read returns a task's numbers, zero where there are none. Memory is without the file cache that can be dropped at once, as docker counts.
func (t Tree) Read(group string) Stats {
	var s Stats
	var inactive uint64
	if t.v2 {
		s.CPUNanos = keyed(t.file("", group, "cpu.stat"), "usage_usec") * 1000
		s.Memory = number(t.file("", group, "memory.current"))
		inactive = keyed(t.file("", group, "memory.stat"), "inactive_file")
	} else {
		s.CPUNanos = number(t.file("cpuacct", group, "cpuacct.usage"))
		s.Memory = number(t.file("memory", group, "memory.usage_in_bytes"))
		inactive = keyed(t.file("memory", group, "memory.stat"), "total_inactive_file")
	}
	if inactive < s.Memory {
		s.Memory -= inactive
	}
	s.MemoryLimit = uint64(t.MemoryLimit(group))
	s.Pids = number(t.file("pids", group, "pids.current"))
	return s
}

// MemoryLimit is the limit in bytes, 0 = none.
func (t Tree) MemoryLimit(group string) int64 {
	name := "memory.limit_in_bytes"
	if t.v2 {
		name = "memory.max"
	}
	n := number(t.file("memory", group, name))
	if n >= 1<<60 { // version 1 says "none" with a huge number
		return 0
	}
	return int64(n)
}

// OOMKills counts the processes the kernel killed for memory.
func (t Tree) OOMKills(group string) uint64 {
	if t.v2 {
		return keyed(t.file("", group, "memory.events"), "oom_kill")
	}
	return keyed(t.file("memory", group, "memory.oom_control"), "oom_kill")
}

// Kill ends every process in a group and below it.
func (t Tree) Kill(group string) {
	for _, pid := range t.Processes(group) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
	}
}

// Processes are the ids of all processes in a group and below it, as this process sees them.
func (t Tree) Processes(group string) []int {
	var out []int
	_ = filepath.WalkDir(t.file("pids", group, ""), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it may vanish as we walk
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			return nil
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
				out = append(out, pid)
			}
		}
		return nil
	})
	return out
}

// Remove removes a group and everything below it, in every hierarchy. Groups with processes are an error.
func (t Tree) Remove(group string) error {
	roots := []string{filepath.Join(t.root, group)}
	if !t.v2 {
		roots, _ = filepath.Glob(filepath.Join(t.root, "*", group)) // the pattern is ours
	}
	var failed []error
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil // it may vanish as we walk
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
		sort.Sort(sort.Reverse(sort.StringSlice(dirs)))
		for _, d := range dirs {
			if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = append(failed, fmt.Errorf("remove cgroup: %w", err))
			}
		}
	}
	return errors.Join(failed...)
}

// Groups lists the groups directly below one.
func (t Tree) Groups(group string) []string {
	entries, err := os.ReadDir(t.file("pids", group, ""))
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out
}
