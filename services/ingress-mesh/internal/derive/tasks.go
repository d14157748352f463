package derive

import (
	"fmt"
	"maps"
	"slices"

	"skep.dev/libs/keys"
	"skep.dev/libs/record"
	skepv1 "skep.dev/proto/skep/v1"
)

// task is what matters of a task's record.
type task struct {
	service  string
	slot     uint64
	revision uint64
	desired  skepv1.TaskState
}

// status is what matters of what is observed of a task. There are up to a million of them.
type status struct {
	record.Condition
	addr     string // on skep0
	addr6    string // there too, "" where its node has no IPv6
	networks []address
}

// maxNetworks bounds how many of a task's networks are taken from a report: each once, and no task is on that many.
const maxNetworks = 256

type address struct{ network, v4, v6 string }

// ended: it runs no more and never will.
func (s status) ended() bool { return s.State >= skepv1.TaskState_TASK_STATE_COMPLETE }

// placed: it has its addresses, and they lead to it. Peers have to know the way before the first packet.
func (s status) placed() bool { return s.State >= skepv1.TaskState_TASK_STATE_READY && !s.ended() }

// addrs are its addresses on a network.
func (s status) addrs(network string) []string {
	for _, a := range s.networks {
		if a.network == network {
			return []string{a.v4, a.v6}
		}
	}
	return nil
}

func (s status) on(network string) bool {
	return slices.ContainsFunc(s.networks, func(a address) bool { return a.network == network })
}

// serves: it is well, and meant to run.
func serves(t task, st status) bool { return st.Serves() && t.meantToRun() }

// runs: its program does, and is meant to, whatever its checks say. One whose container is being started counts, so that
// it finds its own name when it looks at once.
func runs(t task, st status) bool {
	return (st.State == skepv1.TaskState_TASK_STATE_STARTING || st.State == skepv1.TaskState_TASK_STATE_RUNNING) && t.meantToRun()
}

func (t task) meantToRun() bool {
	return t.desired == skepv1.TaskState_TASK_STATE_RUNNING || t.desired == skepv1.TaskState_TASK_STATE_COMPLETE
}

// taskRev is a revision of a service.
type taskRev struct {
	service  string
	revision uint64
}

func (p *Picture) clearTasks() {
	p.tasks, p.users = map[string]map[string]map[string]task{}, map[string]map[string]int{}
}

// ResetTasks forgets the task records; the entries that follow are all of them.
func (p *Picture) ResetTasks() {
	p.MarkAll()
	p.clearTasks()
}

// PutTasks takes a key of bucket task: a node's task set, or a page of it (<node>.<n>); nil: it was deleted.
func (p *Picture) PutTasks(key string, val []byte) error {
	owner, _ := keys.PageOwner(key)
	if owner == "" {
		return nil
	}
	page := map[string]task{}
	if err := record.EachTask(val, func(r *record.Task[[]byte]) {
		page[string(r.ID)] = task{string(r.Service), r.Slot, r.Revision, r.Desired}
	}); err != nil {
		return fmt.Errorf("read key %s: %w", key, err)
	}
	p.dirtyNodes[owner] = true
	for _, t := range p.tasks[owner][key] {
		p.count(t.service, owner, -1)
	}
	if val == nil {
		delete(p.tasks[owner], key)
		if len(p.tasks[owner]) == 0 {
			delete(p.tasks, owner)
		}
		return nil
	}
	for _, t := range page {
		p.count(t.service, owner, 1)
	}
	if p.tasks[owner] == nil {
		p.tasks[owner] = map[string]map[string]task{}
	}
	p.tasks[owner][key] = page
	return nil
}

// count keeps which nodes have tasks of a service.
func (p *Picture) count(service, node string, by int) {
	u := p.users[service]
	if u == nil {
		u = map[string]int{}
		p.users[service] = u
	}
	if u[node] += by; u[node] <= 0 {
		delete(u, node)
	}
	if len(u) == 0 {
		delete(p.users, service)
	}
}

// PutStatus takes a key of bucket status: a node's report; nil: it was deleted.
func (p *Picture) PutStatus(key string, val []byte) error {
	m := map[string]status{}
	if err := record.EachStatus(val, func(r *record.Status) { m[string(r.ID)] = newStatus(r) }); err != nil {
		return fmt.Errorf("read key %s: %w", key, err)
	}
	p.dirtyNodes[key] = true
	if val == nil {
		delete(p.statuses, key)
		return nil
	}
	p.statuses[key] = m
	return nil
}

// newStatus keeps what matters of a report.
func newStatus(r *record.Status) status {
	s := status{Condition: r.Condition}
	if !s.placed() {
		return s
	}
	if len(r.Addresses) > 0 {
		s.addr = bare(string(r.Addresses[0]))
	}
	if len(r.Addresses) > 1 {
		s.addr6 = bare(string(r.Addresses[1]))
	}
	for _, n := range r.Networks {
		if network := string(n.Network); len(s.networks) < maxNetworks && !s.on(network) {
			s.networks = append(s.networks, address{network, bare(string(n.V4)), bare(string(n.V6))})
		}
	}
	return s
}

// Drain takes tasks of a node out of service ahead of their end, and says how many of them the node has.
func (p *Picture) Drain(node string, ids []string) (known int) {
	for _, id := range ids {
		if _, ok := p.taskOf(node, id); !ok {
			continue
		}
		if p.draining[node] == nil {
			p.draining[node] = map[string]bool{}
		}
		p.draining[node][id] = true
		known++
	}
	p.dirtyNodes[node] = true
	return known
}

func (p *Picture) taskOf(node, id string) (task, bool) {
	for _, page := range p.tasks[node] {
		if t, ok := page[id]; ok {
			return t, true
		}
	}
	return task{}, false
}

// tasksOf are the tasks of a node, each once: one that moves between two pages is in both for a moment.
func (p *Picture) tasksOf(node string) map[string]task {
	pages := p.tasks[node]
	if len(pages) == 1 {
		for _, page := range pages {
			return page
		}
	}
	all := map[string]task{}
	for _, key := range slices.Sorted(maps.Keys(pages)) {
		maps.Copy(all, pages[key])
	}
	return all
}

// recount notes which revisions the live tasks of a node are of, and drops tasks that drained to their end. A service
// whose first or last live task of a revision came or went is looked at by the next Plan.
func (p *Picture) recount(id string) {
	for t := range p.draining[id] {
		if _, ok := p.taskOf(id, t); !ok || p.statuses[id][t].ended() {
			delete(p.draining[id], t)
		}
	}
	if len(p.draining[id]) == 0 {
		delete(p.draining, id)
	}
	now := map[taskRev]bool{}
	if p.known(id) != nil {
		for name, t := range p.tasksOf(id) {
			st, reported := p.statuses[id][name]
			if reported && !st.ended() || !reported && t.desired < skepv1.TaskState_TASK_STATE_SHUTDOWN {
				now[taskRev{t.service, t.revision}] = true
			}
		}
	}
	before := p.live[id]
	if maps.Equal(before, now) {
		return
	}
	for r := range now {
		if !before[r] {
			p.countLive(r, 1)
		}
	}
	for r := range before {
		if !now[r] {
			p.countLive(r, -1)
		}
	}
	if p.live[id] = now; len(now) == 0 {
		delete(p.live, id)
	}
}

func (p *Picture) countLive(r taskRev, by int) {
	m := p.onRev[r.service]
	if m == nil {
		m = map[uint64]int{}
		p.onRev[r.service] = m
	}
	was := m[r.revision]
	if m[r.revision] += by; m[r.revision] == 0 {
		delete(m, r.revision)
	}
	if len(m) == 0 {
		delete(p.onRev, r.service)
	}
	if was == 0 || was+by == 0 {
		p.dirtyServices[r.service] = true
	}
}
