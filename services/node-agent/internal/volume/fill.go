package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// Fill puts the image's content into dir, which becomes the content of an empty volume.
type Fill func(dir string) error

// fillLimit is how long the copy may take to a file system that may hang.
const fillLimit = 15 * time.Minute

// inside names the stages of a fill in a volume that is a file system of its own: only within one a rename is one step.
// Those of a plain volume are beside its data, out of every container's sight.
const inside = ".skep-"

// ErrFull says that a volume's own file system has no space left.
var ErrFull = errors.New("it is full")

// Fill fills a volume at data with an image's content if it is empty: once, however many tasks start at once and however
// often it is interrupted. driver and name are the volume's.
func (s *Store) Fill(ctx context.Context, driver, name, data string, fill Fill) error {
	if fill == nil {
		return nil
	}
	key := name
	stages := filepath.Dir(data) + "/"
	own := keyOf(driver, name).Driver != Local
	if own {
		key = driver + "/" + name
	} else if m, err := s.readMeta(name); err != nil {
		return err
	} else {
		own = len(m.Options) > 0
	}
	if own {
		stages = filepath.Join(data, inside)
	}
	return s.do(ctx, key, "fill", fillLimit, func(context.Context) error {
		err := fillFrom(stages, data, fill)
		switch {
		case err == nil:
			return nil
		case own && errors.Is(err, unix.ENOSPC), own && errors.Is(err, unix.EDQUOT):
			return fmt.Errorf("fill volume %s on node %s with the image's content: %w", name, s.cfg.Node, ErrFull)
		case own && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EACCES)):
			return fmt.Errorf("fill volume %s on node %s with the image's content: its file system refuses owners, modes or attributes: mount it with volume-nocopy, or give it options for the owner (uid=, gid=): %w",
				name, s.cfg.Node, err)
		}
		return fmt.Errorf("fill volume %s: %w", name, err)
	})
}

// between is called between two steps of a fill: tests end the process there.
var between = func() {}

// fillFrom copies into a folder that no container sees, and moves what is complete to the data: a container that has the
// empty volume already could otherwise put a link where the copy goes on.
func fillFrom(stages, data string, fill Fill) error {
	filling, filled := stages+"filling", stages+"filled"
	if err := os.RemoveAll(filling); err != nil { // of a fill that was interrupted
		return err
	}
	if _, err := os.Lstat(filled); errors.Is(err, os.ErrNotExist) {
		if empty, err := isEmpty(data); err != nil || !empty {
			return err
		}
		if err := os.Mkdir(filling, 0o755); err != nil {
			return err
		}
		between()
		if err := fill(filling); err != nil {
			return errors.Join(err, os.RemoveAll(filling))
		}
		between()
		if err := os.Rename(filling, filled); err != nil {
			return err
		}
	}
	st, err := os.Lstat(filled)
	if err != nil {
		return err
	}
	owner := st.Sys().(*syscall.Stat_t)
	entries, err := os.ReadDir(filled)
	if err != nil {
		return err
	}
	for _, e := range entries {
		between()
		if err := moveNew(filepath.Join(filled, e.Name()), filepath.Join(data, e.Name())); err != nil {
			return fmt.Errorf("move %s to the volume: %w", e.Name(), err)
		}
	}
	between()
	if err := os.Chown(data, int(owner.Uid), int(owner.Gid)); err != nil {
		return err
	}
	between()
	if err := os.Chmod(data, st.Mode()); err != nil {
		return err
	}
	between()
	// Done, in one step: what is left in it is nobody's.
	if err := os.Rename(filled, filling); err != nil {
		return err
	}
	between()
	return os.RemoveAll(filling)
}

// moveNew moves a file or folder. What a container has put there meanwhile stays.
func moveNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // network file systems know no such rename
		if _, lerr := os.Lstat(to); errors.Is(lerr, os.ErrNotExist) {
			return os.Rename(from, to)
		} else if lerr != nil {
			return lerr
		}
		return nil
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// isEmpty tells whether nobody has put anything there. A new file system's own folder does not count.
func isEmpty(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return false, err
		}
	}
	return true, err
}

// CopyUp returns a Fill that copies what an image has at target, its owner and mode included.
func CopyUp(rootfs, target string) Fill {
	return func(dir string) error {
		src, err := fs.RootPath(rootfs, target)
		if err != nil {
			return err
		}
		st, err := os.Stat(src)
		if errors.Is(err, os.ErrNotExist) || err == nil && !st.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		return fs.CopyDir(dir, src)
	}
}
