package spec

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// MaxSize is how large a service's spec may be, bytes: well below what one message holds, which carries two of them.
const MaxSize = 256 << 10

// CheckSize refuses a spec that is too large and says which part of it is.
func CheckSize(s *skepv1.ServiceSpec) error {
	n := proto.Size(s)
	if n <= MaxSize {
		return nil
	}
	part, size := largest(s.ProtoReflect(), "service")
	hint := "make it smaller"
	switch part {
	case "env":
		longest := slices.MaxFunc(s.Task.Container.Env, func(a, b string) int { return len(a) - len(b) })
		name, _, _ := strings.Cut(longest, "=")
		part = fmt.Sprintf("env (%d variables, the longest is %s with %d bytes)", len(s.Task.Container.Env), cut(name), len(longest))
		hint = "put large values into a config (skep config create), which may have 1000 KiB"
	case "args", "command":
		hint = "put what is long into a config (skep config create), which may have 1000 KiB"
	}
	return fault.Invalid("the service spec is %d bytes, of which %d are %s: at most %d fit; %s", n, size, part, MaxSize, hint)
}

// largest names the field that takes most, looking into messages as long as one has most of it.
func largest(m protoreflect.Message, name string) (part string, size int) {
	var at protoreflect.FieldDescriptor
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if n := sizeOf(f, v); n > size {
			at, size = f, n
		}
		return true
	})
	if at == nil {
		return name, 0
	}
	if at.Message() != nil && !at.IsList() && !at.IsMap() {
		return largest(m.Get(at).Message(), title(at))
	}
	return title(at), size
}

func sizeOf(f protoreflect.FieldDescriptor, v protoreflect.Value) int {
	one := func(v protoreflect.Value) int {
		switch x := v.Interface().(type) {
		case string:
			return protowire.SizeBytes(len(x)) + 1
		case []byte:
			return protowire.SizeBytes(len(x)) + 1
		case protoreflect.Message:
			return protowire.SizeBytes(proto.Size(x.Interface())) + 1
		}
		return 8
	}
	n := 0
	switch {
	case f.IsList():
		for i := range v.List().Len() {
			n += one(v.List().Get(i))
		}
	case f.IsMap():
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			n += one(k.Value()) + one(v)
			return true
		})
	default:
		n = one(v)
	}
	return n
}
