package stack

import (
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// asked is what a wanted service comes to over the one that is there (nil: none), networks and dependencies by name: with the
// versions of the stack's own secrets and configs, and with what no file says and a deploy leaves as it is.
func (p *planner) asked(want, cur *skepv1.ServiceSpec) *skepv1.ServiceSpec {
	out := proto.CloneOf(want)
	c, had := out.GetTask().GetContainer(), cur.GetTask().GetContainer()
	if c == nil {
		return out
	}
	p.files(c.Secrets, had.GetSecrets(), p.Want.Secrets)
	p.files(c.Configs, had.GetConfigs(), p.Want.Configs)
	if cur == nil {
		return out
	}
	// Somebody had all tasks replaced: that is no reason to replace them again.
	out.Task.ForceUpdate = cur.GetTask().GetForceUpdate()
	if c.RegistryAuth == "" && spec.SameRepository(c.Image, had.GetImage()) {
		c.RegistryAuth = had.GetRegistryAuth()
	}
	return out
}

// files fills in ids and versions. The stack's own files have those of the revision, unless one was asked for in the reference
// or, short of a rollback, the service was given a newer one by hand; those of others stay as the service has them.
func (p *planner) files(refs, had []*skepv1.FileReference, own []*skepv1.StackFile) {
	for _, f := range refs {
		for _, o := range own {
			if o.Name == f.Name {
				f.Id = o.Id
				if !f.Pinned {
					f.Version = o.Version
				}
			}
		}
		stacks := f.Id != ""
		for _, h := range had {
			switch {
			case h.Name != f.Name || stacks && h.Id != f.Id:
			case !stacks:
				if f.Id = h.Id; f.Version == 0 {
					f.Version = h.Version
				}
			case !f.Pinned && !h.Pinned && !p.Exact:
				f.Version = max(f.Version, h.Version)
			}
		}
	}
}

// named is a stored spec with names for the ids of its networks and of the services it depends on. What is gone keeps its id.
func (h Have) named(in *skepv1.ServiceSpec) *skepv1.ServiceSpec {
	out := proto.CloneOf(in)
	for _, n := range out.GetTask().GetNetworks() {
		if name := h.NetworkName(n.Target); name != "" {
			n.Target = name
		}
	}
	for _, d := range out.DependsOn {
		if name := h.ServiceName(d.Service); name != "" {
			d.Service = name
		}
	}
	return out
}
