package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"skep.dev/libs/attach"
)

// loopback gives every task a namespace with nothing but lo: what the mesh does, without a network.
type loopback struct {
	dir string
	mu  sync.Mutex
}

func newLoopback(t testing.TB, dir string) *loopback {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return &loopback{dir: dir}
}

func (l *loopback) Attach(_ context.Context, r attach.Request) (attach.Attachment, error) {
	if r.HostNetwork {
		return attach.Attachment{}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	path := filepath.Join(l.dir, r.TaskID)
	a := attach.Attachment{Netns: path, Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}}
	if _, err := os.Stat(path); err == nil {
		return a, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return a, err
	}
	if err := f.Close(); err != nil {
		return a, err
	}
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and its namespace stays with the mount.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("new network namespace (root needed): %w", err)
			}
			if err := loUp(); err != nil {
				return err
			}
			return unix.Mount(fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()), path, "none", unix.MS_BIND, "")
		}()
	}()
	return a, <-done
}

func loUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var req struct {
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:], "lo")
	req.flags = unix.IFF_UP
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

func (l *loopback) Drain(context.Context, string) error { return nil }

func (l *loopback) Detach(_ context.Context, task string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	path := filepath.Join(l.dir, task)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (l *loopback) List(context.Context) ([]string, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}
