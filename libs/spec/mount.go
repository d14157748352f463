package spec

import (
	"maps"
	"path"
	"slices"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/libs/taskname"
	skepv1 "skep.dev/proto/skep/v1"
)

func validateMounts(c *skepv1.ContainerSpec) error {
	seen := map[string]bool{}
	for _, m := range c.Mounts {
		if m.Target == "" {
			return fault.Invalid("mount target is required: use target=/path")
		}
		if !strings.HasPrefix(m.Target, "/") {
			return fault.Invalid("invalid mount target, must be an absolute path: %s", m.Target)
		}
		clean := path.Clean(m.Target)
		if clean == "/" {
			return fault.Invalid("invalid mount target, must not be the root directory: %s", m.Target)
		}
		if seen[clean] {
			return fault.Invalid("ContainerSpec: duplicate mount point: %s", m.Target)
		}
		seen[clean] = true
		if err := validateMount(m); err != nil {
			return err
		}
	}
	return nil
}

func validateMount(m *skepv1.Mount) error {
	abs := strings.HasPrefix(m.Source, "/")
	filled := strings.HasPrefix(m.Source, "{{") // validateTemplates sees what it comes to
	switch m.Type {
	case skepv1.Mount_TYPE_VOLUME:
		if abs {
			return fault.Invalid("invalid volume mount source, must not be an absolute path: %s", m.Source)
		}
		// validateTemplates looks at what a template comes to.
		if name := m.Source; !strings.Contains(name, "{{") && (strings.ContainsAny(name, "/ \t\n") || name == "." || name == "..") {
			return fault.Invalid("invalid volume name %q: use letters, digits, '.', '_' and '-'", m.Source)
		}
		if _, err := taskname.Plain(m.Source); err != nil {
			return fault.Invalid("invalid volume name: %v", err)
		}
		switch m.VolumeSharing {
		case "", "none", "onewriter", "all":
		default:
			return fault.Invalid("invalid volume-sharing %q: use none (one task), onewriter (the tasks of one node) or all", m.VolumeSharing)
		}
		local := m.VolumeDriver == "" || m.VolumeDriver == "local"
		if m.Source == "" && (!local || len(m.VolumeOpts) > 0) {
			return fault.Invalid("mount of %s: volume-driver and volume-opt belong to a volume with a name: use source=NAME", m.Target)
		}
		if local {
			if err := ValidateLocalVolume(m.VolumeOpts); err != nil {
				return err
			}
		}
		if err := relative("volume-subpath", m.VolumeSubpath); err != nil {
			return err
		}
	case skepv1.Mount_TYPE_BIND:
		if m.Source == "" {
			return fault.Invalid("bind mount of %s needs a source: use source=/path", m.Target)
		}
		if !abs && !filled {
			return fault.Invalid("invalid bind mount source, must be an absolute path: %s", m.Source)
		}
		if m.BindWait && m.BindCreateSrc {
			return fault.Invalid("bind-wait waits until something is mounted at %s, and bind-create-src does without: use one of them", m.Source)
		}
	case skepv1.Mount_TYPE_TMPFS:
		if m.Source != "" {
			return fault.Invalid("invalid tmpfs source, source must be empty")
		}
		if m.TmpfsSize < 0 {
			return fault.Invalid("invalid tmpfs-size %d: use a size, or 0 for no limit", m.TmpfsSize)
		}
		if m.TmpfsMode > 0o7777 {
			return fault.Invalid("invalid tmpfs-mode %o: use an octal mode such as 1777", m.TmpfsMode)
		}
	case skepv1.Mount_TYPE_CLUSTER:
		return fault.Invalid("mount of %s: type cluster (CSI volumes) is not supported, use type=volume with the volume-driver of a plug-in", m.Target)
	case skepv1.Mount_TYPE_IMAGE:
		return fault.Invalid("mount of %s: type image is not supported, put what the task needs into its own image or into a volume", m.Target)
	case skepv1.Mount_TYPE_NPIPE:
		return fault.Invalid("mount type npipe exists on Windows only: use volume, bind or tmpfs")
	default:
		return fault.Invalid("invalid mount type %d: use volume, bind or tmpfs", m.Type)
	}
	return validateMountOptions(m)
}

func validateMountOptions(m *skepv1.Mount) error {
	typ := Word(m.Type)
	refuse := func(option, wants string, set bool) error {
		if set {
			return fault.Invalid("cannot mix '%s' with mount type '%s': it belongs to type %s", option, typ, wants)
		}
		return nil
	}
	for _, r := range []struct {
		option, wants string
		set           bool
	}{
		{"bind-propagation", "bind", m.BindPropagation != ""},
		{"bind-recursive", "bind", m.BindRecursive != ""},
		{"bind-create-src", "bind", m.BindCreateSrc},
		{"bind-wait", "bind", m.BindWait},
		{"volume-driver", "volume", m.VolumeDriver != ""},
		{"volume-label", "volume", len(m.VolumeLabels) > 0},
		{"volume-opt", "volume", len(m.VolumeOpts) > 0},
		{"volume-nocopy", "volume", m.VolumeNocopy},
		{"volume-subpath", "volume", m.VolumeSubpath != ""},
		{"volume-sharing", "volume", m.VolumeSharing != ""},
		{"image-subpath", "image", m.ImageSubpath != ""},
		{"tmpfs-size", "tmpfs", m.TmpfsSize != 0},
		{"tmpfs-mode", "tmpfs", m.TmpfsMode != 0},
	} {
		if r.wants == typ {
			continue
		}
		if err := refuse(r.option, r.wants, r.set); err != nil {
			return err
		}
	}
	switch m.BindPropagation {
	case "", "rprivate", "private", "rshared", "shared", "rslave", "slave":
	default:
		return fault.Invalid("invalid bind-propagation %q: use rprivate, private, rshared, shared, rslave or slave", m.BindPropagation)
	}
	switch m.BindRecursive {
	case "", "enabled", "disabled":
	case "writable", "readonly":
		if !m.ReadOnly {
			return fault.Invalid("option 'bind-recursive=%s' requires 'readonly' to be specified in conjunction", m.BindRecursive)
		}
	default:
		return fault.Invalid("invalid bind-recursive %q: use enabled, disabled, writable or readonly", m.BindRecursive)
	}
	switch m.Consistency {
	case "", "default", "consistent", "cached", "delegated":
	default:
		return fault.Invalid("invalid consistency %q: use consistent, cached or delegated", m.Consistency)
	}
	return ValidateLabels(m.VolumeLabels)
}

// ValidateLocalVolume refuses options that the local volume driver does not have, and those that say half of what is to be
// mounted. Whether it can be mounted, the node says.
func ValidateLocalVolume(opts map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(opts)) {
		switch k {
		case "type", "device", "o":
		case "size":
			return fault.Invalid("invalid volume option size: a directory of the node has no size of its own; use type=tmpfs,device=tmpfs,o=size=… or a file system with one")
		default:
			return fault.Invalid("invalid volume option %q: the local driver has type, device and o, as mount(8) takes them", k)
		}
	}
	if len(opts) == 0 {
		return nil
	}
	if opts["device"] == "" {
		return fault.Invalid("missing volume option device: say what is to be mounted, such as device=tmpfs, device=/dev/sdb1 or device=:/export")
	}
	if opts["type"] == "" {
		for _, o := range strings.Split(opts["o"], ",") {
			if o = strings.TrimSpace(o); o == "bind" || o == "rbind" {
				return nil
			}
		}
		return fault.Invalid("missing volume option type: say how %s is to be mounted, such as type=nfs, type=ext4 or o=bind", opts["device"])
	}
	return nil
}

func relative(option, p string) error {
	if p == "" {
		return nil
	}
	if strings.HasPrefix(p, "/") || strings.HasPrefix(path.Clean(p), "..") {
		return fault.Invalid("invalid %s %q: use a path below the root of the mount", option, p)
	}
	return nil
}
