package compose

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The bounds of what is read. The largest stack file of a survey of 201 public ones had 30 services and 40 KB.
const (
	maxFile  = 1 << 20 // bytes of one compose or env file
	maxFiles = 100     // compose files, with those that are included or extended
	maxNodes = 50_000  // values of one file, with what its aliases stand for
	maxDepth = 64      // levels of one file

	readTime = 2 * time.Second
)

// readFile reads a regular file of at most limit bytes. It does not wait: whoever names a pipe, a terminal or a device is
// told so.
func readFile(path string, limit int) ([]byte, error) {
	// Only looked at, not opened: a device may do something when it is.
	st, err := os.Stat(path)
	if err != nil {
		return nil, plainError(err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("it is %s: name a file", kindOf(st.Mode()))
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may have been swapped for a pipe since
	if err != nil {
		return nil, plainError(err)
	}
	defer f.Close()
	if st, err = f.Stat(); err != nil {
		return nil, plainError(err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("it is %s: name a file", kindOf(st.Mode()))
	}
	// Some files of the kernel are regular and have a reader wait. Where there is no such thing as waiting this is refused.
	_ = f.SetReadDeadline(time.Now().Add(readTime))
	return readAll(f, limit)
}

func readAll(r io.Reader, limit int) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, plainError(err)
	}
	if len(data) > limit {
		return nil, fmt.Errorf("it is larger than %d bytes", limit)
	}
	return data, nil
}

// plainError is an error without the path that the sentence around it has already.
func plainError(err error) error {
	var p *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("there is no such file")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("it has no end: name a file that can be read at once")
	case errors.As(err, &p):
		return p.Err
	}
	return err
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "not a file"
}

// abs is name from dir; "" and relative dirs are the process's.
func abs(dir, name string) (string, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	return filepath.Abs(name)
}
