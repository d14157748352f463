package reconcile

import (
	"fmt"

	"skep.dev/libs/constraint"
	"skep.dev/libs/record"
	skepv1 "skep.dev/proto/skep/v1"
)

// dependency is a service whose state the first tasks of another wait for.
type dependency struct {
	on   string
	want skepv1.Dependency_Condition
}

func newDependencies(s *skepv1.ServiceSpec) []dependency {
	var out []dependency
	for _, d := range s.GetDependsOn() {
		out = append(out, dependency{d.GetService(), d.GetCondition()})
	}
	return out
}

// depend replaces what v depends on.
func (s *State) depend(v *Service, on []dependency) {
	for _, d := range v.depends {
		delete(s.dependents[d.on], v)
		if len(s.dependents[d.on]) == 0 {
			delete(s.dependents, d.on)
		}
	}
	v.depends = on
	for _, d := range on {
		if s.dependents[d.on] == nil {
			s.dependents[d.on] = map[*Service]struct{}{}
		}
		s.dependents[d.on][v] = struct{}{}
	}
}

// markDependents wakes the services that may wait for v: those with tasks that have no node.
func (s *State) markDependents(v *Service) {
	if len(s.dependents) == 0 {
		return
	}
	for d := range s.dependents[v.ID] {
		if s.unplaced[d] > 0 {
			s.dirty[d] = struct{}{}
		}
	}
}

// hold takes tasks that wait for another service, or for the end of a run that theirs takes the place of, out of those to
// be placed. Only the first task of a slot waits: what has run once is replaced, updated and moved without asking again,
// and never stopped because a dependency fails.
func (p *planner) hold() {
	if len(p.wants) == 0 {
		return
	}
	late, dependent := p.s.outgoing(p.v), p.s.waits(p.v, p.now)
	if late == "" && dependent == "" {
		return
	}
	kept := p.wants[:0]
	for _, w := range p.wants {
		why := dependent
		if late != "" && w.task.more().Iteration == p.v.iteration {
			why = late
		}
		if why == "" || w.task.more().Replaces != "" {
			kept = append(kept, w)
			continue
		}
		if w.pin != nil {
			p.waitFor(&w, w.pin)
		}
		p.unplaced(&w, why)
	}
	p.wants = kept
}

// holds: a task of v waits for the services it depends on, as far as its record says.
func (s *State) holds(v *Service) bool {
	for _, t := range v.tasks {
		if t.Node() == nil && t.Desired <= Complete && t.more().Replaces == "" {
			return true
		}
	}
	return len(v.tasks) == 0
}

// waits says which service the first tasks of v wait for, "" when for none.
func (s *State) waits(v *Service, now int64) string {
	for _, d := range v.depends {
		on := s.services[d.on]
		if on == nil || !on.Exists {
			return fmt.Sprintf("waits for service %s, which was removed: --depends-on-rm lets it go on without", d.on)
		}
		var why string
		if d.want == skepv1.Dependency_CONDITION_COMPLETED {
			why = s.incomplete(on, now)
		} else {
			why = s.missing(on, d.want)
		}
		if why != "" {
			return "waits for service " + on.Name + " " + why
		}
	}
	return ""
}

// missing counts the units of v that are not as far as is asked for, "" when none is.
func (s *State) missing(v *Service, want skepv1.Dependency_Condition) string {
	units := map[uint64]bool{}
	nodes := map[*Node]bool{}
	for _, t := range v.tasks {
		if v.job() && t.more().Iteration != v.iteration {
			continue
		}
		done := v.job() && t.State() == Complete
		up := t.wanted() && t.Verdict == New && (t.well || t.up && want == skepv1.Dependency_CONDITION_STARTED)
		if !done && !up {
			continue
		}
		if v.perNode() {
			nodes[t.Node()] = true
		} else {
			units[t.Slot] = true
		}
	}
	have, all := len(units), int(v.replicas)
	switch v.mode {
	case replicatedJob:
		all = int(min(v.parallel, v.replicas))
	case global, globalJob:
		have, all = len(nodes), 0
		for _, n := range s.byID {
			if n.accepts() && !v.never && constraint.MatchAll(v.limits, &n.attrs) {
				all++
			}
		}
	}
	word := "started"
	if want == skepv1.Dependency_CONDITION_HEALTHY {
		word = "healthy"
	}
	switch {
	case v.job() && !v.jobs.begun:
		return "to be " + word + ", which has not run yet"
	case have < all:
		return fmt.Sprintf("to be %s (%d of %d)", word, have, all)
	}
	return ""
}

// incomplete says what the newest run of job v lacks, "" when it succeeded.
func (s *State) incomplete(v *Service, now int64) string {
	if !v.jobs.begun {
		return "to complete, which has not run yet"
	}
	q := &planner{s: s, now: now, v: v, run: v.iteration, out: &Plan{}}
	var tasks []*Task
	done := map[uint64]bool{}
	for _, t := range v.tasks {
		if t.more().Iteration == v.iteration && t.Desired != Remove {
			tasks = append(tasks, t)
			if t.State() == Complete {
				done[t.Slot] = true
			}
		}
	}
	q.group(tasks)
	switch how, _ := q.stands(); {
	case how == completed && (len(q.units) > 0 || v.mode == replicatedJob):
		return ""
	case how == failed:
		return fmt.Sprintf("to complete: its run %d failed", v.iteration)
	case v.mode == replicatedJob:
		return fmt.Sprintf("to complete (%d of %d)", len(done), v.replicas)
	}
	return "to complete"
}

// condition is what a report says of a task to those that wait for it. Without a health check a task that runs is well.
func condition(r *skepv1.TaskStatus) (up, well bool) {
	return r.GetState() == skepv1.TaskState_TASK_STATE_RUNNING, record.ConditionOf(r).Serves()
}
