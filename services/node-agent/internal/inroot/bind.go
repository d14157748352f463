package inroot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Bind mounts what name means below dir, now, at target, which it makes: whoever renames below dir afterwards changes
// nothing for those who use target. The mounts below come along.
func Bind(dir, name, target string) error {
	at, err := Open(dir, name)
	if err != nil {
		return err
	}
	defer at.Close()
	st, err := at.Stat()
	if err != nil {
		return err
	}
	// A link that ends at a link cannot be: openat2 followed it. Devices and sockets are nobody's directory or file.
	if !st.IsDir() && !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no directory and no regular file but %s", name, st.Mode())
	}
	if err := Unbind(target); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return fmt.Errorf("make a mount point: %w", err)
	}
	if st.IsDir() {
		err = os.Mkdir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("make a mount point: %w", err)
	}
	tree, err := unix.OpenTree(int(at.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return errors.Join(fmt.Errorf("clone the mount of %s: %w", name, err), Unbind(target))
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return errors.Join(fmt.Errorf("mount %s at %s: %w", name, target, err), Unbind(target))
	}
	return nil
}

// Bound tells whether something is mounted at target.
func Bound(target string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, &os.PathError{Op: "statx", Path: target, Err: err}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// Unbind takes away the mount at target and the mount point. None is fine. It never removes what is in a directory: should
// a mount still be there, what it shows is the user's.
func Unbind(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == unix.EINVAL || err == unix.ENOENT {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove mount point: %w", err)
	}
	return nil
}
