package stack

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	skepv1 "skep.dev/proto/skep/v1"
)

// anyOrder are the lists of a service whose order says nothing.
var anyOrder = []protoreflect.Name{
	"env", "mounts", "secrets", "configs", "networks", "aliases", "ports", "depends_on", "constraints", "capability_add", "capability_drop",
}

// Settle gives the lists of want that have the same in another order than before the order they had, where it says nothing:
// what wrote the file, or read it, may not keep an order, and no task is replaced for that.
func Settle(want, was *skepv1.StackSpec) {
	for _, s := range want.GetServices() {
		for _, w := range was.GetServices() {
			if s.Name == w.Name {
				settle(s.ProtoReflect(), w.ProtoReflect())
			}
		}
	}
}

func settle(want, was protoreflect.Message) {
	fields := want.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case !want.Has(f) || !was.Has(f) || f.IsMap():
		case f.IsList():
			if slices.Contains(anyOrder, f.Name()) {
				settleList(f, want.Get(f).List(), was.Get(f).List())
			}
		case f.Message() != nil:
			settle(want.Mutable(f).Message(), was.Get(f).Message())
		}
	}
}

func settleList(f protoreflect.FieldDescriptor, want, was protoreflect.List) {
	if want.Len() != was.Len() {
		return
	}
	used := make([]bool, want.Len())
	var names []string
	for i := range was.Len() {
		found := false
		for j := range want.Len() {
			if !used[j] && want.Get(j).Equal(was.Get(i)) {
				used[j], found = true, true
				break
			}
		}
		if !found {
			return
		}
		if f.Name() == "env" { // of a variable that is set twice the last one counts
			name, _, _ := strings.Cut(was.Get(i).String(), "=")
			if slices.Contains(names, name) {
				return
			}
			names = append(names, name)
		}
	}
	for i := range was.Len() {
		v := was.Get(i)
		if f.Message() != nil {
			v = protoreflect.ValueOfMessage(proto.Clone(v.Message().Interface()).ProtoReflect())
		}
		want.Set(i, v)
	}
}
