package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// A manager's broker may have a file system of its own, in a file of the host's disk, so that it can be full while the machine's
// is not. It outlives a power-off, as the disk does.

const (
	storeMount = "/run/.lab/store"
	storeDir   = "/var/lib/skep/bus"
)

func storeDisk(disk string) string { return filepath.Join(disk, "store.img") }

// makeStoreDisk makes the file system, unless it is there.
func makeStoreDisk(ctx context.Context, image string, size int64) error {
	if _, err := os.Stat(image); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-m", "0", image).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return nil
}

// mountStoreDisk puts it where the broker has its files; the host's init does it.
func mountStoreDisk(image string) error {
	if err := os.MkdirAll(storeMount, 0o755); err != nil {
		return err
	}
	if out, err := exec.Command("mount", "-o", "loop", image, storeMount).CombinedOutput(); err != nil {
		return fmt.Errorf("mount %s: %w: %s", image, err, out)
	}
	inside := filepath.Join(storeMount, "bus")
	for _, dir := range []string{inside, storeDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return bind(inside, storeDir)
}

// FillStore leaves no byte free where a manager's broker has its files; FreeStore ends that.
func (l *Lab) FillStore(ctx context.Context, host string) error {
	if h, err := l.Host(host); err != nil || h.StoreDisk == 0 {
		return errors.Join(err, fmt.Errorf("the broker of %s has no disk of its own: start the lab with Options.StoreDisk", host))
	}
	// dd ends with 1 when nothing is free any more, which is what is wanted.
	r, err := l.Run(ctx, host, "sh", "-c", "dd if=/dev/zero of="+storeMount+"/filler bs=1M 2>&1; dd if=/dev/zero of="+storeMount+"/filler2 bs=512 2>&1")
	if err != nil {
		return fmt.Errorf("fill the disk of the broker of %s: %w: %s", host, err, r.Stdout)
	}
	return nil
}

// FreeStore removes what FillStore wrote.
func (l *Lab) FreeStore(ctx context.Context, host string) error {
	if _, err := l.must(ctx, host, "rm", "-f", storeMount+"/filler", storeMount+"/filler2"); err != nil {
		return fmt.Errorf("free the disk of the broker of %s: %w", host, err)
	}
	return nil
}
