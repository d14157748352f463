package api

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"skep.dev/libs/mask"
	pb "skep.dev/proto/skep/v1"
)

// TestViewersAreToldNoValues goes through what every verb that viewers may ask can answer, whatever it holds: no value of an
// environment variable, no credentials, nothing of secrets and configs but names, nobody's address.
func TestViewersAreToldNoValues(t *testing.T) {
	const value = "hunter2"
	found := map[protoreflect.FullName]int{}
	var fill func(m protoreflect.Message, depth int)
	fill = func(m protoreflect.Message, depth int) {
		switch x := m.Interface().(type) {
		case *pb.ContainerSpec:
			x.Env, x.RegistryAuth, x.Args = []string{"A=" + value}, value, []string{"--password", value}
			found[m.Descriptor().FullName()]++
			return
		case *pb.Secret:
			x.Spec = &pb.SecretSpec{Name: "name", Labels: map[string]string{value: value}}
			x.Versions, x.Uses = []*pb.SecretVersion{{Author: value, AuthorAddress: value}}, []*pb.SecretUse{{ServiceName: value}}
			found[m.Descriptor().FullName()]++
			return
		case *pb.Event:
			x.Kind, x.Actor, x.Address, x.Attributes = "secret", "user-"+value, value, map[string]string{"version": value}
			found[m.Descriptor().FullName()]++
			return
		case *pb.Revision:
			x.AuthorAddress = value
		case *pb.Stack:
			x.AuthorAddress = value
			found[m.Descriptor().FullName()]++
		case *pb.StackRevision:
			x.AuthorAddress = value
		case *pb.StackFile:
			x.Name, x.Labels = "name", map[string]string{value: value}
			found[m.Descriptor().FullName()]++
			return
		}
		if depth > 8 {
			return
		}
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			switch {
			case f.IsMap():
				if f.MapKey().Kind() == protoreflect.StringKind && f.MapValue().Message() != nil {
					v := m.NewField(f).Map().NewValue()
					fill(v.Message(), depth+1)
					m.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), v)
				}
			case f.Message() == nil:
			case f.IsList():
				fill(m.Mutable(f).List().AppendMutable().Message(), depth+1)
			default:
				fill(m.Mutable(f).Message(), depth+1)
			}
		}
	}
	for _, v := range All() {
		if v.Callers != Viewers {
			continue
		}
		m := v.Reply.New()
		fill(m, 0)
		if text := protojson.Format(mask.ForViewer(m.Interface())); strings.Contains(text, value) {
			t.Errorf("%s tells a viewer:\n%s", v.Subject, text)
		}
	}
	for _, name := range []protoreflect.FullName{"skep.v1.ContainerSpec", "skep.v1.Secret", "skep.v1.Event", "skep.v1.Stack", "skep.v1.StackFile"} {
		if found[name] == 0 {
			t.Errorf("no answer to viewers holds a %s: nothing was tried", name)
		}
	}
}
