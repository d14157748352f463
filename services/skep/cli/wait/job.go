package wait

import (
	"slices"
	"sort"
	"strings"

	"skep.dev/libs/restart"
	specs "skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// assessJob looks at one run of a job: every slot (or node) whose tasks there are, and how many there should be.
func assessJob(s *skepv1.Service, tasks []*skepv1.Task, run uint64) *Progress {
	p := &Progress{Job: true, Status: s.UpdateStatus, Global: s.GetSpec().GetMode().GetGlobalJob() != nil}
	units := map[string][]*skepv1.Task{}
	for _, t := range tasks {
		if t.JobIteration == run && t.Desired != skepv1.TaskState_TASK_STATE_REMOVE {
			units[t.Name] = append(units[t.Name], t)
		}
	}
	for name, unit := range units {
		sort.SliceStable(unit, func(i, j int) bool {
			return unit[i].GetMeta().GetCreatedAt().AsTime().Before(unit[j].GetMeta().GetCreatedAt().AsTime())
		})
		t := unit[len(unit)-1]
		for _, o := range unit {
			if o.GetStatus().GetState() == skepv1.TaskState_TASK_STATE_COMPLETE {
				t = o
			}
		}
		st := t.GetStatus()
		slot := Slot{Label: name, Name: name, Node: t.NodeHostname, State: st.GetState(), Reason: why(st), order: int(t.Slot),
			Done: st.GetState() == skepv1.TaskState_TASK_STATE_COMPLETE}
		if !slot.Done && live(t) && len(unit) > 1 && st.GetState() < skepv1.TaskState_TASK_STATE_RUNNING {
			before := unit[len(unit)-2]
			if w := why(before.GetStatus()); w != "" && slot.Reason == "" {
				slot.Reason = again + w
			}
			slot.retries(t, before)
		}
		if a, is := away(t); p.Global && is && !slot.Done && a.Why == "is down" {
			p.Away = append(p.Away, a)
			continue
		}
		slot.GaveUp = !slot.Done && !live(t) && restart.GivenUp(s.GetSpec(), unit)
		p.Slots = append(p.Slots, slot)
	}
	slices.SortFunc(p.Away, func(a, b Away) int { return strings.Compare(a.Node, b.Node) })
	sort.Slice(p.Slots, func(i, j int) bool {
		if p.Slots[i].order != p.Slots[j].order {
			return p.Slots[i].order < p.Slots[j].order
		}
		return p.Slots[i].Label < p.Slots[j].Label
	})
	for _, s := range p.Slots {
		if s.Done {
			p.Done++
		}
	}
	p.Want = len(p.Slots)
	if n, ok := specs.Replicas(s.GetSpec()); ok {
		p.Want = int(n)
	}
	return p
}

// superseded ends the wait for a run that will not end by itself.
func superseded(s *skepv1.Service, run uint64, p *Progress) error {
	if s.JobIteration == run || p.Converged() && p.Want > 0 {
		return nil
	}
	name := s.GetSpec().GetName()
	for _, r := range s.Runs {
		if r.Iteration == run {
			if !r.Stopped {
				return nil
			}
			return end(ErrStopped, "run %d of job %s was stopped: run %d began\nSee `skep service runs %s`.", run, name, s.JobIteration, name)
		}
	}
	return end(ErrStopped, "run %d of job %s is not kept any more: run %d began\nSee `skep service runs %s`.", run, name, s.JobIteration, name)
}
