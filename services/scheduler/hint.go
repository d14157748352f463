package scheduler

import (
	"fmt"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// nameHint is for a service none of whose tasks has passed its checks: if these need the names of one another, no time
// will help, for names lead to tasks that have passed.
func nameHint(sp *skepv1.ServiceSpec) []string {
	alone := sp.GetMode().GetReplicated() != nil && sp.GetMode().GetReplicated().GetReplicas() < 2
	if spec.IsJob(sp) || alone || len(spec.Overlays(sp)) == 0 || sp.GetEndpoint().GetDnsStarting() {
		return nil
	}
	return []string{fmt.Sprintf("None of the tasks has passed its checks, and tasks.%s lists only those that have. If the checks need the members' names, "+
		"have it list tasks from their start: skep service update --dns-starting %s", sp.GetName(), sp.GetName())}
}
