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

// A host may have its /var/lib/skep on a file system of its own, in a file of its disk, so that it can be full while the machine's
// is not. It outlives a power-off, as the disk does. The daemon's log stays outside.

const ownMount = "/run/.lab/own"

func ownDisk(disk string) string { return filepath.Join(disk, "own.img") }

// makeOwnDisk makes the file system, unless it is there.
func makeOwnDisk(ctx context.Context, image string, size int64) error {
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

// mountOwnDisk mounts it and returns what is to be /var/lib/skep, with what was prepared in lib; the host's init does it.
func mountOwnDisk(image, lib string) (string, error) {
	const outside = "/run/.lab/lib"
	for _, dir := range []string{ownMount, outside} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	if out, err := exec.Command("mount", "-o", "loop", image, ownMount).CombinedOutput(); err != nil {
		return "", fmt.Errorf("mount %s: %w: %s", image, err, out)
	}
	if err := bind(lib, outside); err != nil {
		return "", err
	}
	own := filepath.Join(ownMount, "lib")
	if err := os.MkdirAll(own, 0o700); err != nil {
		return "", err
	}
	for _, name := range []string{"registries.toml", "skep.log"} {
		if err := os.Symlink(filepath.Join(outside, name), filepath.Join(own, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return own, nil
}

// FillDisk leaves no byte free on a host's own disk; FreeDisk ends that.
func (l *Lab) FillDisk(ctx context.Context, host string) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	if h.OwnDisk == 0 {
		return fmt.Errorf("%s has no disk of its own: start the lab with Options.OwnDisk", host)
	}
	// dd ends with 1 when nothing is free any more, which is what is wanted.
	r, err := l.Run(ctx, host, "sh", "-c", "for bs in 4M 4k 512; do dd if=/dev/zero of="+ownMount+"/filler.$bs bs=$bs 2>&1; done")
	if err != nil {
		return fmt.Errorf("fill the disk of %s: %w: %s", host, err, r.Stdout)
	}
	return nil
}

// FreeDisk removes what FillDisk wrote.
func (l *Lab) FreeDisk(ctx context.Context, host string) error {
	if _, err := l.must(ctx, host, "sh", "-c", "rm -f "+ownMount+"/filler.*"); err != nil {
		return fmt.Errorf("free the disk of %s: %w", host, err)
	}
	return nil
}
