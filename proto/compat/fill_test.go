package compat

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxDepth ends messages that hold one another.
const maxDepth = 4

// fill sets every field of a message to a value that only its place decides: the same in every run.
func fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() && o.Fields().Get(0) != f {
			continue // the last one set would be the only one
		}
		switch {
		case f.IsMap():
			if v, ok := one(m.NewField(f).Map().NewValue, f.MapValue(), depth); ok {
				m.Mutable(f).Map().Set(key(f.MapKey()), v)
			}
		case f.IsList():
			list := m.Mutable(f).List()
			for range 2 {
				if v, ok := one(list.NewElement, f, depth); ok {
					list.Append(v)
				}
			}
		default:
			if v, ok := one(func() protoreflect.Value { return m.NewField(f) }, f, depth); ok {
				m.Set(f, v)
			}
		}
	}
}

func key(f protoreflect.FieldDescriptor) protoreflect.MapKey {
	if f.Kind() == protoreflect.StringKind {
		return protoreflect.ValueOfString("key").MapKey()
	}
	v, _ := one(nil, f, 0)
	return v.MapKey()
}

// one is a value for a field, or for an element of it; false for a message that lies too deep.
func one(make func() protoreflect.Value, f protoreflect.FieldDescriptor, depth int) (protoreflect.Value, bool) {
	n := int64(f.Number()) + 100
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		if depth >= maxDepth {
			return protoreflect.Value{}, false
		}
		v := make()
		fill(v.Message(), depth+1)
		return v, true
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true), true
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(string(f.Name())), true
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(f.Name())), true
	case protoreflect.EnumKind:
		values := f.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(min(1, values.Len()-1)).Number()), true
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n)), true
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(n), true
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n)), true
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(n)), true
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n) + 0.5), true
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n) + 0.5), true
	}
	panic(fmt.Sprintf("a field of kind %s", f.Kind()))
}

// unknown counts the fields of a message, and of those in it, that its type does not have.
func unknown(m protoreflect.Message) int {
	n := 0
	if len(m.GetUnknown()) > 0 {
		n++
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { n += unknown(v.Message()); return true })
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				n += unknown(v.List().Get(i).Message())
			}
		case !f.IsMap() && !f.IsList() && f.Message() != nil:
			n += unknown(v.Message())
		}
		return true
	})
	return n
}

// filled is an instance of a type.
func filled(t protoreflect.MessageType) proto.Message {
	m := t.New()
	fill(m, 0)
	return m.Interface()
}
