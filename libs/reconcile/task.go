package reconcile

import (
	"skep.dev/libs/place"
	specs "skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// TaskState is the wire's, in two bytes.
type TaskState int16

// The states used here; their order is their meaning.
const (
	New      = TaskState(skepv1.TaskState_TASK_STATE_NEW)
	Pending  = TaskState(skepv1.TaskState_TASK_STATE_PENDING)
	Assigned = TaskState(skepv1.TaskState_TASK_STATE_ASSIGNED)
	Ready    = TaskState(skepv1.TaskState_TASK_STATE_READY)
	Starting = TaskState(skepv1.TaskState_TASK_STATE_STARTING)
	Running  = TaskState(skepv1.TaskState_TASK_STATE_RUNNING)
	Complete = TaskState(skepv1.TaskState_TASK_STATE_COMPLETE)
	Shutdown = TaskState(skepv1.TaskState_TASK_STATE_SHUTDOWN)
	Failed   = TaskState(skepv1.TaskState_TASK_STATE_FAILED)
	Rejected = TaskState(skepv1.TaskState_TASK_STATE_REJECTED)
	Remove   = TaskState(skepv1.TaskState_TASK_STATE_REMOVE)
	Orphaned = TaskState(skepv1.TaskState_TASK_STATE_ORPHANED)
)

// Task is a TaskRecord and what the agent says of it, small: a cluster has up to a million.
type Task struct {
	ID        string
	Service   *Service
	Page      *Page // where its record stands
	Slot      uint64
	Revision  uint64
	Created   int64 // unix ms, as all times here
	VerdictAt int64
	NotBefore int64
	SeenAt    int64
	DesiredAt uint64 // revision of the page when Desired was first seen, to compare with what an agent applied
	Desired   TaskState
	Verdict   TaskState
	Seen      TaskState // the agent's report, New = none
	Reported  bool      // the agent's newest report names it
	served    bool      // it was seen running and not unhealthy
	up, well  bool      // by the agent's report it runs, and it is healthy and ready
	booked    booking   // what its node's usage holds of it
	inService int32     // index in Service.tasks
	ran       uint32    // ms it ran, of one that ended; 0 = unknown
	More      *More     // what few tasks have
}

// More is the part of a record that most tasks do not need.
type More struct {
	Message, Err string
	Replaces     string
	WantsNode    string
	Iteration    uint64
	Assigned     []place.Generic
	Failures     uint32 // in a row, of its unit, before it was made
	ForHealth    bool   // its unit is down for its health until one serves
	Rest         string // what a later version added to the record, encoded
}

var noMore More

func (t *Task) more() *More {
	if t.More == nil {
		return &noMore
	}
	return t.More
}

// edit gives t a More of its own (copies share one until then).
func (t *Task) edit() *More {
	m := *t.more()
	t.More = &m
	return t.More
}

// Node is where the task was placed, nil while it was not.
func (t *Task) Node() *Node {
	if t.Page == nil {
		return nil
	}
	return t.Page.Node
}

// State is what a user sees: the scheduler's verdict, else the agent's report, else whether it has a node.
func (t *Task) State() TaskState {
	switch {
	case t.Verdict != New:
		return t.Verdict
	case t.Seen != New:
		return t.Seen
	case t.Node() != nil:
		return Assigned
	}
	return Pending
}

// wanted: it is meant to run (or prepare, or complete) and has not ended.
func (t *Task) wanted() bool { return t.Desired <= Complete && t.State() <= Running }

// held: it may still occupy its node: resources, ports, a container.
func (t *Task) held() bool {
	n := t.Node()
	return n != nil && n.Exists && !t.quiet()
}

// quiet: the agent says that it ended, or no longer knows it although it has read that it should stop.
func (t *Task) quiet() bool {
	if t.Seen > Running {
		return true
	}
	n := t.Node()
	return t.Desired > Complete && n != nil && !t.Reported && n.hasStatus && t.DesiredAt != 0 && n.applied >= t.DesiredAt
}

// stopped: it will not run any more, as far as anyone can know; a node that is down cannot be asked.
func (t *Task) stopped() bool {
	n := t.Node()
	return n == nil || n.lost() || t.Verdict == Orphaned || t.quiet()
}

func (s TaskState) String() string { return specs.Word(skepv1.TaskState(s)) }
