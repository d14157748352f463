package compose

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/compose-spec/compose-go/v2/types"

	skepv1 "skep.dev/proto/skep/v1"
)

// mounts reads volumes and tmpfs.
func (s *service) mounts() {
	c := s.out.Task.Container
	taken := map[string]bool{}
	add := func(at []string, m *skepv1.Mount) {
		if m == nil {
			return
		}
		if taken[m.Target] {
			s.wrongAt(at, "something else is mounted at %s already: remove one of them", m.Target)
			return
		}
		taken[m.Target] = true
		c.Mounts = append(c.Mounts, m)
	}
	for i, v := range s.in.Volumes {
		at := s.at("volumes", itoa(i))
		add(at, s.mount(at, v))
	}
	for i, t := range s.in.Tmpfs {
		at := s.at("tmpfs", itoa(i))
		add(at, s.tmpfs(at, t))
	}
	if s.in.ShmSize != 0 {
		add(s.at("shm_size"), &skepv1.Mount{Type: skepv1.Mount_TYPE_TMPFS, Target: "/dev/shm", TmpfsSize: int64(s.in.ShmSize)})
	}
	slices.SortFunc(c.Mounts, func(a, b *skepv1.Mount) int { return strings.Compare(a.Target, b.Target) })
}

func (s *service) mount(at []string, v types.ServiceVolumeConfig) *skepv1.Mount {
	m := &skepv1.Mount{Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly}
	if m.Target == "" {
		s.wrongAt(at, "it has no target: say where in the container it is mounted")
		return nil
	}
	if m.Target = path.Clean(m.Target); !path.IsAbs(m.Target) {
		s.wrongAt(at, "the target %s is no absolute path", m.Target)
		return nil
	}
	ext := s.mountExtension(at, v.Extensions)
	switch v.Type {
	case "volume":
		if !s.volume(at, m, v) {
			return nil
		}
	case "bind":
		s.bind(at, m, v, ext)
	case "tmpfs":
		m.Type, m.Source = skepv1.Mount_TYPE_TMPFS, ""
		if v.Tmpfs != nil {
			m.TmpfsSize, m.TmpfsMode = int64(v.Tmpfs.Size), v.Tmpfs.Mode
			s.decimalMode(append(at, "tmpfs", "mode"), v.Tmpfs.Mode)
		}
	case "image":
		m.Type = skepv1.Mount_TYPE_IMAGE
		if v.Image != nil {
			m.ImageSubpath = v.Image.SubPath
		}
	default:
		s.unsupported(at, "mounts of type %s are not made: use volume, bind, tmpfs or image", v.Type)
		return nil
	}
	if ext.CreateSource || ext.Wait {
		if m.Type != skepv1.Mount_TYPE_BIND {
			s.wrongAt(append(at, extensionKey), "create_source and wait are for mounts of type bind")
		}
	}
	return m
}

func (s *service) bind(at []string, m *skepv1.Mount, v types.ServiceVolumeConfig, ext mountExtension) {
	m.Type = skepv1.Mount_TYPE_BIND
	m.BindCreateSrc, m.BindWait = ext.CreateSource, ext.Wait
	if v.Bind != nil {
		m.BindPropagation, m.BindRecursive = v.Bind.Propagation, v.Bind.Recursive
	}
	if len(m.Source) > 1 && m.Source[1] == ':' {
		s.wrongAt(at, "%s is a path of Windows, or a volume whose name has one letter: give the volume a longer name", m.Source)
		return
	}
	if parts, node, _ := deepest(s.docs, append(at, "bind", "create_host_path")); parts == len(at)+2 {
		s.note(node, joinPath(append(at, "bind", "create_host_path")), "it has no effect: the source must exist on the node; x-skep: {create_source: true} beside it makes it")
	}
	for _, socket := range []string{"/var/run/docker.sock", "/run/docker.sock"} {
		if m.Source == socket {
			s.noteAt(at, "a program that asks the Docker socket finds an engine only where the node runs one, and never this cluster: use skep's own gateway")
		}
	}
	if s.relative(at) {
		s.noteAt(at, "a relative path: every node that a task may run on must have %s; a config travels with the stack", m.Source)
	}
}

// relative: the source is written as a path below the files.
func (s *service) relative(at []string) bool {
	for _, d := range s.docs {
		parts, _, v := d.locate(at)
		if parts != len(at) {
			continue
		}
		text := target(v).Value
		if _, src := child(v, "source"); src != nil {
			text = target(src).Value
		}
		return strings.HasPrefix(text, ".")
	}
	return false
}

func (s *service) volume(at []string, m *skepv1.Mount, v types.ServiceVolumeConfig) bool {
	m.Type = skepv1.Mount_TYPE_VOLUME
	if v.Volume != nil {
		m.VolumeNocopy, m.VolumeSubpath = v.Volume.NoCopy, v.Volume.Subpath
	}
	if m.Source == "" {
		if v.Volume != nil && len(v.Volume.Labels) > 0 {
			m.VolumeLabels = s.labels(v.Volume.Labels)
		}
		return true
	}
	decl, ok := s.project.Volumes[m.Source]
	if !ok {
		hint := nearest(m.Source, slices.Collect(maps.Keys(s.project.Volumes)))
		if strings.Contains(m.Source, "/") {
			hint = ": if a path is meant, begin it with ./"
		}
		s.wrongAt(at, "there is no volume %s at the top of the files%s", m.Source, hint)
		return false
	}
	key := m.Source
	ext := s.volumeExtension([]string{"volumes", key}, decl.Extensions)
	m.VolumeSharing = ext.Sharing
	if decl.External {
		m.Source = externalName(key, decl.Name)
	} else {
		m.Source = s.ownName(key, decl.Name)
		m.VolumeDriver = decl.Driver
		if len(decl.DriverOpts) > 0 {
			m.VolumeOpts = maps.Clone(map[string]string(decl.DriverOpts))
		}
		labels := maps.Clone(map[string]string(decl.Labels))
		if v.Volume != nil {
			for k, val := range v.Volume.Labels {
				if labels == nil {
					labels = map[string]string{}
				}
				labels[k] = val
			}
		}
		m.VolumeLabels = s.labels(labels)
	}
	if s.volumes == nil {
		s.volumes = map[string]string{}
	}
	s.volumes[key] = m.Source
	return true
}

// tmpfs reads one item of the service's tmpfs, path[:options].
func (s *service) tmpfs(at []string, text string) *skepv1.Mount {
	where, options, _ := strings.Cut(text, ":")
	m := &skepv1.Mount{Type: skepv1.Mount_TYPE_TMPFS, Target: path.Clean(where)}
	for _, o := range strings.Split(options, ",") {
		key, value, _ := strings.Cut(o, "=")
		var err error
		switch key {
		case "", "rw", "nosuid", "nodev", "noexec": // the three are so anyway
		case "ro":
			m.ReadOnly = true
		case "size":
			m.TmpfsSize, err = units.RAMInBytes(value)
		case "mode":
			var n uint64
			n, err = strconv.ParseUint(value, 8, 32)
			m.TmpfsMode = uint32(n)
		default:
			s.unsupported(at, "tmpfs has no option %s: use size, mode, ro", key)
		}
		if err != nil {
			s.wrongAt(at, "the option %s has no such value: write size=64m or mode=1777", key)
		}
	}
	return m
}

// finishVolumes lists the volumes that services use, and those that none uses.
func (s *stack) finishVolumes() {
	for _, key := range s.project.VolumeNames() {
		decl := s.project.Volumes[key]
		at := []string{"volumes", key}
		name, used := s.volumes[key]
		if !used {
			s.noteAt(at, "no service uses it, so it is not made")
			continue
		}
		if decl.External && (decl.Driver != "" || len(decl.DriverOpts) > 0 || len(decl.Labels) > 0) {
			s.wrongAt(at, "it is external and has a driver or labels: remove them, or external")
		}
		s.out.Spec.Volumes = append(s.out.Spec.Volumes, &skepv1.StackVolume{Name: name, Driver: decl.Driver, External: bool(decl.External)})
	}
	slices.SortFunc(s.out.Spec.Volumes, func(a, b *skepv1.StackVolume) int { return strings.Compare(a.Name, b.Name) })
	s.out.Spec.Volumes = slices.CompactFunc(s.out.Spec.Volumes, func(a, b *skepv1.StackVolume) bool { return a.Name == b.Name })
}

// deepest is locate over all documents: the most parts of a path that one of them has, and where.
func deepest(docs []*document, path []string) (parts int, at Where, ok bool) {
	for _, d := range docs {
		if n, node, _ := d.locate(path); n >= parts {
			parts, at, ok = n, d.at(node), true
		}
	}
	return parts, at, ok
}
