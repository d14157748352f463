package index

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/record"
	skepv1 "skep.dev/proto/skep/v1"
)

// Unplaced begins the group of a service's tasks that have no node: "_.<service>".
var Unplaced = keys.Unplaced.Prefix()

// group is the tasks of one node, or the unplaced ones of one service: usually one key, several when it is large.
type group struct {
	keys map[string]stored
}

// tally counts a service's tasks in one group, named by its number: with 100,000 pairs of service and node, maps by
// name would be larger than the records.
type tally struct{ group, active, running, completed, looping uint32 }

// tallies are a service's, sorted by group.
type tallies struct {
	id     string
	groups []tally
}

func (t *tallies) find(group uint32) (int, bool) {
	return slices.BinarySearchFunc(t.groups, group, func(a tally, g uint32) int { return cmp.Compare(a.group, g) })
}

// Counts is what `service ls` shows of a service's tasks.
type Counts struct {
	Active    uint64 // meant to run, or to run to completion
	Running   uint64
	Completed uint64
	Looping   uint64 // Active, after so many failures in a row that it is no accident
}

// loopFrom failures in a row are a crash loop.
const loopFrom = 3

func (x *Index) resetTasks() {
	x.groups = map[string]*group{}
	x.dirty = map[string]struct{}{}
	x.counts = map[string]*tallies{}
	x.members = map[string][]string{}
	x.numbers = map[string]uint32{}
	x.named, x.spare = nil, nil
	x.rollouts = map[string]stored{}
	x.claims = map[string]*skepv1.VolumeClaim{}
}

func (x *Index) resetStatus() {
	x.statuses = map[string]*report{}
	for g := range x.groups {
		x.dirty[g] = struct{}{}
	}
}

// groupOf turns a key of the task bucket into its group.
func groupOf(key string) string {
	node, service := keys.PageOwner(key)
	if service != "" {
		return Unplaced + service
	}
	return node
}

// ApplyTask takes a step of the task bucket's feed.
func (x *Index) ApplyTask(d kv.Delta) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d.Reset {
		x.resetTasks()
	}
	for _, e := range d.Entries {
		if svc, ok := keys.Rollout.ID(e.Key); ok {
			if e.Deleted {
				delete(x.rollouts, svc)
			} else {
				x.rollouts[strings.Clone(svc)] = keep(e)
			}
			continue
		}
		if _, ok := keys.Claim.ID(e.Key); ok {
			x.applyClaim(e)
			continue
		}
		name := groupOf(e.Key)
		if name == "" {
			continue // the fence
		}
		g := x.groups[name]
		if g == nil {
			g = &group{keys: map[string]stored{}}
			x.groups[strings.Clone(name)] = g
		}
		if e.Deleted {
			delete(g.keys, e.Key)
		} else {
			g.keys[e.Key] = keep(e)
		}
		if len(g.keys) == 0 {
			delete(x.groups, name)
		}
		x.dirty[name] = struct{}{}
	}
	x.notifyLocked()
}

// settle brings the counts up to date: lazily, because reports come far more often than questions.
func (x *Index) settle() {
	x.mu.RLock()
	clean := len(x.dirty) == 0
	x.mu.RUnlock()
	if clean {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for name := range x.dirty {
		x.countLocked(name)
	}
	clear(x.dirty)
}

func (x *Index) countLocked(name string) {
	fresh := map[string]*tally{}
	if g := x.groups[name]; g != nil {
		// What a node that is down runs is not known: a service that wants a task on every node has none there to want.
		n := x.nodes[name]
		down := n != nil && n.state == skepv1.NodeState_NODE_STATE_DOWN
		states := map[string]skepv1.TaskState{}
		if r := x.statuses[name]; r != nil {
			_ = record.EachStatus(r.raw, func(v *record.Status) {
				if states[string(v.ID)] = v.State; v.Begins() {
					states[string(v.ID)] = skepv1.TaskState_TASK_STATE_STARTING
				}
			})
		}
		for _, k := range g.keys {
			_ = record.EachTask(k.raw, func(v *record.Task[[]byte]) {
				t := fresh[string(v.Service)]
				if t == nil {
					t = &tally{}
					fresh[string(v.Service)] = t
				}
				state := v.Verdict
				if state == skepv1.TaskState_TASK_STATE_NEW {
					state = states[string(v.ID)]
				}
				if v.Desired <= skepv1.TaskState_TASK_STATE_COMPLETE && !down {
					// A job's task that is complete is not one of those still to come.
					done := state == skepv1.TaskState_TASK_STATE_COMPLETE && v.Desired == skepv1.TaskState_TASK_STATE_COMPLETE
					if state <= skepv1.TaskState_TASK_STATE_COMPLETE && !done {
						t.active++
					}
					if state < skepv1.TaskState_TASK_STATE_RUNNING && v.Failures >= loopFrom {
						t.looping++
					}
					if state == skepv1.TaskState_TASK_STATE_RUNNING {
						t.running++
					}
				}
				// Of a job only the newest run's completions count.
				if s := x.services[string(v.Service)]; s != nil && s.run != v.Run && (s.run > 0 || v.Run > 0) {
					return
				}
				if state == skepv1.TaskState_TASK_STATE_COMPLETE && v.Desired <= skepv1.TaskState_TASK_STATE_SHUTDOWN {
					t.completed++
				}
			})
		}
	}
	number := x.numberLocked(name)
	for _, svc := range x.members[name] {
		t := x.counts[svc]
		if _, ok := fresh[svc]; ok || t == nil {
			continue
		}
		if i, ok := t.find(number); ok {
			t.groups = slices.Delete(t.groups, i, i+1)
		}
		if len(t.groups) == 0 {
			delete(x.counts, svc)
		}
	}
	members := make([]string, 0, len(fresh))
	for svc, n := range fresh {
		t := x.counts[svc]
		if t == nil {
			t = &tallies{id: svc}
			x.counts[svc] = t
		}
		n.group = number
		if i, ok := t.find(number); ok {
			t.groups[i] = *n
		} else {
			t.groups = slices.Insert(t.groups, i, *n)
		}
		members = append(members, t.id)
	}
	if len(members) == 0 {
		delete(x.members, name)
		delete(x.numbers, name)
		x.named[number] = ""
		x.spare = append(x.spare, number)
	} else {
		x.members[name] = members
	}
}

// recountLocked has a service's tasks counted anew.
func (x *Index) recountLocked(service string) {
	if t := x.counts[service]; t != nil {
		for _, g := range t.groups {
			x.dirty[x.named[g.group]] = struct{}{}
		}
	}
}

// numberLocked gives a group its number.
func (x *Index) numberLocked(name string) uint32 {
	n, ok := x.numbers[name]
	if ok {
		return n
	}
	if k := len(x.spare); k > 0 {
		n, x.spare = x.spare[k-1], x.spare[:k-1]
		x.named[n] = name
	} else {
		n = uint32(len(x.named))
		x.named = append(x.named, name)
	}
	x.numbers[name] = n
	return n
}

// Counts sums up a service's tasks.
func (x *Index) Counts(service string) Counts {
	x.settle()
	x.mu.RLock()
	defer x.mu.RUnlock()
	var c Counts
	of := x.counts[service]
	if of == nil {
		return c
	}
	for _, t := range of.groups {
		c.Active += uint64(t.active)
		c.Running += uint64(t.running)
		c.Completed += uint64(t.completed)
		c.Looping += uint64(t.looping)
	}
	return c
}

// Rollout is the scheduler's record of a service's update, nil when there is none.
func (x *Index) Rollout(service string) *skepv1.Rollout {
	x.mu.RLock()
	s := x.rollouts[service]
	x.mu.RUnlock()
	if s.rev == 0 {
		return nil
	}
	r := &skepv1.Rollout{}
	if proto.Unmarshal(s.raw, r) != nil {
		return nil
	}
	return r
}

// Groups names the task groups in listing order, unplaced ones first: a task only ever moves from there to a node,
// so a listing that pages through them may meet it twice but never misses it. With a service, only its groups.
func (x *Index) Groups(service string) []string {
	if service != "" {
		x.settle()
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []string
	if service != "" {
		if of := x.counts[service]; of != nil {
			for _, t := range of.groups {
				out = append(out, x.named[t.group])
			}
		}
	} else {
		for g := range x.groups {
			out = append(out, g)
		}
	}
	slices.SortFunc(out, CompareGroups)
	return out
}

// CompareGroups orders groups as Groups does.
func CompareGroups(a, b string) int {
	ua, ub := strings.HasPrefix(a, Unplaced), strings.HasPrefix(b, Unplaced)
	switch {
	case ua && !ub:
		return -1
	case ub && !ua:
		return 1
	}
	return strings.Compare(a, b)
}

// Tasks are the records of a group sorted by id, the statuses of those that have one, and the group's generation:
// the newest revision of its keys.
func (x *Index) Tasks(name string) (records []*skepv1.TaskRecord, status map[string]*skepv1.TaskStatus, generation uint64) {
	x.mu.RLock()
	var raws [][]byte
	if g := x.groups[name]; g != nil {
		for _, k := range g.keys {
			raws = append(raws, k.raw)
			generation = max(generation, k.rev)
		}
	}
	var rep []byte
	if r := x.statuses[name]; r != nil {
		rep = r.raw
	}
	x.mu.RUnlock()
	for _, raw := range raws {
		var n skepv1.NodeTasks
		if proto.Unmarshal(raw, &n) == nil {
			records = append(records, n.Tasks...)
		}
	}
	slices.SortFunc(records, func(a, b *skepv1.TaskRecord) int { return strings.Compare(a.Id, b.Id) })
	status = map[string]*skepv1.TaskStatus{}
	var s skepv1.NodeStatus
	if rep != nil && proto.Unmarshal(rep, &s) == nil {
		for _, t := range s.Tasks {
			status[t.TaskId] = t
		}
	}
	return records, status, generation
}

// Generation is the newest revision of a node's task set, 0 when it has none.
func (x *Index) Generation(node string) uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var gen uint64
	if g := x.groups[node]; g != nil {
		for _, k := range g.keys {
			gen = max(gen, k.rev)
		}
	}
	return gen
}

// GroupsMentioning are the groups whose records hold text somewhere: a sieve in front of a search by id or prefix.
func (x *Index) GroupsMentioning(text string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []string
	for name, g := range x.groups {
		for _, k := range g.keys {
			if bytes.Contains(k.raw, []byte(text)) {
				out = append(out, name)
				break
			}
		}
	}
	slices.SortFunc(out, CompareGroups)
	return out
}

// TaskIDs are the ids in a group.
func (x *Index) TaskIDs(name string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []string
	if g := x.groups[name]; g != nil {
		for _, k := range g.keys {
			_ = record.EachTask(k.raw, func(v *record.Task[[]byte]) { out = append(out, string(v.ID)) })
		}
	}
	return out
}

// RevisionsInUse are the revisions of a service that some task was made from.
func (x *Index) RevisionsInUse(service string) map[uint64]bool {
	x.settle()
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[uint64]bool{}
	of := x.counts[service]
	if of == nil {
		return out
	}
	for _, t := range of.groups {
		if g := x.groups[x.named[t.group]]; g != nil {
			for _, k := range g.keys {
				_ = record.EachTask(k.raw, func(v *record.Task[[]byte]) {
					if string(v.Service) == service {
						out[v.Revision] = true
					}
				})
			}
		}
	}
	return out
}

// Assigned tells which (service, revision) pairs a node's task set names.
func (x *Index) Assigned(node string) map[string]map[uint64]bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[string]map[uint64]bool{}
	if g := x.groups[node]; g != nil {
		for _, k := range g.keys {
			_ = record.EachTask(k.raw, func(v *record.Task[[]byte]) {
				m := out[string(v.Service)]
				if m == nil {
					m = map[uint64]bool{}
					out[string(v.Service)] = m
				}
				m[v.Revision] = true
			})
		}
	}
	return out
}
