package index

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// stack is a stack as stored, with what is asked for at every change of anything.
type stack struct {
	stored
	name     string
	revision uint64
	state    skepv1.StackState
}

func (x *Index) applyStackLocked(id string, e kv.Entry) {
	delete(x.stacks, id)
	var o skepv1.Stack
	if e.Deleted || proto.Unmarshal(e.Value, &o) != nil {
		return
	}
	x.stacks[strings.Clone(id)] = &stack{stored: keep(e), name: strings.Clone(o.Name), revision: o.Revision, state: o.State}
}

// Stack is the stack of that id as stored, its version filled in; nil when there is none.
func (x *Index) Stack(id string) *skepv1.Stack {
	x.mu.RLock()
	s := x.stacks[id]
	x.mu.RUnlock()
	o := &skepv1.Stack{}
	if s == nil || proto.Unmarshal(s.raw, o) != nil {
		return nil
	}
	if o.Meta == nil {
		o.Meta = &skepv1.Meta{Id: id}
	}
	o.Meta.Version = s.rev
	return o
}

// Stacks are all stacks, by name.
func (x *Index) Stacks() []Named {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]Named, 0, len(x.stacks))
	for id, s := range x.stacks {
		out = append(out, Named{ID: id, Name: s.name})
	}
	slices.SortFunc(out, func(a, b Named) int {
		return cmp.Or(cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// StackByName finds a stack by its name, whatever the case.
func (x *Index) StackByName(name string) (id string, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for id, s := range x.stacks {
		if strings.EqualFold(s.name, name) {
			return id, true
		}
	}
	return "", false
}

// StackAim is which revision a stack is at and what is being done to it.
type StackAim struct {
	Revision uint64
	State    skepv1.StackState
}

// StackAims are the aims of all stacks that something is to be done to, by id.
func (x *Index) StackAims() map[string]StackAim {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[string]StackAim{}
	for id, s := range x.stacks {
		if s.state != skepv1.StackState_STACK_STATE_DEPLOYED {
			out[id] = StackAim{s.revision, s.state}
		}
	}
	return out
}

// StackRevision is one revision of a stack, nil when it is not kept.
func (x *Index) StackRevision(stack string, number uint64) *skepv1.StackRevision {
	x.mu.RLock()
	s := rawLocked(x.stackRevs[stack], number)
	x.mu.RUnlock()
	out := &skepv1.StackRevision{}
	if s.rev == 0 || proto.Unmarshal(s.raw, out) != nil {
		return nil
	}
	return out
}

// StackRevisions are the kept revisions of a stack, oldest first.
func (x *Index) StackRevisions(stack string) []RevisionNumber {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return numbers(x.stackRevs[stack])
}

// OrphanStackRevisions are stacks that are gone but whose revisions, all written before the given time, are not.
func (x *Index) OrphanStackRevisions(beforeMs int64) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return orphans(x.stackRevs, x.stacks, beforeMs)
}
