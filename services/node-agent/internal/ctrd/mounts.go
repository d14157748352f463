package ctrd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sort"

	"github.com/containerd/containerd/v2/core/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/ocispec"
	"skep.dev/services/node-agent/internal/task"
	"skep.dev/services/node-agent/internal/volume"
)

// maxDeclared is how many volumes an image may declare: each is made for every one of its tasks.
const maxDeclared = 256

// mounts resolves the user's mounts, and the volumes the image declares, to paths of this host.
func (r *Runtime) mounts(ctx context.Context, j *task.Job, names ocispec.Names, img *Image, root []mount.Mount, volumes []string) ([]specs.Mount, error) {
	var out []specs.Mount
	seen := map[string]bool{}
	anon := 0
	if len(img.Config.Volumes) > maxDeclared {
		return nil, fmt.Errorf("image %s declares %d volumes: a node makes at most %d", img.Name, len(img.Config.Volumes), maxDeclared)
	}
	if err := r.subpaths.release(j.ID()); err != nil { // of an earlier try
		return nil, err
	}
	for i, m := range j.Container().GetMounts() {
		var err error
		source, target := m.GetSource(), m.GetTarget()
		if source, err = names.Expand(source); err != nil {
			return nil, fmt.Errorf("mount source: %w", err)
		}
		if target, err = names.Expand(target); err != nil {
			return nil, fmt.Errorf("mount target: %w", err)
		}
		if !path.IsAbs(target) {
			return nil, fmt.Errorf("invalid mount target, must be an absolute path: %s", target)
		}
		seen[path.Clean(target)] = true
		var sm specs.Mount
		switch m.GetType() {
		case skepv1.Mount_TYPE_BIND:
			sm, err = bind(m, source, target)
		case skepv1.Mount_TYPE_TMPFS:
			sm, err = tmpfs(m, source, target)
		case skepv1.Mount_TYPE_VOLUME:
			sm, err = r.volume(ctx, j, m, volumes[i], target, root, &anon)
		default:
			err = fmt.Errorf("mounts of type %s are not supported on this node", spec.Word(m.GetType()))
		}
		if err != nil {
			return nil, err
		}
		out = append(out, sm)
	}
	var declared []string
	for v := range img.Config.Volumes {
		if v = path.Clean(v); path.IsAbs(v) && v != "/" && !seen[v] {
			declared = append(declared, v)
		}
	}
	sort.Strings(declared) // the same number for the same volume at every try
	for _, v := range declared {
		sm, err := r.volume(ctx, j, &skepv1.Mount{}, "", v, root, &anon)
		if err != nil {
			return nil, err
		}
		out = append(out, sm)
	}
	return out, nil
}

func bind(m *skepv1.Mount, source, target string) (specs.Mount, error) {
	if !filepath.IsAbs(source) {
		return specs.Mount{}, fmt.Errorf("invalid bind mount source, must be an absolute path: %s", source)
	}
	if _, err := os.Stat(source); err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			return specs.Mount{}, fmt.Errorf("bind mount source %s: %w", source, err)
		}
		if !m.GetBindCreateSrc() {
			return specs.Mount{}, fmt.Errorf(`invalid mount config for type "bind": bind source path does not exist: %s`, source)
		}
		if err := os.MkdirAll(source, 0o755); err != nil {
			return specs.Mount{}, fmt.Errorf("create bind mount source %s: %w", source, err)
		}
	}
	propagation := m.GetBindPropagation()
	switch propagation {
	case "":
		propagation = "rprivate"
	case "rprivate", "private", "rshared", "shared", "rslave", "slave":
	default:
		return specs.Mount{}, fmt.Errorf("invalid bind propagation %q", propagation)
	}
	kind := "rbind"
	var opts []string
	switch m.GetBindRecursive() {
	case "", "enabled":
		if m.GetReadOnly() {
			// The kernel makes the mounts below read-only too (5.12). What shared propagation brings later is as it comes.
			opts = []string{"ro", "rro"}
		}
	case "disabled":
		kind = "bind"
		if m.GetReadOnly() {
			opts = []string{"ro"}
		}
	case "writable":
		if m.GetReadOnly() {
			opts = []string{"ro"}
		}
	case "readonly":
		if !m.GetReadOnly() || propagation != "rprivate" {
			return specs.Mount{}, errors.New("bind-recursive=readonly needs readonly and bind-propagation=rprivate")
		}
		opts = []string{"ro", "rro"}
	default:
		return specs.Mount{}, fmt.Errorf("invalid bind-recursive %q", m.GetBindRecursive())
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: append([]string{kind, propagation}, opts...)}, nil
}

func tmpfs(m *skepv1.Mount, source, target string) (specs.Mount, error) {
	if source != "" {
		return specs.Mount{}, errors.New("invalid tmpfs source, source must be empty")
	}
	mode := m.GetTmpfsMode()
	if mode == 0 {
		mode = 0o1777
	}
	opts := []string{"noexec", "nosuid", "nodev", "rprivate", fmt.Sprintf("mode=%o", mode)}
	if m.GetTmpfsSize() > 0 {
		opts = append(opts, fmt.Sprintf("size=%d", m.GetTmpfsSize()))
	}
	if m.GetReadOnly() {
		opts = append(opts, "ro")
	}
	return specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: opts}, nil
}

// attachVolumes has the volumes of a task's mounts mounted on this host, and returns where, by the index of the mount. Those
// without a name come with the container.
func (r *Runtime) attachVolumes(ctx context.Context, j *task.Job, names ocispec.Names, progress func(string)) ([]string, error) {
	out := make([]string, len(j.Container().GetMounts()))
	for i, m := range j.Container().GetMounts() {
		if m.GetType() != skepv1.Mount_TYPE_VOLUME || m.GetSource() == "" {
			continue
		}
		w, err := wantedVolume(m, names)
		if err != nil {
			return nil, err
		}
		if w.Driver != "" || len(w.Options) > 0 {
			progress("mounting volume " + w.Name)
		}
		if out[i], err = r.cfg.Volumes.Attach(ctx, j.ID(), w); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// wantedVolume is the volume a mount names, its templates filled in.
func wantedVolume(m *skepv1.Mount, names ocispec.Names) (volume.Wanted, error) {
	w := volume.Wanted{Driver: m.GetVolumeDriver(), Options: map[string]string{}, Labels: map[string]string{}}
	var err error
	if w.Name, err = names.Expand(m.GetSource()); err != nil {
		return w, fmt.Errorf("mount source: %w", err)
	}
	if filepath.IsAbs(w.Name) {
		return w, fmt.Errorf("invalid volume mount source, must not be an absolute path: %s", w.Name)
	}
	for _, c := range []struct{ from, to map[string]string }{{m.GetVolumeOpts(), w.Options}, {m.GetVolumeLabels(), w.Labels}} {
		for k, v := range c.from {
			if c.to[k], err = names.Expand(v); err != nil {
				return w, fmt.Errorf("volume %s: %s: %w", w.Name, k, err)
			}
		}
	}
	return w, nil
}

// VolumesOf are the named volumes that a task's mounts name. What cannot be filled in names none.
func (r *Runtime) VolumesOf(j *task.Job) []volume.Key {
	names := r.namesOf(j)
	var out []volume.Key
	for _, m := range j.Container().GetMounts() {
		if m.GetType() != skepv1.Mount_TYPE_VOLUME || m.GetSource() == "" {
			continue
		}
		if w, err := wantedVolume(m, names); err == nil {
			out = append(out, volume.Key{Driver: cmp.Or(w.Driver, volume.Local), Name: w.Name})
		}
	}
	return out
}

// TaskName is what people call a task.
func (r *Runtime) TaskName(j *task.Job) string { return r.namesOf(j).Task.Name }

func (r *Runtime) namesOf(j *task.Job) ocispec.Names {
	return ocispec.NamesOf(r.cfg.NodeID, r.cfg.Hostname, runtime.GOARCH, j.Record, j.Revision.GetSpec())
}

// volume is the mount of a volume. data is where it is, "" for one without a name, the anon-th of its task.
func (r *Runtime) volume(ctx context.Context, j *task.Job, m *skepv1.Mount, data, target string, root []mount.Mount, anon *int) (specs.Mount, error) {
	var fill volume.Fill
	if !m.GetVolumeNocopy() && m.GetVolumeSubpath() == "" {
		// The root is mounted only for the one use that needs it: a volume's first.
		fill = func(dir string) error {
			return withRoot(ctx, root, func(rootfs string) error { return volume.CopyUp(rootfs, target)(dir) })
		}
	}
	var err error
	if data == "" {
		data, err = r.cfg.Volumes.Anonymous(ctx, j.ID(), *anon, fill)
		*anon++
	} else {
		var w volume.Wanted
		if w, err = wantedVolume(m, r.namesOf(j)); err == nil {
			err = r.cfg.Volumes.Fill(ctx, w.Driver, w.Name, data, fill)
		}
	}
	if err != nil {
		return specs.Mount{}, err
	}
	if sub := m.GetVolumeSubpath(); sub != "" {
		at := r.subpaths.next(j.ID())
		if err := volume.BindSubpath(data, sub, at); err != nil {
			return specs.Mount{}, err
		}
		data = at
	}
	opts := []string{"rbind", "rprivate"}
	if m.GetReadOnly() {
		opts = append(opts, "ro", "rro")
	}
	return specs.Mount{Destination: target, Type: "bind", Source: data, Options: opts}, nil
}
