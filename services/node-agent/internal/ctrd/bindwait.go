package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/moby/sys/mountinfo"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/ocispec"
	"skep.dev/services/node-agent/internal/task"
)

// lookForMount is how often it is looked whether something is mounted by now: a disk takes seconds after a boot.
const lookForMount = 500 * time.Millisecond

// awaitMounts returns when something is mounted at each source that is to be waited for: after a boot the disk may come
// later than the task, which would write below its mount point. It waits for as long as it takes, and says so.
func awaitMounts(ctx context.Context, j *task.Job, names ocispec.Names, progress func(string)) error {
	for _, m := range j.Container().GetMounts() {
		if m.GetType() != skepv1.Mount_TYPE_BIND || !m.GetBindWait() {
			continue
		}
		source, err := names.Expand(m.GetSource())
		if err != nil {
			return fmt.Errorf("mount source: %w", err)
		}
		for {
			there, err := mountedAt(source)
			if err != nil {
				return task.Temporary(fmt.Errorf("look whether something is mounted at %s: %w", source, err))
			}
			if there {
				break
			}
			progress(fmt.Sprintf("waiting until something is mounted at %s (bind-wait)", source))
			select {
			case <-time.After(lookForMount):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// mountedAt reports whether a path is there and is a mount point, itself and not one of the folders it is in.
func mountedAt(path string) (bool, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	list, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(real))
	return len(list) > 0, err
}
