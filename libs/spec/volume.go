package spec

import (
	"slices"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"
)

// Who may mount a volume for writing at once (Mount.volume_sharing).
const (
	SharingNone      = "none"
	SharingOneWriter = "onewriter"
	SharingAll       = "all"
)

// LocalDriver is the driver of volumes that are directories of a node.
const LocalDriver = "local"

// VolumeDriver is a driver's name as it is compared: none is the local one, and :latest says nothing.
func VolumeDriver(name string) string {
	if name = strings.TrimSuffix(name, ":latest"); name == "" {
		return LocalDriver
	}
	return name
}

// VolumeTitle is a volume for people: driver/name, the name alone of a local one.
func VolumeTitle(driver, name string) string {
	if d := VolumeDriver(driver); d != LocalDriver {
		return d + "/" + name
	}
	return name
}

// MayBeExclusive reports whether a mount is of a named volume that only one task, or the tasks of one node, may have: it says
// so, or it writes and its driver is a plug-in, which depends on whether that one's volumes are the same everywhere.
func MayBeExclusive(m *skepv1.Mount) bool {
	if m.GetType() != skepv1.Mount_TYPE_VOLUME || m.GetSource() == "" {
		return false
	}
	switch m.GetVolumeSharing() {
	case SharingNone, SharingOneWriter:
		return true
	case "":
		return !m.GetReadOnly() && VolumeDriver(m.GetVolumeDriver()) != LocalDriver
	}
	return false
}

// shared are the file systems that are the same wherever they are mounted.
var shared = []string{"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "9p"}

// NodeLocal reports whether a mount is of a named volume whose data one node has, as far as the spec tells: of a plug-in it
// depends on its scope.
func NodeLocal(m *skepv1.Mount) bool {
	return m.GetType() == skepv1.Mount_TYPE_VOLUME && m.GetSource() != "" && !slices.Contains(shared, m.GetVolumeOpts()["type"])
}
