package reconcile

import (
	"slices"

	"skep.dev/libs/place"
)

// usage is what tasks take of a node. It is kept task by task as records and reports change, so that a plan costs the
// same however many tasks of other services its nodes run; where a difference is not known the node is stale, and all
// its tasks are read anew.
type usage struct {
	cpu, mem         int64
	wantCPU, wantMem int64 // of those that are meant to run
	tasks, held      int
	generic          []place.Generic // free
	ports            []place.Port
	over             bool // wanted tasks reserve more than there is: capacity shrank
}

// booking says what a node's usage holds of a task.
type booking uint8

const (
	bookHeld     booking = 1 << iota // it may occupy its node
	bookWanted                       // it is meant to run there
	bookPrepared                     // it waits, prepared, to replace another task
	bookBeside                       // that one is booked here too: only what is needed beyond it counts
)

// usage of a node.
func (s *State) usage(n *Node) *usage {
	if n.stale {
		s.recount(n)
	}
	return &n.use
}

// recount reads all the node's tasks.
func (s *State) recount(n *Node) {
	n.stale = false
	n.use = usage{generic: slices.Clone(n.generic)}
	clear(n.preps)
	if n.page != nil {
		for _, t := range n.page.Tasks {
			if t.booked = 0; t.held() {
				t.booked = bookHeld
			}
		}
		for _, t := range n.page.Tasks {
			if t.booked != 0 {
				s.enter(n, t, s.booking(t))
			}
		}
	}
	n.weigh()
}

// book brings the node's usage up to what a task takes of it now.
func (s *State) book(t *Task) {
	if n := t.Node(); n != nil && !n.stale {
		s.rebook(n, t, s.booking(t))
	}
}

// unbook takes a task out of its node's usage: before its record changes, moves or goes.
func (s *State) unbook(t *Task) {
	if n := t.Node(); n != nil && !n.stale {
		s.rebook(n, t, 0)
	}
	t.booked = 0
}

func (s *State) booking(t *Task) booking {
	if !t.held() {
		return 0
	}
	b := bookHeld
	if t.wanted() {
		b |= bookWanted
	}
	if t.Desired == Ready && t.more().Replaces != "" {
		b |= bookPrepared
		if old := s.tasks[t.More.Replaces]; old != nil && old.Node() == t.Node() && old.booked != 0 {
			b |= bookBeside
		}
	}
	return b
}

func (s *State) rebook(n *Node, t *Task, b booking) {
	was := t.booked
	if was == b {
		return
	}
	if was != 0 {
		if !n.use.leave(t, s.tasks[t.more().Replaces]) {
			n.stale = true
			return
		}
		if was&bookPrepared != 0 {
			n.unprepare(t)
		}
	}
	if t.booked = b; b != 0 {
		s.enter(n, t, b)
	}
	if (was == 0) != (b == 0) && len(n.preps) > 0 {
		for _, next := range slices.Clone(n.preps[t.ID]) {
			s.book(next) // it stands beside t, or no longer
		}
	}
	n.weigh()
}

func (s *State) enter(n *Node, t *Task, b booking) {
	t.booked = b
	n.use.enter(t, s.tasks[t.more().Replaces])
	if b&bookPrepared != 0 {
		if n.preps == nil {
			n.preps = map[string][]*Task{}
		}
		n.preps[t.More.Replaces] = append(n.preps[t.More.Replaces], t)
	}
}

func (n *Node) unprepare(t *Task) {
	id := t.More.Replaces
	rest := slices.DeleteFunc(n.preps[id], func(o *Task) bool { return o == t })
	if n.preps[id] = rest; len(rest) == 0 {
		delete(n.preps, id)
	}
}

func (n *Node) weigh() {
	u := &n.use
	u.over = u.wantCPU > 0 && n.cpu > 0 && u.wantCPU > n.cpu || u.wantMem > 0 && n.mem > 0 && u.wantMem > n.mem
}

// enter adds what a task takes, by its booking. One that waits, prepared, for the one it replaces on the same node takes
// that one's place and does not count twice.
func (u *usage) enter(t, replaces *Task) {
	u.count(t, replaces, 1)
	u.ports = append(u.ports, t.ports(replaces)...)
	u.generic = subtract(u.generic, t.assigned(replaces))
}

// leave undoes enter. Not ok: what would be left is not known.
func (u *usage) leave(t, replaces *Task) (ok bool) {
	if len(t.assigned(replaces)) > 0 {
		return false // the order of what comes back decides who gets it next
	}
	for _, port := range t.ports(replaces) {
		i := slices.Index(u.ports, port)
		if i < 0 {
			return false
		}
		u.ports = slices.Delete(u.ports, i, i+1)
	}
	u.count(t, replaces, -1)
	return true
}

func (u *usage) count(t, replaces *Task, sign int64) {
	r := t.request()
	wanted := t.booked&bookWanted != 0
	if wanted {
		u.tasks += int(sign)
	}
	if t.booked&bookBeside != 0 {
		// Of the two the larger counts, so that nobody takes what the new one will need.
		was := replaces.request()
		u.cpu += sign * max(0, r.CPU-was.CPU)
		u.mem += sign * max(0, r.Memory-was.Memory)
		return
	}
	u.held += int(sign)
	u.cpu += sign * r.CPU
	u.mem += sign * r.Memory
	if wanted {
		u.wantCPU += sign * r.CPU
		u.wantMem += sign * r.Memory
	}
}

// ports the task takes beyond those of the one it stands beside.
func (t *Task) ports(replaces *Task) []place.Port {
	ports := t.request().Ports
	if t.booked&bookBeside == 0 || len(ports) == 0 {
		return ports
	}
	was := replaces.request().Ports
	return slices.DeleteFunc(slices.Clone(ports), func(p place.Port) bool { return slices.Contains(was, p) })
}

// assigned are the generic resources the task takes, as ports.
func (t *Task) assigned(replaces *Task) []place.Generic {
	own := t.more().Assigned
	if t.booked&bookBeside == 0 || len(own) == 0 {
		return own
	}
	return beyond(own, replaces.more().Assigned)
}

// beyond is what a has that b has not.
func beyond(a, b []place.Generic) []place.Generic {
	out := slices.Clone(a)
	for i := range out {
		for k := range b {
			if b[k].Kind == out[i].Kind {
				out[i].Value = max(0, out[i].Value-b[k].Value)
			}
		}
	}
	return out
}

func subtract(free, taken []place.Generic) []place.Generic {
	for i := range taken {
		for k := range free {
			if free[k].Kind != taken[i].Kind {
				continue
			}
			free[k].Value -= taken[i].Value
			if len(taken[i].Named) > 0 {
				free[k].Named = slices.DeleteFunc(slices.Clone(free[k].Named), func(s string) bool { return slices.Contains(taken[i].Named, s) })
			}
		}
	}
	return free
}
