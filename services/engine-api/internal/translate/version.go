package translate

import (
	"reflect"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// Version is one of the API's.
type Version interface {
	// Before reports whether it is older than 1.minor.
	Before(minor int) bool
}

// Downgrade takes away what a version of the API has no words for, as Docker does with what clients of that version send, and
// returns the names of what it took. A field is taken from what the client was shown and from what it sends: so it stays in
// the service.
func Downgrade(s *swarm.ServiceSpec, v Version) []string {
	var names []string
	for _, f := range downgrade(s, v) {
		names = append(names, f.name)
	}
	return names
}

// taken is a field that a version does not have, with what was in it.
type taken struct {
	name  string
	value any
}

// taker takes fields of a spec that a version does not have.
type taker struct {
	v   Version
	out []taken
}

// take empties a field that came with 1.minor.
func take[T any](t *taker, minor int, name string, field *T) {
	var zero T
	v := reflect.ValueOf(field).Elem()
	if v.IsZero() || (v.Kind() == reflect.Map || v.Kind() == reflect.Slice) && v.Len() == 0 || !t.v.Before(minor) {
		return
	}
	t.out = append(t.out, taken{name, *field})
	*field = zero
}

func downgrade(s *swarm.ServiceSpec, v Version) []taken {
	t := &taker{v: v}
	take(t, 41, "Mode.ReplicatedJob", &s.Mode.ReplicatedJob)
	take(t, 41, "Mode.GlobalJob", &s.Mode.GlobalJob)
	if p := s.TaskTemplate.Placement; p != nil {
		take(t, 40, "Placement.MaxReplicas", &p.MaxReplicas)
	}
	if r := s.TaskTemplate.Resources; r != nil {
		if r.Limits != nil {
			take(t, 41, "Resources.Limits.Pids", &r.Limits.Pids)
		}
		take(t, 52, "Resources.SwapBytes", &r.SwapBytes)
		take(t, 52, "Resources.MemorySwappiness", &r.MemorySwappiness)
	}
	if c := s.TaskTemplate.ContainerSpec; c != nil {
		downgradeContainer(t, c)
	}
	return t.out
}

func downgradeContainer(t *taker, c *swarm.ContainerSpec) {
	take(t, 40, "ContainerSpec.Sysctls", &c.Sysctls)
	take(t, 41, "ContainerSpec.CapabilityAdd", &c.CapabilityAdd)
	take(t, 41, "ContainerSpec.CapabilityDrop", &c.CapabilityDrop)
	take(t, 41, "ContainerSpec.Ulimits", &c.Ulimits)
	take(t, 46, "ContainerSpec.OomScoreAdj", &c.OomScoreAdj)
	for _, r := range c.Configs {
		if r != nil {
			take(t, 40, "ContainerSpec.Configs.Runtime", &r.Runtime)
		}
	}
	for i := range c.Mounts {
		if o := c.Mounts[i].TmpfsOptions; o != nil {
			take(t, 46, "ContainerSpec.Mounts.TmpfsOptions.Options", &o.Options)
		}
	}
	if h := c.Healthcheck; h != nil {
		take(t, 44, "ContainerSpec.Healthcheck.StartInterval", &h.StartInterval)
	}
	if p := c.Privileges; p != nil {
		if p.CredentialSpec != nil {
			take(t, 40, "ContainerSpec.Privileges.CredentialSpec.Config", &p.CredentialSpec.Config)
			if *p.CredentialSpec == (swarm.CredentialSpec{}) && t.v.Before(40) {
				p.CredentialSpec = nil
			}
		}
		take(t, 44, "ContainerSpec.Privileges.Seccomp", &p.Seccomp)
		take(t, 44, "ContainerSpec.Privileges.AppArmor", &p.AppArmor)
		take(t, 44, "ContainerSpec.Privileges.NoNewPrivileges", &p.NoNewPrivileges)
	}
}

// CreateFromDocker is ServiceFromDocker for a client of a version. What that version has no words for is left out, as Docker does it,
// and the warnings say so. A job is none of that: as a service it would never end.
func CreateFromDocker(in swarm.ServiceSpec, networks Networks, v Version) (spec *skepv1.ServiceSpec, warn []string, err error) {
	if (in.Mode.ReplicatedJob != nil || in.Mode.GlobalJob != nil) && v.Before(41) {
		return nil, nil, fault.Invalid("jobs need version 1.41 of the API: use a newer client, or leave DOCKER_API_VERSION unset")
	}
	for _, field := range Downgrade(&in, v) {
		warn = append(warn, field+" is left out: the version of the API that the client speaks does not have it")
	}
	spec, more, err := ServiceFromDocker(in, networks)
	return spec, append(warn, more...), err
}
