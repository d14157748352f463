package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// binds looks for tasks whose bind mounts are not what their node has there any more, as after a disk was mounted late.
func (d *exam) binds() {
	for _, s := range d.settled.services {
		if d.changing(s) {
			continue
		}
		var stale []string
		for _, t := range d.After.Tasks {
			if t.ServiceId != s.GetMeta().GetId() || d.settled.running[t.GetMeta().GetId()] == nil || len(t.GetStatus().GetStaleBinds()) == 0 {
				continue
			}
			stale = append(stale, fmt.Sprintf("%s on node %s (%s)", t.Name, d.on(t), strings.Join(t.Status.StaleBinds, ", ")))
		}
		if len(stale) == 0 {
			continue
		}
		slices.Sort(stale)
		name := s.GetSpec().GetName()
		d.add(Warn, "service "+name, "%s with another file system than its node has at the source of a bind mount, which was mounted or replaced after the start: %s; "+
			"move what was written there in the meantime, then `skep service update --force %s`; bind-wait makes tasks wait for a mount", runs(len(stale)), list(stale), name)
	}
}
