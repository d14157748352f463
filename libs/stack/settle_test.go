package stack

import (
	"testing"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// The same in another order is the same where order says nothing, and nowhere else.
func TestSettle(t *testing.T) {
	one := func(env, args []string, nets ...string) *skepv1.StackSpec {
		s := service("a", func(s *skepv1.ServiceSpec) { s.Task.Container.Env, s.Task.Container.Args = env, args })
		for _, n := range nets {
			on(n)(s)
		}
		return &skepv1.StackSpec{Services: []*skepv1.ServiceSpec{s}}
	}
	l := func(s ...string) []string { return s }
	for _, x := range []struct {
		what      string
		want, was *skepv1.StackSpec
		same      bool
	}{
		{"env", one(l("A=1", "B=2"), nil), one(l("B=2", "A=1"), nil), true},
		{"a variable twice", one(l("A=1", "A=2"), nil), one(l("A=2", "A=1"), nil), false},
		{"another value", one(l("A=1", "B=2"), nil), one(l("B=3", "A=1"), nil), false},
		{"one more", one(l("A=1", "B=2"), nil), one(l("B=2"), nil), false},
		{"arguments", one(nil, l("a", "b")), one(nil, l("b", "a")), false},
		{"networks", one(nil, nil, "x", "y"), one(nil, nil, "y", "x"), true},
		{"one network twice", one(nil, nil, "x", "x"), one(nil, nil, "y", "x"), false},
	} {
		Settle(x.want, x.was)
		if proto.Equal(x.want, x.was) != x.same {
			t.Errorf("%s: %v", x.what, x.want)
		}
	}
	Settle(one(nil, nil), nil)
	Settle(nil, nil)
}
