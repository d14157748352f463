package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// volumed is the lab's volume plug-in.
const volumed = "skep-volumed"

// VolumeStore is the folder of the volume plug-in's storage, shared by all hosts and gone with the lab.
func (l *Lab) VolumeStore() string { return filepath.Join(diskRoot, l.Name, "shared") }

// StartVolumePlugin starts the volume plug-in of a host, as after a crash, and waits until it has its socket.
func (l *Lab) StartVolumePlugin(ctx context.Context, host string) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.VolumeStore(), 0o755); err != nil {
		return err
	}
	sock := filepath.Join(h.Root(), "run/docker/plugins", l.VolumePlugin+".sock")
	if err := os.Remove(sock); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one that was killed
		return err
	}
	if err := l.detach(ctx, host, fmt.Sprintf("%s -name %s -host %s -store %s", volumed, l.VolumePlugin, host, l.VolumeStore()), volumed); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		if _, err := os.Lstat(sock); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the volume plug-in of %s does not start; see %s.log on its disk", host, volumed)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// VolumeFault has a host's volume plug-in do wrong at a call, such as Mount: hang, crash, crash-after, error TEXT, garbage,
// empty, slow TIME; "" ends it.
func (l *Lab) VolumeFault(host, call, what string) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	file := filepath.Join(h.Root(), "run/volumed", l.VolumePlugin, "faults", call)
	if what == "" {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return os.WriteFile(file, []byte(what), 0o644)
}

// ForceDetach takes all volumes from a host, as fencing does, whether the host is on or not.
func (l *Lab) ForceDetach(ctx context.Context, host string) error {
	out, err := exec.CommandContext(ctx, filepath.Join(l.Bin, volumed), "-store", l.VolumeStore(), "force-detach", host).CombinedOutput()
	if err != nil {
		return fmt.Errorf("force-detach %s: %w: %s", host, err, out)
	}
	return nil
}
