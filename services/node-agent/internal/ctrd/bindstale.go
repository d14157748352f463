package ctrd

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/task"
)

// maxStale is how many sources are told of one task.
const maxStale = 8

// StaleBinds are the sources of a running container's bind mounts where this host has something else by now: a container
// keeps what was there when it started, also when a disk is mounted over it later. Both sides are the kernel's word, so
// nothing is remembered, and no file system is asked but for the way to the source.
func (r *Runtime) StaleBinds(j *task.Job, pid uint32) ([]string, error) {
	var out []string
	var inside, host []*mountinfo.Info
	names := r.namesOf(j)
	for _, m := range j.Container().GetMounts() {
		if m.GetType() != skepv1.Mount_TYPE_BIND || len(out) == maxStale {
			continue
		}
		source, serr := names.Expand(m.GetSource())
		target, terr := names.Expand(m.GetTarget())
		if serr != nil || terr != nil {
			continue // it would not have started
		}
		if host == nil {
			var err error
			if inside, err = mountsOf(pid); err == nil {
				host, err = mountinfo.GetMounts(nil)
			}
			if err != nil {
				return nil, fmt.Errorf("compare the bind mounts of task %s with the host: %w", j.ID(), err)
			}
		}
		if has := at(inside, path.Clean(target)); has != nil && where(has, has.Mountpoint) != now(host, source) {
			out = append(out, source)
		}
	}
	return out, nil
}

func mountsOf(pid uint32) ([]*mountinfo.Info, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	return mountinfo.GetMountsFromReader(f, nil)
}

// at is the mount that is seen at a mount point, nil if there is none: the last of several.
func at(list []*mountinfo.Info, point string) (out *mountinfo.Info) {
	for _, m := range list {
		if m.Mountpoint == point {
			out = m
		}
	}
	return out
}

// now is where a path of the host leads: the device, and the way on it. A path that is not there leads nowhere.
func now(host []*mountinfo.Info, source string) string {
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return ""
	}
	var in *mountinfo.Info
	for _, m := range host {
		if (m.Mountpoint == "/" || real == m.Mountpoint || strings.HasPrefix(real, m.Mountpoint+"/")) && (in == nil || len(m.Mountpoint) >= len(in.Mountpoint)) {
			in = m
		}
	}
	if in == nil {
		return ""
	}
	return where(in, real)
}

// where is what a path below a mount is of its device.
func where(m *mountinfo.Info, at string) string {
	return fmt.Sprintf("%d:%d %s", m.Major, m.Minor, path.Join(m.Root, strings.TrimPrefix(at, m.Mountpoint)))
}
