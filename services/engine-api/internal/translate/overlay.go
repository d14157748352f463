package translate

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	skepv1 "skep.dev/proto/skep/v1"
)

// overlay does to cur what made want of base. Where want and base are alike, cur stays; everything else is want's, down to single
// fields of messages, of elements of a list too, if they have a key. Nothing conflicts: cur differs from base in what want cannot
// say, and in nothing else.
func overlay(base, want, cur protoreflect.Message) {
	fields := want.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if base.Has(f) == want.Has(f) && base.Get(f).Equal(want.Get(f)) {
			continue
		}
		switch {
		case f.IsList() && keyOf(f) != nil:
			overlayList(f, base, want, cur)
		case f.Message() != nil && !f.IsList() && !f.IsMap() && whole(f.Message()) && want.Has(f) && cur.Has(f):
			overlay(base.Get(f).Message(), want.Get(f).Message(), cur.Mutable(f).Message())
		case want.Has(f):
			cur.Set(f, want.Get(f))
		default:
			cur.Clear(f)
		}
	}
}

// whole tells messages of fields of their own from those that are one value, such as a duration.
func whole(m protoreflect.MessageDescriptor) bool {
	return !strings.HasPrefix(string(m.FullName()), "google.protobuf.")
}

// overlayList takes the elements of want, in its order, each laid over what has the same key in cur.
func overlayList(f protoreflect.FieldDescriptor, base, want, cur protoreflect.Message) {
	b, c := index(f, base.Get(f).List()), index(f, cur.Get(f).List())
	out := cur.NewField(f)
	l := want.Get(f).List()
	keys := keysOf(f, l)
	for i := range l.Len() {
		w := l.Get(i).Message()
		inBase, hadBase := b[keys[i]]
		inCur, hadCur := c[keys[i]]
		if !hadBase || !hadCur {
			out.List().Append(protoreflect.ValueOfMessage(w))
			continue
		}
		one := proto.Clone(inCur.Interface()).ProtoReflect()
		overlay(inBase, w, one)
		out.List().Append(protoreflect.ValueOfMessage(one))
	}
	if l.Len() == 0 {
		cur.Clear(f)
		return
	}
	cur.Set(f, out)
}

func index(f protoreflect.FieldDescriptor, l protoreflect.List) map[string]protoreflect.Message {
	out := make(map[string]protoreflect.Message, l.Len())
	for i, k := range keysOf(f, l) {
		out[k] = l.Get(i).Message()
	}
	return out
}

// keysOf are the elements' keys, each once: the second of a kind has a number.
func keysOf(f protoreflect.FieldDescriptor, l protoreflect.List) []string {
	key := keyOf(f)
	seen := map[string]int{}
	out := make([]string, l.Len())
	for i := range out {
		k := key(l.Get(i).Message().Interface())
		out[i] = fmt.Sprintf("%s\x00%d", k, seen[k])
		seen[k]++
	}
	return out
}

// keyOf is what an element of a list is known by, in fields that Docker has; nil for lists whose elements Docker says whole.
func keyOf(f protoreflect.FieldDescriptor) func(proto.Message) string {
	if f.Message() == nil {
		return nil
	}
	switch f.Message().Name() {
	case "Mount":
		return func(m proto.Message) string { return m.(*skepv1.Mount).GetTarget() }
	case "FileReference":
		return func(m proto.Message) string {
			r := m.(*skepv1.FileReference)
			if r.GetId() != "" {
				return r.GetId() + "\x00" + r.GetTarget()
			}
			return "\x00" + r.GetName() + "\x00" + r.GetTarget()
		}
	case "NetworkAttachment":
		return func(m proto.Message) string { return m.(*skepv1.NetworkAttachment).GetTarget() }
	case "PortConfig":
		return func(m proto.Message) string {
			p := m.(*skepv1.PortConfig)
			return fmt.Sprint(p.GetTargetPort(), "/", p.GetProtocol(), "/", p.GetPublishedPort(), "/", p.GetPublishMode())
		}
	}
	return nil
}
