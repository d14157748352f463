package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"
)

const (
	// sizeLimit is how long one volume is measured, and maxMeasured how many files of it are looked at.
	sizeLimit   = 3 * time.Second
	maxMeasured = 500_000
)

// Size is what the files of a volume take on its disk, bytes, -1 when that cannot be told in time. What is mounted below is
// not counted, nor is anything outside.
func (s *Store) Size(ctx context.Context, name string) int64 {
	s.mu.Lock()
	if s.measuring[name] { // that its file system hangs is not asked twice
		s.mu.Unlock()
		return -1
	}
	s.measuring[name] = true
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, sizeLimit)
	defer cancel()
	out := make(chan int64, 1)
	go func() {
		n, err := measure(ctx, s.data(name))
		if err != nil {
			n = -1
		}
		s.mu.Lock()
		delete(s.measuring, name)
		s.mu.Unlock()
		out <- n
	}()
	select {
	case n := <-out:
		return n
	case <-ctx.Done():
		return -1
	}
}

var errTooMany = errors.New("too many files")

func measure(ctx context.Context, dir string) (int64, error) {
	root, err := os.OpenRoot(dir) // a container that puts links there leads nowhere else
	if err != nil {
		return 0, err
	}
	defer root.Close()
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var total int64
	var device uint64
	files := 0
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if files++; files > maxMeasured {
			return errTooMany
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if path == "." {
			device = st.Dev
		} else if st.Dev != device {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			if i := (inode{st.Dev, st.Ino}); seen[i] {
				return nil
			} else {
				seen[i] = true
			}
		}
		total += st.Blocks * 512
		return nil
	})
	return total, err
}
