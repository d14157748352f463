package record

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	pb "skep.dev/proto/skep/v1"
)

// Condition is how a task was seen to be.
type Condition struct {
	State    pb.TaskState
	Health   pb.HealthState
	NotReady bool
	Served   bool // it has served at some time
}

// ConditionOf is the condition that a status tells.
func ConditionOf(st *pb.TaskStatus) Condition {
	return Condition{st.GetState(), st.GetHealth(), st.GetNotReady(), st.GetServedUnixMs() != 0}
}

// Serves reports whether clients may be led to the task: it runs, its health check, if it has one, says that it is well,
// and nothing says that it is not ready.
func (c Condition) Serves() bool {
	return c.State == pb.TaskState_TASK_STATE_RUNNING && !c.NotReady &&
		c.Health != pb.HealthState_HEALTH_STATE_STARTING && c.Health != pb.HealthState_HEALTH_STATE_UNHEALTHY
}

// Begins reports whether the task runs and has never served: what it is to replace may not go yet, and Swarm would call
// it starting. One that served and is not well now does not begin again.
func (c Condition) Begins() bool {
	return c.State == pb.TaskState_TASK_STATE_RUNNING && !c.Served && !c.Serves()
}

// Status is a TaskStatus, as far as more than one reader wants it. Its texts belong to what was read.
type Status struct {
	Condition
	ID           []byte
	Addresses    [][]byte // CIDRs, skep0 first
	Networks     []Address
	HealthOutput []byte
}

// Address is a task's on a network: CIDRs, the second empty without IPv6.
type Address struct{ Network, V4, V6 []byte }

// EachStatus calls f for each status of an encoded NodeStatus, in order. The status is f's until it returns. The first one
// that cannot be read ends it.
func EachStatus(report []byte, f func(*Status)) error {
	var st Status
	return fields(report, func(n protowire.Number, _ uint64, s, _ []byte) error {
		if n != 5 || s == nil {
			return nil
		}
		st = Status{Addresses: st.Addresses[:0], Networks: st.Networks[:0]}
		if err := fields(s, st.set); err != nil {
			return fmt.Errorf("decode a task status: %w", err)
		}
		f(&st)
		return nil
	})
}

func (st *Status) set(n protowire.Number, v uint64, s, _ []byte) error {
	if s != nil {
		return st.setText(n, s)
	}
	switch n {
	case 2:
		st.State = pb.TaskState(v)
	case 10:
		st.Health = pb.HealthState(v)
	case 14:
		st.NotReady = v != 0
	case 17:
		st.Served = v != 0
	}
	return nil
}

func (st *Status) setText(n protowire.Number, s []byte) error {
	switch n {
	case 1:
		st.ID = s
	case 12:
		st.Addresses = append(st.Addresses, s)
	case 13:
		st.Networks = append(st.Networks, Address{})
		return fields(s, st.Networks[len(st.Networks)-1].set)
	case 15:
		st.HealthOutput = s
	}
	return nil
}

func (a *Address) set(n protowire.Number, _ uint64, s, _ []byte) error {
	switch {
	case s == nil:
	case n == 1:
		a.Network = s
	case n == 2:
		a.V4 = s
	case n == 3:
		a.V6 = s
	}
	return nil
}
