package translate

import (
	"os"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// mountTypes: Docker's own default is bind.
var mountTypes = words[skepv1.Mount_Type]{
	"": skepv1.Mount_TYPE_BIND, "bind": skepv1.Mount_TYPE_BIND, "volume": skepv1.Mount_TYPE_VOLUME, "tmpfs": skepv1.Mount_TYPE_TMPFS,
	"cluster": skepv1.Mount_TYPE_CLUSTER, "image": skepv1.Mount_TYPE_IMAGE, "npipe": skepv1.Mount_TYPE_NPIPE,
}

func mountFromDocker(m mount.Mount) (*skepv1.Mount, error) {
	t, ok := mountTypes[strings.ToLower(string(m.Type))]
	if !ok {
		return nil, fault.Invalid("invalid MountType: %q: use volume, bind or tmpfs", m.Type)
	}
	out := &skepv1.Mount{Type: t, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly, Consistency: string(m.Consistency)}
	if b := m.BindOptions; b != nil {
		var err error
		out.BindPropagation, out.BindCreateSrc = string(b.Propagation), b.CreateMountpoint
		if out.BindRecursive, err = recursionFromDocker(m.Target, b); err != nil {
			return nil, err
		}
	}
	if v := m.VolumeOptions; v != nil {
		out.VolumeNocopy, out.VolumeLabels, out.VolumeSubpath = v.NoCopy, v.Labels, v.Subpath
		if d := v.DriverConfig; d != nil {
			out.VolumeDriver, out.VolumeOpts = d.Name, d.Options
		}
	}
	if i := m.ImageOptions; i != nil {
		out.ImageSubpath = i.Subpath
	}
	if o := m.TmpfsOptions; o != nil {
		if len(o.Options) > 0 {
			return nil, notKept("TmpfsOptions.Options of the mount at "+m.Target, "a tmpfs has a size and a mode, leave the others out")
		}
		out.TmpfsSize, out.TmpfsMode = o.SizeBytes, uint32(o.Mode)
	}
	if m.ClusterOptions != nil && t != skepv1.Mount_TYPE_CLUSTER {
		return nil, fault.Invalid("cannot mix 'ClusterOptions' with mount type '%s' at %s: it belongs to type cluster", mountTypes.of(t), m.Target)
	}
	return out, nil
}

// recursionFromDocker is one word for three truths, of which no two go together.
func recursionFromDocker(target string, b *mount.BindOptions) (string, error) {
	var given []string
	word := ""
	for _, o := range []struct {
		name, word string
		set        bool
	}{{"NonRecursive", "disabled", b.NonRecursive}, {"ReadOnlyNonRecursive", "writable", b.ReadOnlyNonRecursive},
		{"ReadOnlyForceRecursive", "readonly", b.ReadOnlyForceRecursive}} {
		if o.set {
			given, word = append(given, o.name), o.word
		}
	}
	if len(given) > 1 {
		return "", fault.Invalid("BindOptions of the mount at %s has %s, which exclude one another: use one of them", target, strings.Join(given, " and "))
	}
	return word, nil
}

func mountToDocker(m *skepv1.Mount) mount.Mount {
	out := mount.Mount{
		Type: mount.Type(mountTypes.of(m.GetType())), Source: m.GetSource(), Target: m.GetTarget(), ReadOnly: m.GetReadOnly(),
		Consistency: mount.Consistency(m.GetConsistency()),
	}
	recursive := m.GetBindRecursive()
	if recursive == "enabled" { // the default
		recursive = ""
	}
	if m.GetBindPropagation() != "" || recursive != "" || m.GetBindCreateSrc() {
		out.BindOptions = &mount.BindOptions{
			Propagation: mount.Propagation(m.GetBindPropagation()), CreateMountpoint: m.GetBindCreateSrc(), NonRecursive: recursive == "disabled",
			ReadOnlyNonRecursive: recursive == "writable", ReadOnlyForceRecursive: recursive == "readonly",
		}
	}
	driver := m.GetVolumeDriver() != "" || len(m.GetVolumeOpts()) > 0
	if m.GetVolumeNocopy() || len(m.GetVolumeLabels()) > 0 || m.GetVolumeSubpath() != "" || driver {
		out.VolumeOptions = &mount.VolumeOptions{NoCopy: m.GetVolumeNocopy(), Labels: m.GetVolumeLabels(), Subpath: m.GetVolumeSubpath()}
		if driver {
			out.VolumeOptions.DriverConfig = &mount.Driver{Name: m.GetVolumeDriver(), Options: m.GetVolumeOpts()}
		}
	}
	if m.GetImageSubpath() != "" {
		out.ImageOptions = &mount.ImageOptions{Subpath: m.GetImageSubpath()}
	}
	if m.GetTmpfsSize() != 0 || m.GetTmpfsMode() != 0 {
		out.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: m.GetTmpfsSize(), Mode: os.FileMode(m.GetTmpfsMode())}
	}
	return out
}
