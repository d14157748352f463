package spec

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// Merge does to a service's spec as it is now (cur) what made want of base, so that several people may change one service
// at a time. Lists whose elements have a key (a mount's target, a variable's name) are merged by it, maps by theirs; a command
// line is one value. What both changed, and not alike, is a conflict: the error names the field, never a value. None of the
// three is changed.
func Merge(base, want, cur *skepv1.ServiceSpec) (*skepv1.ServiceSpec, error) {
	out := proto.CloneOf(cur)
	m := merger{}
	m.message(base.ProtoReflect(), proto.CloneOf(want).ProtoReflect(), out.ProtoReflect(), "")
	if len(m.conflicts) > 0 {
		return nil, fault.Conflict("service %s was changed by somebody else at the same time: %s; look at what it is now, then try again", cur.Name, strings.Join(m.conflicts, ", "))
	}
	return out, nil
}

type merger struct{ conflicts []string }

func (m *merger) conflict(path string) { m.conflicts = append(m.conflicts, path) }

// message merges into cur. A message that base does not have is an empty one.
func (m *merger) message(base, want, cur protoreflect.Message, path string) {
	fields := want.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		b, w, c := base.Get(f), want.Get(f), cur.Get(f)
		hadB, hasW, hasC := base.Has(f), want.Has(f), cur.Has(f)
		if hadB == hasW && b.Equal(w) {
			continue // not changed by whom we merge
		}
		if hasW == hasC && w.Equal(c) {
			continue // changed alike
		}
		at := join(path, title(f))
		switch {
		case f.IsMap():
			m.mapping(b.Map(), w.Map(), cur.Mutable(f).Map(), at)
			if cur.Get(f).Map().Len() == 0 {
				cur.Clear(f)
			}
		case f.IsList() && keyOf(f) != nil:
			m.list(f, b.List(), w.List(), cur, at)
		case hadB == hasC && b.Equal(c):
			if hasW {
				cur.Set(f, w)
			} else {
				cur.Clear(f)
			}
		case f.Message() != nil && !f.IsList() && hasW && hasC && !strings.HasPrefix(string(f.Message().FullName()), "google.protobuf."):
			m.message(b.Message(), w.Message(), cur.Mutable(f).Message(), at)
		default:
			m.conflict(at)
		}
	}
}

func (m *merger) mapping(base, want, cur protoreflect.Map, path string) {
	seen := map[any]bool{}
	step := func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		if seen[k.Interface()] {
			return true
		}
		seen[k.Interface()] = true
		same := func(a, b protoreflect.Map) bool {
			return a.Has(k) == b.Has(k) && (!a.Has(k) || a.Get(k).Equal(b.Get(k)))
		}
		switch {
		case same(base, want), same(want, cur):
		case !same(base, cur):
			m.conflict(path + " " + k.String())
		case want.Has(k):
			cur.Set(k, want.Get(k))
		default:
			cur.Clear(k)
		}
		return true
	}
	base.Range(step)
	want.Range(step)
}

// list merges elements by their keys. The order is cur's, then want's.
func (m *merger) list(f protoreflect.FieldDescriptor, base, want protoreflect.List, into protoreflect.Message, path string) {
	key := keyOf(f)
	index := func(l protoreflect.List) map[string]protoreflect.Value {
		out := make(map[string]protoreflect.Value, l.Len())
		for i := range l.Len() {
			out[key(l.Get(i))] = l.Get(i)
		}
		return out
	}
	cur := into.Get(f).List()
	b, w, c := index(base), index(want), index(cur)
	same := func(x, y map[string]protoreflect.Value, k string) bool {
		xv, inX := x[k]
		yv, inY := y[k]
		return inX == inY && (!inX || xv.Equal(yv))
	}
	var out []protoreflect.Value
	done := map[string]bool{}
	take := func(l protoreflect.List) {
		for i := range l.Len() {
			v := l.Get(i)
			k := key(v)
			if done[k] {
				continue
			}
			done[k] = true
			switch {
			case same(b, w, k), same(w, c, k):
				if v, ok := c[k]; ok {
					out = append(out, v)
				}
			case !same(b, c, k):
				m.conflict(path + " " + k)
			default:
				if v, ok := w[k]; ok {
					out = append(out, v)
				}
			}
		}
	}
	take(cur)
	take(want)
	merged := into.NewField(f)
	for _, v := range out {
		merged.List().Append(v)
	}
	if len(out) == 0 {
		into.Clear(f)
		return
	}
	into.Set(f, merged)
}

// keyOf is what tells a list's elements apart, nil for a list that is one value. What it returns is shown, so no key holds
// the value of a variable.
func keyOf(f protoreflect.FieldDescriptor) func(protoreflect.Value) string {
	if f.Message() == nil {
		switch f.Name() {
		case "env":
			return func(v protoreflect.Value) string { k, _, _ := strings.Cut(v.String(), "="); return k }
		case "groups", "hosts", "capability_add", "capability_drop", "nameservers", "search", "options", "constraints", "aliases":
			return protoreflect.Value.String
		}
		return nil
	}
	of := func(key func(proto.Message) string) func(protoreflect.Value) string {
		return func(v protoreflect.Value) string { return key(v.Message().Interface()) }
	}
	switch f.Message().Name() {
	case "Mount":
		return of(func(m proto.Message) string { return m.(*skepv1.Mount).GetTarget() })
	case "FileReference":
		return of(func(m proto.Message) string {
			r := m.(*skepv1.FileReference)
			if r.GetTarget() == "" || r.GetTarget() == r.GetName() {
				return r.GetName()
			}
			return r.GetName() + " at " + r.GetTarget()
		})
	case "NetworkAttachment":
		return of(func(m proto.Message) string { return m.(*skepv1.NetworkAttachment).GetTarget() })
	case "Ulimit":
		return of(func(m proto.Message) string { return m.(*skepv1.Ulimit).GetName() })
	case "GenericResource":
		return of(func(m proto.Message) string { return m.(*skepv1.GenericResource).GetKind() })
	case "PlacementPreference":
		return of(func(m proto.Message) string { return m.(*skepv1.PlacementPreference).GetSpread() })
	case "Dependency":
		return of(func(m proto.Message) string { return m.(*skepv1.Dependency).GetService() })
	case "PortConfig":
		return of(func(m proto.Message) string { return portName(m.(*skepv1.PortConfig)) })
	}
	return nil
}

// portName is what one service can publish once.
func portName(p *skepv1.PortConfig) string {
	proto := p.GetProtocol()
	if proto == "" {
		proto = "tcp"
	}
	name := fmt.Sprintf("%d/%s", p.GetPublishedPort(), proto)
	if p.GetPublishedPort() == 0 {
		name = fmt.Sprintf("of target %d/%s", p.GetTargetPort(), proto)
	}
	if p.GetPublishMode() == skepv1.PublishMode_PUBLISH_MODE_HOST {
		name += " on the host"
	}
	if p.GetHostIp() != "" {
		name += " at " + p.GetHostIp()
	}
	return name
}

// title is a field as people know it.
func title(f protoreflect.FieldDescriptor) string {
	return strings.ReplaceAll(string(f.Name()), "_", "-")
}

// join leaves out the messages in between that no flag is called by.
func join(path, name string) string {
	switch path {
	case "", "task", "container", "mode", "replicated", "replicated-job", "endpoint", "resources":
		return name
	}
	return path + " " + name
}
