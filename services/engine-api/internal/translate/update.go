package translate

import (
	"reflect"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// UpdateFromDocker is what becomes of a service's spec when a client sends it back changed. The client was shown
// ServiceSpecToDocker of the current one, as far as its version of the API goes: what it sends is compared with that, and what it did
// not change stays as it is, with all that Docker cannot say (readiness, schedules, the version of a secret).
func UpdateFromDocker(current *skepv1.ServiceSpec, in swarm.ServiceSpec, networks Networks, v Version) (*skepv1.ServiceSpec, []string, error) {
	shown := ServiceSpecToDocker(current)
	hidden := downgrade(&shown, v)
	var warn []string
	for _, f := range downgrade(&in, v) {
		if !slices.ContainsFunc(hidden, func(o taken) bool { return reflect.DeepEqual(f, o) }) {
			warn = append(warn, f.name+" is left as it is: the version of the API that the client speaks does not have it")
		}
	}
	want, more, err := ServiceFromDocker(in, networks)
	if err != nil {
		return nil, nil, err
	}
	base, _, err := ServiceFromDocker(shown, nil)
	if err != nil {
		return nil, nil, err
	}
	if want.Name == "" {
		want.Name = base.Name
	}
	if want.Name != current.GetName() {
		return nil, nil, unsupported("renaming services is not supported")
	}
	unseen := spec.Mode(base) != spec.Mode(current) // the client's version has no jobs
	if spec.Mode(want) != spec.Mode(base) || unseen && !proto.Equal(want.Mode, base.Mode) {
		return nil, nil, unsupported("service mode change is not allowed")
	}
	// Where one of them says nothing, what it means is compared.
	out := proto.CloneOf(current)
	for _, s := range []*skepv1.ServiceSpec{base, want, out} {
		spec.Defaults(s)
	}
	overlay(base.ProtoReflect(), want.ProtoReflect(), out.ProtoReflect())
	return out, append(warn, more...), nil
}
