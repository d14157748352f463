// Package record reads what the store holds of tasks, the scheduler's TaskRecord and the agents' TaskStatus, without
// building messages: a page of hundreds is on the path of every commit, and counting 100,000 tasks must not make 100,000
// objects. It is the one view of both for everybody who decodes them, and says when a task serves.
//
// Field numbers are those of object.proto; the tests hold them against the generated code.
package record

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	pb "skep.dev/proto/skep/v1"
)

// Task is a TaskRecord. Read, its texts are []byte and belong to what was read; to be written, they are strings.
type Task[S string | []byte] struct {
	ID, Service        S
	Slot, Revision     uint64
	Desired, Verdict   pb.TaskState
	Created, VerdictAt int64 // milliseconds since 1970, as all times here
	NotBefore          int64
	Message, Err       S
	Replaces           S // id of the task whose end made this one
	WantsNode          S // of an unplaced task of a global service: the node it is for
	Run                uint64
	Failures           uint32
	ForHealth          bool
	Assigned           []Generic
	Rest               S // fields that a later version added, encoded: they are written again as they were
}

// Generic is an amount of a user-defined resource that was given to a task.
type Generic struct {
	Kind  string
	Value int64
	Named []string
}

// EachTask calls f for each record of an encoded NodeTasks, in order. The record is f's until it returns. The first record
// that cannot be read ends it.
func EachTask(page []byte, f func(*Task[[]byte])) error {
	var t Task[[]byte]
	return fields(page, func(n protowire.Number, _ uint64, s, _ []byte) error {
		if n != 1 || s == nil {
			return nil
		}
		t = Task[[]byte]{}
		if err := fields(s, t.set); err != nil {
			return fmt.Errorf("decode a task record: %w", err)
		}
		f(&t)
		return nil
	})
}

func (t *Task[S]) set(n protowire.Number, v uint64, s, field []byte) error {
	if s != nil {
		return t.setText(n, s, field)
	}
	switch n {
	case 3:
		t.Slot = v
	case 4:
		t.Revision = v
	case 5:
		t.Desired = pb.TaskState(v)
	case 6:
		t.Created = int64(v)
	case 7:
		t.Verdict = pb.TaskState(v)
	case 8:
		t.VerdictAt = int64(v)
	case 12:
		t.NotBefore = int64(v)
	case 14:
		t.Run = v
	case 16:
		t.Failures = uint32(v)
	case 17:
		t.ForHealth = v != 0
	default:
		t.Rest = S(append([]byte(t.Rest), field...))
	}
	return nil
}

func (t *Task[S]) setText(n protowire.Number, s, field []byte) error {
	switch n {
	case 1:
		t.ID = S(s)
	case 2:
		t.Service = S(s)
	case 9:
		t.Message = S(s)
	case 10:
		t.Err = S(s)
	case 11:
		t.Assigned = append(t.Assigned, Generic{})
		return fields(s, t.Assigned[len(t.Assigned)-1].set)
	case 13:
		t.Replaces = S(s)
	case 15:
		t.WantsNode = S(s)
	default:
		t.Rest = S(append([]byte(t.Rest), field...))
	}
	return nil
}

func (g *Generic) set(n protowire.Number, v uint64, s, _ []byte) error {
	switch {
	case n == 1 && s != nil:
		g.Kind = string(s)
	case n == 2 && s == nil:
		g.Value = int64(v)
	case n == 3 && s != nil:
		g.Named = append(g.Named, string(s))
	}
	return nil
}

// AppendTask appends a record to an encoded NodeTasks.
func AppendTask(page []byte, t *Task[string]) []byte {
	b := protowire.AppendTag(page, 1, protowire.BytesType)
	at := len(b)
	b = append(b, 0, 0) // room for a two-byte length; corrected below
	b = str(b, 1, t.ID)
	b = str(b, 2, t.Service)
	b = num(b, 3, t.Slot)
	b = num(b, 4, t.Revision)
	b = num(b, 5, uint64(t.Desired))
	b = num(b, 6, uint64(t.Created))
	b = num(b, 7, uint64(t.Verdict))
	b = num(b, 8, uint64(t.VerdictAt))
	b = str(b, 9, t.Message)
	b = str(b, 10, t.Err)
	for i := range t.Assigned {
		b = protowire.AppendTag(b, 11, protowire.BytesType)
		b = protowire.AppendBytes(b, t.Assigned[i].append(nil))
	}
	b = num(b, 12, uint64(t.NotBefore))
	b = str(b, 13, t.Replaces)
	b = num(b, 14, t.Run)
	b = str(b, 15, t.WantsNode)
	b = num(b, 16, uint64(t.Failures))
	if t.ForHealth {
		b = num(b, 17, 1)
	}
	b = append(b, t.Rest...)
	n := len(b) - at - 2
	if n < 1<<14 {
		// A length may be padded to two bytes: the continuation bit with a zero tail is valid protobuf.
		b[at], b[at+1] = byte(n&0x7f)|0x80, byte(n>>7)
		return b
	}
	body := append([]byte(nil), b[at+2:]...)
	return protowire.AppendBytes(b[:at], body)
}

func (g *Generic) append(b []byte) []byte {
	b = str(b, 1, g.Kind)
	b = num(b, 2, uint64(g.Value))
	for _, n := range g.Named {
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendString(b, n)
	}
	return b
}

func str(b []byte, f protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	b = protowire.AppendTag(b, f, protowire.BytesType)
	return protowire.AppendString(b, s)
}

func num(b []byte, f protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, f, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

// fields walks the fields of a message. Numbers and bytes are all there is in these: s is nil for a number, and never for
// bytes. A field that came as the other is none that we know. field is all of it, as it is encoded.
func fields(b []byte, f func(n protowire.Number, v uint64, s, field []byte) error) error {
	for len(b) > 0 {
		field := b
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var v uint64
		var s []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			s, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
			num = 0
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(num, v, s, field[:len(field)-len(b)]); err != nil {
			return err
		}
	}
	return nil
}
