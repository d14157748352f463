package reconcile

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/place"
	skepv1 "skep.dev/proto/skep/v1"
)

// WhatIf plans as if the service stood as it is given here, or were gone. The state is as before when it returns.
func (s *State) WhatIf(o *skepv1.Service, removed bool, now time.Time, ids *IDs) (*Plan, *skepv1.Placing) {
	id := o.GetMeta().GetId()
	if id == "" {
		id = "(new)"
	}
	known := s.services[id] != nil
	v := s.service(id)
	saved := *v
	_, wasDirty := s.dirty[v]
	defer func() { // also when the planner fails on what it is asked: the picture is the leader's
		s.depend(v, saved.depends)
		asked := v.revision
		*v = saved
		if !wasDirty {
			delete(s.dirty, v)
		}
		if !known {
			delete(s.services, id)
			v.Name = o.GetSpec().GetName() // the plan's steps still speak of it
		}
		v.touchNodes(asked)
	}()
	if removed {
		v.Exists = false
	} else {
		v.revs = make(map[uint64]*revision, len(saved.revs)+1)
		for n, r := range saved.revs {
			v.revs[n] = r
		}
		s.putService(id, o)
		if r := v.revs[v.revision]; r != v.current && (r.core != v.current.core || r.place != v.current.place) {
			v.revision++ // the caller has not numbered it yet
			v.revs[v.revision] = v.current
		}
	}
	p := s.Plan(now, ids, []string{id})
	if removed {
		return p, nil
	}
	return p, s.Placing(v, now)
}

// Find addresses a service by id, name or unique prefix of its id.
func (s *State) Find(ref string) (*Service, error) {
	if v := s.services[ref]; v != nil && v.Exists {
		return v, nil
	}
	var match []*Service
	for id, v := range s.services {
		if !v.Exists {
			continue
		}
		if strings.EqualFold(v.Name, ref) {
			return v, nil
		}
		if ref != "" && strings.HasPrefix(id, ref) {
			match = append(match, v)
		}
	}
	switch len(match) {
	case 1:
		return match[0], nil
	case 0:
		return nil, fault.NotFound("service %s not found", ref)
	}
	return nil, fault.Conflict("service %s is ambiguous (%d matches found)", ref, len(match))
}

// Placing explains where the service's next task could go.
func (s *State) Placing(v *Service, now time.Time) *skepv1.Placing {
	have := map[int32]int32{}
	for _, t := range v.tasks {
		if n := t.Node(); n != nil && n.index >= 0 && t.wanted() {
			have[n.index]++
		}
	}
	var counts []place.Count
	for i, n := range have {
		counts = append(counts, place.Count{Node: i, N: n})
	}
	next := s.standing(v)
	x := s.engine().Explain(v.request(next), counts, v.failuresOn(now.UnixMilli(), next))
	out := &skepv1.Placing{Summary: x.Summary, Nodes: uint64(len(s.byID))}
	why := s.outgoing(v)
	if why == "" {
		why = s.waits(v, now.UnixMilli())
	}
	if why != "" && s.holds(v) {
		out.Summary = why + "; then " + x.Summary
	}
	for f := place.Ready; f < place.Suits; f++ {
		r := &skepv1.FilterResult{Filter: f.String()}
		for _, y := range x.Removed {
			if y.Filter == f {
				n := s.byID[y.Node]
				r.Removed = append(r.Removed, &skepv1.RemovedNode{NodeId: n.ID, Hostname: n.Hostname(), Reason: y.Reason})
			}
		}
		if len(r.Removed) > 0 {
			r.Text = f.Text(len(r.Removed))
		}
		out.Filters = append(out.Filters, r)
	}
	for _, c := range x.Candidates {
		n := s.byID[c.Node]
		k := &skepv1.ScoredNode{NodeId: n.ID, Hostname: n.Hostname(), Score: c.Score, ServiceTasks: uint64(c.ServiceTasks), Tasks: uint64(c.Tasks), Failures: uint64(c.Failures)}
		switch {
		case c.Failures > 0:
			k.Reason = "the service failed there of late"
		case c.ServiceTasks == 0:
			k.Reason = "runs no task of the service"
		default:
			k.Reason = "by free resources per task of the service"
		}
		out.Candidates = append(out.Candidates, k)
	}
	s.tell(s.tied(v, next, now.UnixMilli()), out)
	return out
}

// Waiting lists the service's tasks that should run and do not, by slot.
func (s *State) Waiting(v *Service) []*skepv1.Task {
	var out []*skepv1.Task
	for _, t := range v.tasks {
		if t.Desired <= Complete && t.State() < Running {
			out = append(out, t.view())
		}
	}
	slices.SortFunc(out, func(a, b *skepv1.Task) int {
		if a.Slot != b.Slot {
			return compare(a.Slot, b.Slot)
		}
		return compare(a.Meta.Id, b.Meta.Id)
	})
	return out
}

// NoneIsWell reports whether tasks of the service run, or were ended for their health, and none is healthy and ready.
func (s *State) NoneIsWell(v *Service) bool {
	tried := false
	for _, t := range v.tasks {
		switch {
		case t.wanted() && t.up && t.well:
			return false
		case t.wanted() && t.up, t.endedForHealth(), t.more().ForHealth:
			tried = true
		}
	}
	return tried
}

func (t *Task) view() *skepv1.Task {
	v := &skepv1.Task{
		Meta:      &skepv1.Meta{Id: t.ID, CreatedAt: timestamppb.New(time.UnixMilli(t.Created))},
		ServiceId: t.Service.ID, ServiceName: t.Service.Name, Slot: t.Slot, Revision: t.Revision,
		Desired: skepv1.TaskState(t.Desired), JobIteration: t.more().Iteration, Replaces: t.more().Replaces,
		Failures: t.more().Failures, NotBeforeUnixMs: t.NotBefore,
		Verdict: skepv1.TaskState(t.Verdict), VerdictUnixMs: t.VerdictAt,
		Status: &skepv1.TaskStatus{TaskId: t.ID, State: skepv1.TaskState(t.State()), Message: t.more().Message, Err: t.more().Err},
	}
	if n := t.Node(); n != nil {
		v.NodeId, v.NodeHostname = n.ID, n.Hostname()
	}
	return v
}
