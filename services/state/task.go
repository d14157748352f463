package state

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// composer turns records into what a client sees, remembering what many tasks share.
type composer struct {
	s     *Service
	specs map[string]*skepv1.Revision
	names map[string]string
	hosts map[string]string
	nodes map[string]nodeStanding
}

type nodeStanding struct {
	state        skepv1.NodeState
	availability skepv1.Availability
}

func (c *composer) standing(node string) nodeStanding {
	st, ok := c.nodes[node]
	if !ok {
		st.state, st.availability = c.s.ix.Standing(node)
		c.nodes[node] = st
	}
	return st
}

func (s *Service) composer() *composer {
	return &composer{s: s, specs: map[string]*skepv1.Revision{}, names: map[string]string{}, hosts: map[string]string{}, nodes: map[string]nodeStanding{}}
}

func (c *composer) revision(service string, number uint64) *skepv1.Revision {
	key := keys.RevisionKey(service, number)
	r, ok := c.specs[key]
	if !ok {
		r = c.s.ix.Revision(service, number)
		c.specs[key] = r
	}
	return r
}

func memo(m map[string]string, key string, get func(string) string) string {
	v, ok := m[key]
	if !ok {
		v = get(key)
		m[key] = v
	}
	return v
}

// task composes a record and its status. group is a node's id, or a service's unplaced group.
func (c *composer) task(group string, rec *skepv1.TaskRecord, st *skepv1.TaskStatus, version uint64) *skepv1.Task {
	node := group
	if strings.HasPrefix(group, index.Unplaced) {
		node = ""
	}
	rev := c.revision(rec.ServiceId, rec.Revision)
	t := &skepv1.Task{
		Meta:      &skepv1.Meta{Id: rec.Id, Version: version, CreatedAt: timestamp(rec.CreatedUnixMs)},
		ServiceId: rec.ServiceId, ServiceName: memo(c.names, rec.ServiceId, c.s.ix.ServiceName),
		Slot: rec.Slot, NodeId: node, Revision: rec.Revision,
		Image: rev.GetSpec().GetTask().GetContainer().GetImage(), Desired: rec.Desired,
		JobIteration: rec.JobIteration, Assigned: rec.Assigned, Replaces: rec.Replaces,
		Status: composeStatus(rec, st, node != ""), Failures: rec.Failures,
		Verdict: rec.Verdict, VerdictUnixMs: rec.VerdictUnixMs,
	}
	if rec.Desired == skepv1.TaskState_TASK_STATE_READY {
		t.NotBeforeUnixMs = rec.NotBeforeUnixMs
	}
	if t.ServiceName == "" {
		t.ServiceName = rev.GetSpec().GetName()
	}
	t.Meta.UpdatedAt = timestamp(t.Status.SinceUnixMs)
	if node != "" {
		t.NodeHostname = memo(c.hosts, node, c.s.ix.Hostname)
		at := c.standing(node)
		t.NodeState, t.NodeAvailability = at.state, at.availability
		if at.state == skepv1.NodeState_NODE_STATE_DOWN && rec.Desired <= skepv1.TaskState_TASK_STATE_COMPLETE &&
			t.Status.State < skepv1.TaskState_TASK_STATE_COMPLETE && t.Status.Err == "" {
			t.Status.Err = "its node is down, and this is what was last heard"
		}
	}
	name := t.ServiceName
	if name == "" {
		name = rec.ServiceId // removed, its revisions with it
	}
	if rec.Slot != 0 {
		t.Name = fmt.Sprintf("%s.%d", name, rec.Slot)
	} else {
		t.Name = name + "." + cmp.Or(node, rec.WantsNode)
	}
	return t
}

func timestamp(ms int64) *timestamppb.Timestamp {
	if ms == 0 {
		return nil
	}
	return &timestamppb.Timestamp{Seconds: ms / 1000, Nanos: int32(ms % 1000 * 1e6)}
}

// composeStatus: the scheduler's verdict if there is one, else what the agent reports, else where the task stands
// before any agent has seen it.
func composeStatus(rec *skepv1.TaskRecord, st *skepv1.TaskStatus, placed bool) *skepv1.TaskStatus {
	out := &skepv1.TaskStatus{TaskId: rec.Id}
	if st != nil {
		out = proto.CloneOf(st)
	}
	switch {
	case rec.Verdict != skepv1.TaskState_TASK_STATE_NEW:
		out.State, out.SinceUnixMs, out.Message, out.Err = rec.Verdict, rec.VerdictUnixMs, rec.Message, rec.Err
	case st != nil:
		if st.Health == skepv1.HealthState_HEALTH_STATE_UNHEALTHY && out.Err == "" {
			out.Err = rec.Err // why it goes on all the same
		}
		if st.State <= skepv1.TaskState_TASK_STATE_READY && out.Err == "" {
			out.Err = rec.Err // what it waits for, prepared
		}
	case placed:
		out.State, out.SinceUnixMs, out.Message, out.Err = skepv1.TaskState_TASK_STATE_ASSIGNED, rec.CreatedUnixMs, rec.Message, rec.Err
	default:
		out.State, out.SinceUnixMs, out.Message, out.Err = skepv1.TaskState_TASK_STATE_PENDING, rec.CreatedUnixMs, rec.Message, rec.Err
	}
	if out.SinceUnixMs == 0 {
		out.SinceUnixMs = rec.CreatedUnixMs
	}
	return out
}

// taskQuery is a task listing's filters with names turned into ids.
type taskQuery struct {
	f        filters
	services []string // nil = any
	nodes    []string // nil = any
	labels   map[string]bool
}

func (s *Service) taskQuery(ctx context.Context, in []*skepv1.Filter) (*taskQuery, error) {
	f, err := parseFilters(in, "id", "name", "service", "node", "desired-state", "label")
	if err != nil {
		return nil, err
	}
	if err := f.checkValues("desired-state", "running", "shutdown", "accepted", "ready", "complete", "remove"); err != nil {
		return nil, err
	}
	q := &taskQuery{f: f, labels: map[string]bool{}}
	for _, v := range f["service"] {
		sid, err := s.findService(ctx, v)
		if fault.Is(err, fault.CodeNotFound) && id.Valid(v) {
			// A service that was removed: whoever waits for its tasks to stop asks by its id.
			sid, err = v, nil
		}
		if err != nil {
			return nil, err
		}
		q.services = append(q.services, sid)
	}
	for _, v := range f["node"] {
		id, err := s.findNode(ctx, v)
		if err != nil {
			return nil, err
		}
		q.nodes = append(q.nodes, id)
	}
	return q, nil
}

// wants looks at a record before it is composed.
func (q *taskQuery) wants(s *Service, rec *skepv1.TaskRecord) bool {
	if q.services != nil && !slices.Contains(q.services, rec.ServiceId) || !q.f.prefix("id", rec.Id) || !q.f.desired(rec.Desired) {
		return false
	}
	if _, ok := q.f["label"]; !ok {
		return true
	}
	hit, known := q.labels[rec.ServiceId]
	if !known {
		svc := s.ix.Service(rec.ServiceId)
		hit = svc != nil && q.f.labels("label", svc.Spec.Labels)
		q.labels[rec.ServiceId] = hit
	}
	return hit
}

// desired is docker's reading: accepted stands for all that are not running yet, shutdown for all that are over.
func (f filters) desired(d skepv1.TaskState) bool {
	if _, ok := f["desired-state"]; !ok {
		return true
	}
	words := []string{spec.Word(d)}
	if d == skepv1.TaskState_TASK_STATE_READY {
		words = append(words, "accepted")
	}
	if d == skepv1.TaskState_TASK_STATE_REMOVE {
		words = append(words, "shutdown")
	}
	if d == skepv1.TaskState_TASK_STATE_COMPLETE {
		words = append(words, "running")
	}
	return f.exact("desired-state", words...)
}

// taskGroups are the groups a query has to look into, in listing order.
func (s *Service) taskGroups(q *taskQuery) []string {
	var groups []string
	switch {
	case q.nodes != nil:
		groups = slices.Clone(q.nodes)
	case q.services != nil:
		for _, svc := range q.services {
			groups = append(groups, s.ix.Groups(svc)...)
		}
	default:
		groups = s.ix.Groups("")
	}
	slices.SortFunc(groups, index.CompareGroups)
	return slices.Compact(groups)
}

func (s *Service) listTasks(ctx context.Context, r *skepv1.ListTasksRequest) (*skepv1.ListTasksReply, error) {
	q, err := s.taskQuery(ctx, r.Filters)
	if err != nil {
		return nil, err
	}
	afterGroup, afterID, _ := strings.Cut(r.Page.GetAfter(), "/")
	out := &skepv1.ListTasksReply{}
	p := newPage(r.Page)
	c := s.composer()
	last := ""
	for _, g := range s.taskGroups(q) {
		if afterGroup != "" && index.CompareGroups(g, afterGroup) < 0 {
			continue
		}
		records, status, gen := s.ix.Tasks(g)
		for _, rec := range records {
			if g == afterGroup && rec.Id <= afterID || !q.wants(s, rec) {
				continue
			}
			t := c.task(g, rec, status[rec.Id], gen)
			if !q.f.prefix("name", t.Name) {
				continue
			}
			if !p.takes(t) {
				out.Next = last
				return out, nil
			}
			out.Tasks = append(out.Tasks, t)
			last = g + "/" + rec.Id
		}
	}
	return out, nil
}

func (s *Service) inspectTask(ctx context.Context, r *skepv1.Ref) (*skepv1.TaskReply, error) {
	var group, taskID string
	err := s.lookTwice(ctx, func() (err error) { group, taskID, err = s.findTask(r.Ref); return err }, subject.Task)
	if err != nil {
		return nil, err
	}
	records, status, gen := s.ix.Tasks(group)
	for _, rec := range records {
		if rec.Id != taskID {
			continue
		}
		c := s.composer()
		t := c.task(group, rec, status[rec.Id], gen)
		t.Spec = c.revision(rec.ServiceId, rec.Revision).GetSpec().GetTask()
		return &skepv1.TaskReply{Task: t}, nil
	}
	return nil, noSuch("task", r.Ref, nil)
}

// findTask addresses a task by id, by name (service.slot, service.node: the newest of that name) or by a unique
// beginning of its id.
func (s *Service) findTask(ref string) (group, taskID string, err error) {
	if ref == "" {
		return "", "", fault.Invalid("task: give a name or an id")
	}
	type hit struct{ group, id string }
	var hits []hit
	if !strings.Contains(ref, ".") {
		for _, g := range s.ix.GroupsMentioning(ref) {
			for _, tid := range s.ix.TaskIDs(g) {
				if tid == ref {
					return g, tid, nil
				}
				if strings.HasPrefix(tid, ref) {
					hits = append(hits, hit{g, tid})
				}
			}
		}
		switch {
		case len(hits) == 1:
			return hits[0].group, hits[0].id, nil
		case len(hits) > 1:
			return "", "", ambiguous("task", ref, len(hits))
		}
		return "", "", noSuch("task", ref, nil)
	}
	name, rest, _ := strings.Cut(ref, ".")
	svc, err := s.serviceID(name)
	if err != nil {
		return "", "", err
	}
	// A container's name ends in the task's id: service.slot.id.
	rest, tail, _ := strings.Cut(rest, ".")
	var best *skepv1.TaskRecord
	for _, g := range s.ix.Groups(svc) {
		records, _, _ := s.ix.Tasks(g)
		for _, rec := range records {
			if rec.ServiceId != svc || tail != "" && rec.Id != tail {
				continue
			}
			slot := fmt.Sprint(rec.Slot)
			if rec.Slot == 0 {
				if slot = g; rec.WantsNode != "" {
					slot = rec.WantsNode
				}
			}
			if slot != rest {
				continue
			}
			if best == nil || better(rec, best) {
				best, group = rec, g
			}
		}
	}
	if best == nil {
		return "", "", fault.NotFound("no such task: %s: see skep service ps %s", ref, name)
	}
	return group, best.Id, nil
}

// better prefers the task that is meant to run, then the newer one.
func better(a, b *skepv1.TaskRecord) bool {
	over := func(r *skepv1.TaskRecord) bool { return r.Desired > skepv1.TaskState_TASK_STATE_COMPLETE }
	if over(a) != over(b) {
		return over(b)
	}
	return a.CreatedUnixMs > b.CreatedUnixMs
}
