package compose

import (
	"maps"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"skep.dev/libs/spec"
)

// hints notes what is allowed and seldom meant.
func (s *service) hints() {
	if ref, err := reference.ParseNormalizedNamed(s.in.Image); err == nil {
		_, digest := ref.(reference.Digested)
		tag := ""
		if t, ok := ref.(reference.Tagged); ok {
			tag = t.Tag()
		}
		if !digest && (tag == "" || tag == "latest") {
			s.noteAt(s.at("image"), "the image has no tag but latest: the same file can deploy another image tomorrow, name a version")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.in.Labels)) {
		if strings.HasPrefix(k, "traefik.") && len(s.deploy().Labels) == 0 {
			s.noteAt(s.at("labels"), "Traefik reads a service's labels, not its containers': did you mean deploy.labels?")
			break
		}
	}
	s.movingVolume()
}

// movingVolume notes a local volume of a task that may move to a node where that volume is empty.
func (s *service) movingVolume() {
	if spec.Mode(s.out) == "global" || spec.Mode(s.out) == "global-job" || s.ext.VolumePin || len(s.out.Task.Placement.Constraints) > 0 {
		return
	}
	for i, v := range s.in.Volumes {
		decl, ok := s.project.Volumes[v.Source]
		local := decl.Driver == "" || decl.Driver == "local"
		if v.Type != "volume" || v.Source == "" || !ok || bool(decl.External) || !local || shared(decl.DriverOpts) {
			continue
		}
		s.noteAt(s.at("volumes", itoa(i)), "the volume %s is on one node, and a task that moves finds an empty one: pin the task (x-skep: {volume_pin: true}), constrain it, or use shared storage", v.Source)
	}
}

// shared: the options mount a file system of another machine.
func shared(options map[string]string) bool {
	switch options["type"] {
	case "", "none", "tmpfs", "btrfs", "ext4", "xfs":
		return false
	}
	return true
}
