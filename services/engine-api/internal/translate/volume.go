package translate

import (
	"time"

	"github.com/moby/moby/api/types/volume"

	skepv1 "skep.dev/proto/skep/v1"
)

// VolumeToDocker is a volume of a node. Passwords among its options are hidden by the node already.
func VolumeToDocker(v *skepv1.Volume) volume.Volume {
	out := volume.Volume{
		Name: v.GetName(), Driver: v.GetDriver(), Scope: v.GetScope(), Mountpoint: v.GetMountpoint(), Labels: filled(v.GetLabels()), Options: filled(v.GetOptions()),
		CreatedAt: never, // where the driver does not say: some clients fail on a list with a volume that has no time
	}
	if v.GetCreatedAt() != nil {
		out.CreatedAt = v.GetCreatedAt().AsTime().UTC().Format(time.RFC3339)
	}
	for k, value := range v.GetStatus() {
		if out.Status == nil {
			out.Status = map[string]any{}
		}
		out.Status[k] = value
	}
	return out
}
