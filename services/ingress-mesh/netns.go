package mesh

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const nsfsMagic = 0x6e736673

// namespaceAt reports whether a network namespace is mounted at path.
func namespaceAt(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == nsfsMagic
}

// inThread runs f on a thread of its own, which is given up if it could not be brought back to its namespace.
func inThread(f func(home netns.NsHandle) error) error {
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			runtime.LockOSThread() // unlocked only when the thread is as it was; else it dies with this goroutine
			home, err := netns.Get()
			if err != nil {
				return fmt.Errorf("open the host's network namespace: %w", err)
			}
			defer home.Close()
			err = f(home)
			if back := netns.Set(home); back != nil {
				return errors.Join(err, fmt.Errorf("return to the host's network namespace: %w", back))
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	return <-done
}

// makeNamespace makes a network namespace, keeps it by a bind mount at path, and returns a handle into it.
// A namespace that is there already is opened.
func makeNamespace(path string) (ns netns.NsHandle, h *netlink.Handle, err error) {
	if namespaceAt(path) {
		if ns, err = netns.GetFromPath(path); err != nil {
			return 0, nil, fmt.Errorf("open namespace %s: %w", path, err)
		}
		if h, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
			_ = ns.Close()
			return 0, nil, fmt.Errorf("open netlink in namespace %s: %w", path, err)
		}
		return ns, h, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return 0, nil, fmt.Errorf("make the mount point of a namespace: %w", err)
	}
	_ = f.Close()
	err = inThread(func(netns.NsHandle) error {
		if ns, err = netns.New(); err != nil { // unshares this thread and returns its handle
			return fmt.Errorf("make a network namespace: %w", err)
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep the namespace at %s: %w", path, err)
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
		if ns > 0 {
			_ = ns.Close()
		}
		return 0, nil, errors.Join(err, removeNamespace(path))
	}
	return ns, h, nil
}

// removeNamespace gives the namespace up; the kernel frees it when no process is left in it.
func removeNamespace(path string) error {
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

func (s *Service) nsPath(task string) string { return filepath.Join(s.netns, task) }
