package translate

import (
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
	var taken []string
	take := func(minor int, field string, had bool, away func()) {
		if had && v.Before(minor) {
			away()
			taken = append(taken, field)
		}
	}
	t := &s.TaskTemplate
	take(41, "Mode.ReplicatedJob", s.Mode.ReplicatedJob != nil, func() { s.Mode.ReplicatedJob = nil })
	take(41, "Mode.GlobalJob", s.Mode.GlobalJob != nil, func() { s.Mode.GlobalJob = nil })
	if p := t.Placement; p != nil {
		take(40, "Placement.MaxReplicas", p.MaxReplicas != 0, func() { p.MaxReplicas = 0 })
	}
	if r := t.Resources; r != nil {
		if l := r.Limits; l != nil {
			take(41, "Resources.Limits.Pids", l.Pids != 0, func() { l.Pids = 0 })
		}
		take(52, "Resources.SwapBytes", r.SwapBytes != nil, func() { r.SwapBytes = nil })
		take(52, "Resources.MemorySwappiness", r.MemorySwappiness != nil, func() { r.MemorySwappiness = nil })
	}
	if c := t.ContainerSpec; c != nil {
		downgradeContainer(c, take)
	}
	return taken
}

func downgradeContainer(c *swarm.ContainerSpec, take func(minor int, field string, had bool, away func())) {
	take(40, "ContainerSpec.Sysctls", len(c.Sysctls) > 0, func() { c.Sysctls = nil })
	take(41, "ContainerSpec.CapabilityAdd", len(c.CapabilityAdd) > 0, func() { c.CapabilityAdd = nil })
	take(41, "ContainerSpec.CapabilityDrop", len(c.CapabilityDrop) > 0, func() { c.CapabilityDrop = nil })
	take(41, "ContainerSpec.Ulimits", len(c.Ulimits) > 0, func() { c.Ulimits = nil })
	take(46, "ContainerSpec.OomScoreAdj", c.OomScoreAdj != 0, func() { c.OomScoreAdj = 0 })
	for _, r := range c.Configs {
		if r != nil {
			take(40, "ContainerSpec.Configs.Runtime", r.Runtime != nil, func() { r.Runtime = nil })
		}
	}
	for i := range c.Mounts {
		if o := c.Mounts[i].TmpfsOptions; o != nil {
			take(46, "ContainerSpec.Mounts.TmpfsOptions.Options", len(o.Options) > 0, func() { o.Options = nil })
		}
	}
	if h := c.Healthcheck; h != nil {
		take(44, "ContainerSpec.Healthcheck.StartInterval", h.StartInterval != 0, func() { h.StartInterval = 0 })
	}
	if p := c.Privileges; p != nil {
		if p.CredentialSpec != nil {
			take(40, "ContainerSpec.Privileges.CredentialSpec.Config", p.CredentialSpec.Config != "", func() {
				if p.CredentialSpec.Config = ""; *p.CredentialSpec == (swarm.CredentialSpec{}) {
					p.CredentialSpec = nil
				}
			})
		}
		take(44, "ContainerSpec.Privileges.Seccomp", p.Seccomp != nil, func() { p.Seccomp = nil })
		take(44, "ContainerSpec.Privileges.AppArmor", p.AppArmor != nil, func() { p.AppArmor = nil })
		take(44, "ContainerSpec.Privileges.NoNewPrivileges", p.NoNewPrivileges, func() { p.NoNewPrivileges = false })
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
