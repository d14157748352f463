package files

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Swap puts new files in the place of those that a running container has: whoever opens one from then on reads the new
// value, and never half of it. pid is the container's first process, held by the caller so that it is no other.
//
// It mounts the new file over the old one within the container's mount namespace, then takes the old one from below.
func Swap(pid int, files []Placed) error {
	trees := make([]int, 0, len(files))
	defer func() {
		for _, fd := range trees {
			_ = unix.Close(fd) // of a mount, nothing was written to it
		}
	}()
	for _, f := range files {
		fd, err := tree(f.Source)
		if err != nil {
			return fmt.Errorf("replace the file %s: %w", f.Path, err)
		}
		trees = append(trees, fd)
	}
	ns, err := os.Open(filepath.Join("/proc", fmt.Sprint(pid), "ns/mnt"))
	if err != nil {
		return fmt.Errorf("enter the container's mounts: %w", err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		// The thread ends with this goroutine: it is in the container's mounts and never to be used for anything else.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("enter the container's mounts: %w", err)
			}
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("enter the container's mounts: %w", err)
			}
			for i, f := range files {
				if err := place(trees[i], f.Path); err != nil {
					return fmt.Errorf("replace the file %s: %w", f.Path, err)
				}
			}
			return nil
		}()
	}()
	return <-done
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

// place mounts it where the container has the old one. That must be a mount already: a container's own file is left alone.
func place(fd int, path string) error {
	if !mountedAt(path) {
		return fmt.Errorf("the container has nothing mounted there any more")
	}
	// Beneath the old one, which is then taken away: at no moment is there another file than these two, nor does a stack
	// of old ones grow. Before Linux 6.5 it goes on top.
	err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH|moveMountBeneath)
	if err == nil {
		return unix.Unmount(path, unix.MNT_DETACH)
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

const moveMountBeneath = 0x200

func mountedAt(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
