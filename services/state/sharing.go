package state

import (
	"fmt"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// single are the mounts of a spec whose volumes only one task, or the tasks of one node, may have.
func (s *Service) single(want *skepv1.ServiceSpec) []*skepv1.Mount {
	var out []*skepv1.Mount
	for _, m := range want.GetTask().GetContainer().GetMounts() {
		if spec.MayBeExclusive(m) && (m.GetVolumeSharing() != "" || s.ix.GlobalVolumes(spec.VolumeDriver(m.GetVolumeDriver()))) {
			out = append(out, m)
		}
	}
	return out
}

// ofTask: each task has a volume of its own by the mount's name.
func ofTask(m *skepv1.Mount) bool {
	return strings.Contains(m.GetSource(), "{{") && strings.Contains(m.GetSource(), ".Task.")
}

// maySpread refuses more tasks at once than may have a volume.
func (s *Service) maySpread(want *skepv1.ServiceSpec, canary uint64) error {
	for _, m := range s.single(want) {
		name := spec.VolumeTitle(m.GetVolumeDriver(), m.GetSource())
		if ofTask(m) {
			continue
		}
		if canary > 0 {
			return fault.Invalid("volume %s has one writer, so tasks of two revisions cannot run beside one another: update without --canary, or give each task a volume of its own with {{.Task.Slot}} in its name", name)
		}
		if m.GetVolumeSharing() != spec.SharingNone {
			continue
		}
		if n := tasksOf(want); n > 1 {
			return fault.Invalid("volume %s is for one task (volume-sharing=none), and the service would have %d: give each a volume of its own with {{.Task.Slot}} in its name, or let the tasks of one node share it with volume-sharing=onewriter", name, n)
		}
		if want.GetMode().GetGlobal() != nil || want.GetMode().GetGlobalJob() != nil {
			if !strings.Contains(m.GetSource(), ".Node.") {
				return fault.Invalid("volume %s is for one task (volume-sharing=none), and a global service has one on every node: give each a volume of its own with {{.Node.Hostname}} in its name", name)
			}
		}
	}
	return nil
}

// tasksOf is how many tasks of a replicated service, or job, run at once.
func tasksOf(want *skepv1.ServiceSpec) uint64 {
	if j := want.GetMode().GetReplicatedJob(); j != nil {
		if n := j.GetMaxConcurrent(); n > 0 {
			return min(n, j.GetTotalCompletions())
		}
		return j.GetTotalCompletions()
	}
	return want.GetMode().GetReplicated().GetReplicas()
}

// spreadWarnings say what a volume with a single writer makes of what was asked for.
func (s *Service) spreadWarnings(want *skepv1.ServiceSpec) []string {
	var out []string
	for _, m := range s.single(want) {
		name := spec.VolumeTitle(m.GetVolumeDriver(), m.GetSource())
		if want.GetUpdate().GetOrder() == skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST {
			out = append(out, fmt.Sprintf("volume %s has one writer: tasks are updated stop-first, whatever the update order says", name))
		}
		if (want.GetMode().GetGlobal() != nil || want.GetMode().GetGlobalJob() != nil) && !strings.Contains(m.GetSource(), "{{") {
			out = append(out, fmt.Sprintf("volume %s has one writer: of this global service the task of one node runs, and the others wait", name))
		}
	}
	return out
}
