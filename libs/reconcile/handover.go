package reconcile

// handover is a task that is prepared, and those of its unit that are to stop for it.
type handover struct {
	to   *Task
	from []*Task
}

func (p *planner) handOver(h handover) {
	for _, o := range h.from {
		p.stop(o, "replaced by "+h.to.ID)
	}
}

// handOverAll lets the prepared tasks of a rollout take over. When it waits for a word now, nothing more is to go down for
// it: those are taken back, and the old tasks go on.
func (p *planner) handOverAll() {
	waits := p.rolloutWaits()
	for _, h := range p.handovers {
		if waits {
			p.unhave(h.to)
			p.remove(h.to, "the "+p.noun()+" waits, and this had not run")
		} else {
			p.handOver(h)
		}
	}
}

// rolloutWaits: by this plan or one before it the service's rollout was paused, or is to be rolled back.
func (p *planner) rolloutWaits() bool {
	r := p.v.rollout
	if n := len(p.out.Rollouts); n > 0 && p.out.Rollouts[n-1].Service == p.v {
		r = &Rollout{Rollout: p.out.Rollouts[n-1].Rollout}
	}
	if r.record().GetRevision() != p.v.revision {
		return false
	}
	return r.RollingBackTo != 0 || r.state() == statePaused || r.state() == stateBackPaused
}
