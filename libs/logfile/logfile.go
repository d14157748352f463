// Package logfile bounds the file a process logs to through a descriptor it was given: `>>skep.log`, as skep itself starts
// its daemon and as many start the separate programs. The process turns the file over by itself: the old one is renamed
// to <file>.1 and so on, and the descriptors (standard output and error) move to a new one, so that a panic is found where
// the log is.
//
// Failure story: if the file cannot be renamed or made anew it is emptied where it is: losing old lines is better than
// filling the disk. Several processes may share a file; whoever finds it turned over follows.
package logfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// What a process keeps of its log.
const (
	MaxSize = 16 << 20 // bytes before a file is turned over
	Keep    = 4        // old files
)

// Writer writes to a descriptor and keeps the file behind it small.
type Writer struct {
	f    *os.File
	max  int64
	keep int

	mu   sync.Mutex
	left int64 // bytes until the file's size is looked at
}

// New bounds f to max bytes and keep old files beside it. It returns f itself when that is no regular file: a terminal, a
// pipe and the journal are bounded by others.
func New(f *os.File, max int64, keep int) io.Writer {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return f
	}
	return &Writer{f: f, max: max, keep: keep}
}

// Write implements io.Writer: p is one line or several, never split over two files.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left -= int64(len(p)); w.left < 0 {
		if err := w.boundLocked(int64(len(p))); err != nil {
			fmt.Fprintf(w.f, "keep the log small: %v\n", err)
		}
	}
	return w.f.Write(p)
}

// Sync implements zapcore.WriteSyncer.
func (w *Writer) Sync() error { return w.f.Sync() }

// boundLocked looks at the file before next bytes are written. Others write to it as well, so it looks often.
func (w *Writer) boundLocked(next int64) error {
	const often = 8
	w.left = w.max / often
	st, err := w.f.Stat()
	if err != nil {
		return err
	}
	if st.Size()+next <= w.max-w.max/often {
		return nil
	}
	if err := w.turnLocked(st); err != nil {
		return errors.Join(err, w.f.Truncate(0))
	}
	return nil
}

func (w *Writer) turnLocked(st os.FileInfo) error {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(w.f.Fd())))
	if err != nil {
		return err
	}
	path = strings.TrimSuffix(path, " (deleted)")
	// Another process that shares the file may have turned it over already.
	if now, err := os.Lstat(path); err == nil && os.SameFile(now, st) {
		if err := Shift(path, w.keep); err != nil {
			return err
		}
	}
	next, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, st.Mode().Perm())
	if err != nil {
		return err
	}
	defer next.Close()
	for _, fd := range []int{int(w.f.Fd()), unix.Stdout, unix.Stderr} {
		var have unix.Stat_t
		if unix.Fstat(fd, &have) != nil || !same(&have, st) {
			continue
		}
		if err := unix.Dup3(int(next.Fd()), fd, 0); err != nil {
			return fmt.Errorf("move descriptor %d to the new %s: %w", fd, path, err)
		}
	}
	return nil
}

// Shift renames path to path.1, that to path.2 and so on; the one beyond keep is gone.
func Shift(path string, keep int) error {
	for i := keep - 1; i >= 0; i-- {
		from := path
		if i > 0 {
			from += "." + strconv.Itoa(i)
		}
		if err := os.Rename(from, path+"."+strconv.Itoa(i+1)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// Empty bounds a file that another process holds open for appending: beyond limit bytes its newest part moves to <path>.1
// and it is emptied in place. What is written in between is lost.
func Empty(path string, limit int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() <= limit {
		return err
	}
	old, err := os.OpenFile(path+".1", os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, st.Mode().Perm())
	if err == nil {
		// It may have outgrown the limit by far since the last look.
		if _, err = io.Copy(old, io.NewSectionReader(f, st.Size()-limit, limit)); err == nil {
			err = old.Close()
		} else {
			old.Close()
		}
	}
	return errors.Join(err, f.Truncate(0))
}

func same(have *unix.Stat_t, st os.FileInfo) bool {
	want, ok := st.Sys().(*syscall.Stat_t)
	return ok && have.Dev == want.Dev && have.Ino == want.Ino
}
