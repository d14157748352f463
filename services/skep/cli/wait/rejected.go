package wait

import (
	"context"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// hopelessAfter rejections in a row a wait ends, if every node that suits has rejected the task; and enoughAfter in any
	// case: what is tried less and less often may take for ever to find the one node that has what all others lack.
	hopelessAfter = 3
	enoughAfter   = 6
)

// rejected is the error of a service whose missing tasks nodes reject again and again: what they lack somebody has to
// bring. The cluster goes on trying.
func (f *follower) rejected(ctx context.Context, api API, p *Progress, busy bool) error {
	var worst *Slot
	for i := range p.Slots {
		s := &p.Slots[i]
		switch {
		case s.Done:
			continue
		case !s.Rejected || s.Failures < hopelessAfter:
			return nil
		case worst == nil || s.Failures > worst.Failures:
			worst = s
		}
	}
	if worst == nil || busy || !p.Job && len(p.Slots) < min(p.Want, maxBars) {
		return nil
	}
	if worst.Failures < enoughAfter && !p.Global {
		r, err := api.Explain(ctx, f.o.Service.GetMeta().GetId())
		if err != nil || untried(r.GetPlacing()) {
			return nil
		}
	}
	what := "service"
	if p.Job {
		what = "job"
	}
	return end(ErrGaveUp, "%s %s does not converge: %d of %d tasks are as asked\n%s: rejected %d times in a row: %s\nIt is tried again, less and less often, until it works; `skep service explain %s` shows when. Another image or other options are tried at once: skep service update",
		what, f.name, p.Done, p.Want, worst.Name, worst.Failures, orElse(worst.Reason, "its node does not say why"), f.name)
}

// untried: a node suits that has not rejected the service's tasks of late.
func untried(p *skepv1.Placing) bool {
	for _, c := range p.GetCandidates() {
		if c.Failures == 0 {
			return true
		}
	}
	return false
}
