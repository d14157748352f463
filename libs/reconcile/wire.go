package reconcile

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"skep.dev/libs/place"
)

// The records are encoded and decoded by hand, straight from and to the compact Task: a page of hundreds is on the
// path of every commit. wire_test.go holds this against the generated code.

func appendTask(b []byte, t *Task, service string) []byte {
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	at := len(b)
	b = append(b, 0, 0) // room for a two-byte length; corrected below
	b = str(b, 1, t.ID)
	b = str(b, 2, service)
	b = num(b, 3, t.Slot)
	b = num(b, 4, t.Revision)
	b = num(b, 5, uint64(t.Desired))
	b = num(b, 6, uint64(t.Created))
	b = num(b, 7, uint64(t.Verdict))
	b = num(b, 8, uint64(t.VerdictAt))
	m := t.more()
	b = str(b, 9, m.Message)
	b = str(b, 10, m.Err)
	for i := range m.Assigned {
		b = protowire.AppendTag(b, 11, protowire.BytesType)
		b = protowire.AppendBytes(b, appendGeneric(nil, &m.Assigned[i]))
	}
	b = num(b, 12, uint64(t.NotBefore))
	b = str(b, 13, m.Replaces)
	b = num(b, 14, m.Iteration)
	b = str(b, 15, m.WantsNode)
	b = num(b, 16, uint64(m.Failures))
	if m.ForHealth {
		b = num(b, 17, 1)
	}
	n := len(b) - at - 2
	if n < 1<<14 {
		// A length may be padded to two bytes: the continuation bit with a zero tail is valid protobuf.
		b[at], b[at+1] = byte(n&0x7f)|0x80, byte(n>>7)
		return b
	}
	body := append([]byte(nil), b[at+2:]...)
	return protowire.AppendBytes(b[:at], body)
}

func appendGeneric(b []byte, g *place.Generic) []byte {
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

// fields walks the fields of a message. Numbers and bytes are all there is in these.
func fields(b []byte, f func(n protowire.Number, v uint64, s []byte) error) error {
	for len(b) > 0 {
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
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(num, v, s); err != nil {
			return err
		}
	}
	return nil
}

// decodePage calls f for each record; service is its service's id. The task and its strings are f's to keep.
func decodePage(b []byte, f func(t *Task, service []byte)) error {
	return fields(b, func(n protowire.Number, _ uint64, s []byte) error {
		if n != 1 {
			return nil
		}
		t := &Task{}
		var service []byte
		err := fields(s, func(n protowire.Number, v uint64, s []byte) error {
			switch n {
			case 1:
				t.ID = string(s)
			case 2:
				service = s
			case 3:
				t.Slot = v
			case 4:
				t.Revision = v
			case 5:
				t.Desired = TaskState(v)
			case 6:
				t.Created = int64(v)
			case 7:
				t.Verdict = TaskState(v)
			case 8:
				t.VerdictAt = int64(v)
			case 12:
				t.NotBefore = int64(v)
			case 9, 10, 11, 13, 14, 15, 16, 17:
				if t.More == nil {
					t.More = &More{}
				}
				return t.More.set(n, v, s)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("decode a task record: %w", err)
		}
		f(t, service)
		return nil
	})
}

func (m *More) set(n protowire.Number, v uint64, s []byte) error {
	switch n {
	case 9:
		m.Message = string(s)
	case 10:
		m.Err = string(s)
	case 11:
		var g place.Generic
		m.Assigned = append(m.Assigned, g)
		last := &m.Assigned[len(m.Assigned)-1]
		return fields(s, func(n protowire.Number, v uint64, s []byte) error {
			switch n {
			case 1:
				last.Kind = string(s)
			case 2:
				last.Value = int64(v)
			case 3:
				last.Named = append(last.Named, string(s))
			}
			return nil
		})
	case 13:
		m.Replaces = string(s)
	case 14:
		m.Iteration = v
	case 15:
		m.WantsNode = string(s)
	case 16:
		m.Failures = uint32(v)
	case 17:
		m.ForHealth = v != 0
	}
	return nil
}
