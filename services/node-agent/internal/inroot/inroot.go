// Package inroot opens paths below a directory whose content a stranger writes: the root of an image, of a running
// container, a volume. The kernel resolves them (openat2), so a path means the same when it is used as when it was looked
// at, and no link, "..", or link of /proc leads out.
package inroot

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Limit is the size of the largest file that is read, in bytes. No account file that people use comes near it.
const Limit = 1 << 20

// Open finds name below dir and returns a handle to it (O_PATH: nothing is read, no device is woken). Absolute names and
// absolute links begin at dir.
func Open(dir, name string) (*os.File, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, name, &how)
		// EAGAIN: something was renamed while ".." was resolved, and the kernel cannot tell that it stayed inside.
		if (err == unix.EAGAIN || err == unix.EINTR) && try < 100 {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// Read returns a regular file below dir, nil when there is none. What is no regular file, or larger than Limit, is an error
// that names it. A file without a size is empty: so are those of /proc, some of which never end.
func Read(dir, name string) ([]byte, error) {
	at, err := Open(dir, name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer at.Close()
	st, err := at.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file but %s", name, st.Mode())
	case st.Size() > Limit:
		return nil, fmt.Errorf("%s has %d bytes: skep reads at most %d", name, st.Size(), Limit)
	case st.Size() == 0:
		return nil, nil
	}
	// The same file again, to be read. Without blocking, should a file system lie about what it is.
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: errors.Unwrap(err)}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, st.Size()))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}
