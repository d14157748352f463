// Package nsfs makes, keeps, enters and removes network namespaces that are named by a bind mount in a directory, as
// `ip netns` does in /run/netns.
//
// It owns nothing: whoever names a path owns the namespace there. It refuses to leave a thread in a foreign namespace:
// a thread that cannot be brought back dies with its goroutine.
//
// Failure story: a path without a mount is what a crash within Make, a reboot or an administrator leaves; Make makes
// it whole and Remove removes it. A namespace lives as long as a mount, a process, an open handle or a socket in it.
package nsfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const magic = 0x6e736673

// ID names a namespace for as long as it lives.
type ID struct{ dev, ino uint64 }

// At reports whether a network namespace is mounted at path.
func At(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == magic
}

// IDAt is the identity of the namespace mounted at path; false if there is none.
func IDAt(path string) (ID, bool) {
	var st unix.Stat_t
	if !At(path) || unix.Stat(path, &st) != nil {
		return ID{}, false
	}
	return ID{st.Dev, st.Ino}, true
}

// IDOf is the identity of an open namespace.
func IDOf(ns netns.NsHandle) (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(ns), &st); err != nil {
		return ID{}, fmt.Errorf("look at an open namespace: %w", err)
	}
	return ID{st.Dev, st.Ino}, nil
}

// Current opens the namespace of the calling thread.
func Current() (netns.NsHandle, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns, err := netns.Get()
	if err != nil {
		return netns.None(), fmt.Errorf("open the current network namespace: %w", err)
	}
	return ns, nil
}

// Thread runs f on a thread of its own, which f may move to other namespaces. The thread is given up if it could not
// be brought back to the namespace it began in.
func Thread(f func(home netns.NsHandle) error) error {
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			runtime.LockOSThread() // unlocked only when the thread is as it was; else it dies with this goroutine
			home, err := netns.Get()
			if err != nil {
				return fmt.Errorf("open the current network namespace: %w", err)
			}
			defer home.Close()
			err = f(home)
			if back := netns.Set(home); back != nil {
				return errors.Join(err, fmt.Errorf("return to the network namespace of the process: %w", back))
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	return <-done
}

// Inside runs f with its thread in the namespace ns: new sockets, /proc/sys/net and programs that are started belong
// to it.
func Inside(ns netns.NsHandle, f func() error) error {
	return Thread(func(netns.NsHandle) error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// In runs f with its thread in the namespace mounted at path; see Inside.
func In(path string, f func() error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer ns.Close()
	return Inside(ns, f)
}

// Open opens the namespace mounted at path and a netlink handle into it. Who opened them closes both.
func Open(path string) (netns.NsHandle, *netlink.Handle, error) {
	if !At(path) { // a plain file opens too
		return netns.None(), nil, fmt.Errorf("open namespace %s: %w", path, fs.ErrNotExist)
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return netns.None(), nil, fmt.Errorf("open namespace %s: %w", path, err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return netns.None(), nil, fmt.Errorf("open netlink in namespace %s: %w", path, err)
	}
	return ns, h, nil
}

// Make makes a network namespace, keeps it by a bind mount at path, and opens it as Open does. One that is there
// already is opened.
func Make(path string) (ns netns.NsHandle, h *netlink.Handle, err error) {
	if At(path) {
		return Open(path)
	}
	ns = netns.None()
	err = Thread(func(netns.NsHandle) error {
		if ns, err = netns.New(); err != nil { // unshares this thread and returns its handle
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := Keep(ns, path); err != nil {
			return err
		}
		if h, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink in namespace %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		if h != nil {
			h.Close()
		}
		if ns.IsOpen() {
			_ = ns.Close()
		}
		return netns.None(), nil, errors.Join(err, Remove(path))
	}
	return ns, h, nil
}

// Keep mounts an open namespace at path, so that it outlives its handles and processes.
func Keep(ns netns.NsHandle, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return fmt.Errorf("make the mount point of a namespace: %w", err)
	}
	_ = f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", int(ns)), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("keep the namespace at %s: %w", path, err)
	}
	return nil
}

// Remove gives the namespace at path up; the kernel frees it when nothing is left in it. A path where there is none
// is no error.
func Remove(path string) error {
	// Something may have been mounted over it twice; EINVAL says nothing is mounted.
	for range 8 {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", path, err)
	}
	return nil
}

// Setting writes one of the kernel's settings (net/ipv4/ip_forward) in the namespace of the calling thread, see
// Inside, if it is not so already.
func Setting(name, value string) error {
	path := "/proc/sys/" + name
	have, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if string(have) == value+"\n" {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	return nil
}
