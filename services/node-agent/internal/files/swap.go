package files

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Swap puts new files in the place of those that a running container has: whoever opens one from then on reads the new
// value, and never half of it. pid is the container's first process, held by the caller so that it is no other. It returns
// the files as Keep is to know them; was are those that stand now.
//
// It mounts the new file beneath the old one within the container's mount namespace, then takes the old one away. Who runs
// in the container decides what its paths lead to, and may change that at any time: so a path is opened once, what it led
// to must be one of the task's own files, and nothing but that is touched.
func Swap(pid int, fresh, was []Placed) ([]Placed, error) {
	trees := make([]int, 0, len(fresh))
	defer func() {
		for _, fd := range trees {
			_ = unix.Close(fd) // of a mount, nothing was written to it
		}
	}()
	for _, f := range fresh {
		fd, err := tree(f.Source)
		if err != nil {
			return nil, fmt.Errorf("replace the file %s: %w", f.Path, err)
		}
		trees = append(trees, fd)
	}
	ns, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns/mnt"))
	if err != nil {
		return nil, fmt.Errorf("enter the container's mounts: %w", err)
	}
	defer ns.Close()
	// This process' handles by number, as this host's /proc has them: the container's own is not to be relied on.
	handles, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("enter the container's mounts: %w", err)
	}
	defer handles.Close()
	covered := make([]bool, len(fresh))
	err = lostThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("enter the container's mounts: %w", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the container's mounts: %w", err)
		}
		if err := unix.Fchdir(int(handles.Fd())); err != nil {
			return fmt.Errorf("enter the container's mounts: %w", err)
		}
		// All of them are found before the first is replaced.
		found := make([]int, 0, len(fresh))
		defer func() {
			for _, fd := range found {
				_ = unix.Close(fd) // as above
			}
		}()
		for i, f := range fresh {
			fd, err := find(trees[i], f.Path)
			if err != nil {
				return fmt.Errorf("replace the file %s: %w", f.Path, err)
			}
			found = append(found, fd)
		}
		for i, f := range fresh {
			var err error
			if covered[i], err = place(trees[i], found[i]); err != nil {
				return fmt.Errorf("replace the file %s: %w", f.Path, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]Placed, len(fresh))
	for i, f := range fresh {
		if covered[i] {
			f.Below = below(f.Path, was)
		}
		out[i] = f
	}
	return out, nil
}

// lostThread runs f on a thread that ends with it, and is never the process' first: that one does not end, and is what
// /proc/self shows.
func lostThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- lostThread(f) // on another one, while this one is held
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// below are the files that stand at a path, with those that are covered there already.
func below(path string, was []Placed) []string {
	for _, p := range was {
		if p.Path == path {
			return append(p.Below[:len(p.Below):len(p.Below)], p.Name)
		}
	}
	return nil
}

// tree is a mount of one file that is nowhere yet, read-only.
func tree(source string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		_ = unix.Close(fd) // as above
		return -1, err
	}
	return fd, nil
}

var errMoved = errors.New("the container has none of its secrets mounted there any more")

// find opens what the container has at a path. That must be a mount of the file system that the tree is of, which holds the
// task's files and nothing else: what a container has otherwise is left alone, wherever its links lead.
func find(tree int, path string) (int, error) {
	old, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return -1, errMoved
	}
	if err != nil {
		return -1, err
	}
	var is, to unix.Statx_t
	err = unix.Statx(tree, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &to)
	if err == nil {
		err = unix.Statx(old, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &is)
	}
	if err == nil && (is.Dev_major != to.Dev_major || is.Dev_minor != to.Dev_minor || is.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0) {
		err = errMoved
	}
	if err != nil {
		_ = unix.Close(old) // nothing was written to it
		return -1, err
	}
	return old, nil
}

// place mounts a tree where the old mount is. covered tells that the old one is still there, below the new one. The working
// directory is that of this process' handles.
func place(tree, old int) (covered bool, err error) {
	// Beneath the old one, which is then taken away: at no moment is there another file than these two.
	const empty = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if beneath {
		err := unix.MoveMount(tree, "", old, "", empty|moveMountBeneath)
		if err == nil {
			return false, unix.Unmount(strconv.Itoa(old), unix.MNT_DETACH)
		}
		if !errors.Is(err, unix.EINVAL) {
			return false, err
		}
	}
	// Before Linux 6.5 it goes on top.
	return true, unix.MoveMount(tree, "", old, "", empty)
}

// beneath: tests make it false, as on an older kernel.
var beneath = true

const moveMountBeneath = 0x200
