package specflag

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// Apply lays the flags of `service update` over a service's current spec. What no flag names stays as it is.
func (f *Flags) Apply(s *skepv1.ServiceSpec) error {
	if s.Task == nil {
		s.Task = &skepv1.TaskSpec{}
	}
	if s.Task.Container == nil {
		s.Task.Container = &skepv1.ContainerSpec{}
	}
	t := s.Task
	f.absent = nil
	f.noteAbsent(s)
	if err := f.applyMode(s); err != nil {
		return err
	}
	if err := f.applyContainer(t.Container); err != nil {
		return err
	}
	s.Labels = applyMap(s.Labels, f.labels)
	f.resources(t)
	if err := f.applyGeneric(t); err != nil {
		return err
	}
	f.restart(t)
	f.applyPlacement(t)
	if err := f.applyNetworks(t); err != nil {
		return err
	}
	f.logging(t)
	if job(s) && (f.up.touched() || f.back.touched()) {
		return invalidf("update and rollback configuration is not supported for jobs")
	}
	s.Update, s.Rollback = f.up.merge(s.Update), f.back.merge(s.Rollback)
	if f.healthBudget.set {
		s.HealthBudget = f.healthBudget.val
	}
	if f.onPartition.set {
		s.OnPartition = f.onPartition.val
	}
	if err := f.applyEndpoint(s); err != nil {
		return err
	}
	var err error
	if s.Schedule, err = f.schedule.apply(s.Schedule); err != nil {
		return err
	}
	if err := f.applyDepends(s); err != nil {
		return err
	}
	if f.force.val {
		t.ForceUpdate++
	}
	return checkEndpoint(s)
}

// RollbackAlone checks that --rollback stands without flags that change the spec.
func (f *Flags) RollbackAlone(allowed ...string) error {
	var other string
	f.fs.Visit(func(fl *pflag.Flag) {
		if fl.Name != "rollback" && !slices.Contains(allowed, fl.Name) && other == "" {
			other = fl.Name
		}
	})
	if other != "" {
		return invalidf("other flags may not be combined with --rollback: --%s", other)
	}
	return nil
}

func job(s *skepv1.ServiceSpec) bool {
	return s.GetMode().GetReplicatedJob() != nil || s.GetMode().GetGlobalJob() != nil
}

func (f *Flags) applyMode(s *skepv1.ServiceSpec) error {
	if f.replicas.set {
		switch m := s.GetMode().GetMode().(type) {
		case *skepv1.ServiceMode_Replicated:
			m.Replicated.Replicas = f.replicas.val
		case *skepv1.ServiceMode_ReplicatedJob:
			m.ReplicatedJob.TotalCompletions = f.replicas.val
		default:
			return invalidf("replicas can only be used with replicated mode")
		}
	}
	if f.maxConcurrent.set {
		m := s.GetMode().GetReplicatedJob()
		if m == nil {
			return invalidf("max-concurrent can only be used with replicated-job mode")
		}
		m.MaxConcurrent = f.maxConcurrent.val
	}
	if f.maxPerNode.set && s.GetMode().GetReplicated() == nil && s.GetMode().GetReplicatedJob() == nil {
		return invalidf("replicas-max-per-node can only be used with replicated or replicated-job mode")
	}
	return nil
}

func (f *Flags) applyContainer(c *skepv1.ContainerSpec) error {
	if f.image.set {
		if f.image.val == "" {
			return invalidf("ContainerSpec: image reference must be provided")
		}
		c.Image = f.image.val
	}
	if f.args.set {
		words, err := SplitWords(f.args.val)
		if err != nil {
			return err
		}
		c.Args = words
	}
	if err := f.containerScalars(c); err != nil {
		return err
	}
	c.Groups = applyList(c.Groups, f.groups)
	if f.env.touched() {
		env, err := environment(f.LookupEnv, nil, append(slices.Clone(c.Env), f.env.add.vals...))
		if err != nil {
			return err
		}
		c.Env = slices.DeleteFunc(env, func(e string) bool {
			k, _, _ := strings.Cut(e, "=")
			return slices.ContainsFunc(f.env.rm.vals, func(r string) bool { r, _, _ = strings.Cut(r, "="); return r == k }) &&
				!slices.ContainsFunc(f.env.add.vals, func(a string) bool { a, _, _ = strings.Cut(a, "="); return a == k })
		})
	}
	c.Labels = applyMap(c.Labels, f.containerLabels)
	f.applyCapabilities(c)
	c.Sysctls = applyMap(c.Sysctls, f.sysctls)
	c.Ulimits = slices.DeleteFunc(c.Ulimits, func(u *skepv1.Ulimit) bool { return slices.Contains(f.ulimits.rm.vals, u.Name) })
	for _, u := range f.ulimits.add.vals {
		c.Ulimits = replaceOrAppend(c.Ulimits, u, func(o *skepv1.Ulimit) bool { return o.Name == u.Name })
	}
	if err := f.applyHosts(c); err != nil {
		return err
	}
	if f.dns.touched() || f.dnsOptions.touched() || f.dnsSearch.touched() {
		if c.Dns == nil {
			c.Dns = &skepv1.DNSConfig{}
		}
		c.Dns.Nameservers = applyList(c.Dns.Nameservers, f.dns)
		c.Dns.Options = applyList(c.Dns.Options, f.dnsOptions)
		c.Dns.Search = applyList(c.Dns.Search, f.dnsSearch)
		if len(c.Dns.Nameservers)+len(c.Dns.Options)+len(c.Dns.Search) == 0 {
			c.Dns = nil
		}
	}
	if err := f.applyMounts(c); err != nil {
		return err
	}
	var err error
	if c.Secrets, err = applyFiles("secret", c.Secrets, f.secrets); err != nil {
		return err
	}
	if c.Configs, err = applyFiles("config", c.Configs, f.configs); err != nil {
		return err
	}
	return f.checks(c)
}

// applyCapabilities: dropping what was added only takes the addition back, and the other way round; RESET
// forgets the list; adding wins over dropping.
func (f *Flags) applyCapabilities(c *skepv1.ContainerSpec) {
	if !f.capAdd.set() && !f.capDrop.set() {
		return
	}
	adds, drops := capSet(c.CapabilityAdd), capSet(c.CapabilityDrop)
	toAdd, toDrop := capSet(f.capAdd.vals), capSet(f.capDrop.vals)
	if toAdd[capReset] {
		adds = map[string]bool{}
		delete(toAdd, capReset)
	}
	if toDrop[capReset] {
		drops = map[string]bool{}
		delete(toDrop, capReset)
	}
	for d := range toDrop {
		switch {
		case toAdd[d]:
		case adds[d]:
			delete(adds, d)
		default:
			drops[d] = true
		}
	}
	for a := range toAdd {
		if drops[a] {
			delete(drops, a)
		} else {
			adds[a] = true
		}
	}
	c.CapabilityAdd, c.CapabilityDrop = sorted(adds), sorted(drops)
}

func (f *Flags) applyHosts(c *skepv1.ContainerSpec) error {
	if !f.hosts.touched() {
		return nil
	}
	for _, r := range f.hosts.rm.vals {
		host, ip, hasIP, err := parseHostRm(r)
		if err != nil {
			return err
		}
		var kept []string
		for _, h := range c.Hosts {
			words := strings.Fields(h)
			if len(words) == 0 || hasIP && !sameAddress(words[0], ip) {
				kept = append(kept, h)
				continue
			}
			names := slices.DeleteFunc(slices.Clone(words[1:]), func(n string) bool { return n == host })
			if len(names) > 0 {
				kept = append(kept, words[0]+" "+strings.Join(names, " "))
			}
		}
		c.Hosts = kept
	}
	for _, h := range f.hosts.add.vals {
		if !slices.Contains(c.Hosts, h) {
			c.Hosts = append(c.Hosts, h)
		}
	}
	return nil
}

func (f *Flags) applyMounts(c *skepv1.ContainerSpec) error {
	seen := map[string]bool{}
	for _, m := range f.mounts.add.vals {
		if seen[m.Target] {
			return invalidf("duplicate mount target")
		}
		seen[m.Target] = true
		c.Mounts = replaceOrAppend(c.Mounts, m, func(o *skepv1.Mount) bool { return path.Clean(o.Target) == path.Clean(m.Target) })
	}
	c.Mounts = slices.DeleteFunc(c.Mounts, func(m *skepv1.Mount) bool {
		return namesMount(f.mounts.rm.vals, m) && !seen[m.Target]
	})
	return nil
}

func (f *Flags) applyGeneric(t *skepv1.TaskSpec) error {
	if !f.generic.touched() {
		return nil
	}
	if t.Resources == nil {
		t.Resources = &skepv1.ResourceRequirements{}
	}
	if t.Resources.Reservations == nil {
		t.Resources.Reservations = &skepv1.Resources{}
	}
	r := t.Resources.Reservations
	for _, name := range f.generic.rm.vals {
		i := slices.IndexFunc(r.Generic, func(g *skepv1.GenericResource) bool { return g.Kind == name })
		if i < 0 {
			return invalidf("could not find generic-resource `%s` to remove it%s", name, There(names(r.Generic, (*skepv1.GenericResource).GetKind)))
		}
		r.Generic = slices.Delete(r.Generic, i, i+1)
	}
	for _, g := range f.generic.add.vals {
		r.Generic = replaceOrAppend(r.Generic, g, func(o *skepv1.GenericResource) bool { return o.Kind == g.Kind })
	}
	return nil
}

func (f *Flags) applyPlacement(t *skepv1.TaskSpec) {
	if !f.constraints.touched() && !f.prefs.touched() && !f.maxPerNode.set && !f.volumePin.set {
		return
	}
	if t.Placement == nil {
		t.Placement = &skepv1.Placement{}
	}
	p := t.Placement
	p.Constraints = slices.DeleteFunc(p.Constraints, func(c string) bool {
		return slices.ContainsFunc(f.constraints.rm.vals, func(r string) bool { return squeeze(r) == squeeze(c) })
	})
	for _, c := range f.constraints.add.vals {
		if !slices.Contains(p.Constraints, c) {
			p.Constraints = append(p.Constraints, c)
		}
	}
	p.Preferences = slices.DeleteFunc(p.Preferences, func(c *skepv1.PlacementPreference) bool {
		return slices.ContainsFunc(f.prefs.rm.vals, func(r string) bool { return strings.TrimPrefix(r, "spread=") == c.Spread })
	})
	p.Preferences = append(p.Preferences, f.prefs.add.vals...)
	if f.maxPerNode.set {
		p.MaxReplicasPerNode = f.maxPerNode.val
	}
	if f.volumePin.set {
		p.VolumePin = f.volumePin.val
	}
}

// applyNetworks detaches first, so that one call can detach a network and attach it with other aliases.
func (f *Flags) applyNetworks(t *skepv1.TaskSpec) error {
	if !f.networks.touched() {
		return nil
	}
	attached := func(target string) int {
		return slices.IndexFunc(t.Networks, func(n *skepv1.NetworkAttachment) bool { return n.Target == target })
	}
	find := func(ref string) (int, error) {
		if i := attached(ref); i >= 0 || f.NetworkID == nil {
			return i, nil
		}
		id, err := f.NetworkID(ref)
		return attached(id), err
	}
	for _, ref := range f.networks.rm.vals {
		i, err := find(ref)
		switch {
		case err != nil:
			return err
		case i < 0:
			return invalidf("service is not attached to network %s", ref)
		}
		t.Networks = slices.Delete(t.Networks, i, i+1)
	}
	for _, n := range f.networks.add.vals {
		target := n.Target
		if f.NetworkID != nil {
			id, err := f.NetworkID(target)
			if err != nil {
				return err
			}
			target = id
		}
		if attached(target) >= 0 || attached(n.Target) >= 0 {
			return invalidf("service is already attached to network %s", n.Target)
		}
		at := proto.CloneOf(n)
		at.Target = target
		t.Networks = append(t.Networks, at)
	}
	return nil
}

func (f *Flags) applyEndpoint(s *skepv1.ServiceSpec) error {
	if !f.publish.touched() && !f.endpointMode.set && !f.dnsStarting.set {
		return nil
	}
	if s.Endpoint == nil {
		s.Endpoint = &skepv1.EndpointSpec{}
	}
	e := s.Endpoint
	if f.endpointMode.set {
		e.Mode = f.endpointMode.val
	}
	if f.dnsStarting.set {
		e.DnsStarting = f.dnsStarting.val
	}
	var err error
	if e.Ports, err = unpublish(e.Ports, f.publish.rm.vals, f.Assigned); err != nil {
		return err
	}
	for _, p := range f.publish.add.vals {
		if !slices.ContainsFunc(e.Ports, func(o *skepv1.PortConfig) bool { return portKey(o) == portKey(p) }) {
			e.Ports = append(e.Ports, p)
		}
	}
	return nil
}

func applyFiles(kind string, have []*skepv1.FileReference, f addRm[*skepv1.FileReference]) ([]*skepv1.FileReference, error) {
	// A reference that is added again replaces the one of its name, as `--secret-add source=x,target=new` expects.
	have = slices.DeleteFunc(have, func(r *skepv1.FileReference) bool {
		return slices.Contains(f.rm.vals, r.Name) || slices.ContainsFunc(f.add.vals, func(a *skepv1.FileReference) bool { return a.Name == r.Name })
	})
	return addFiles(kind, have, f.add.vals)
}

func applyMap(m map[string]string, f addRm[string]) map[string]string {
	if !f.touched() {
		return m
	}
	if m == nil {
		m = map[string]string{}
	}
	for _, k := range f.rm.vals {
		delete(m, k)
	}
	maps.Copy(m, toMap(f.add.vals))
	if len(m) == 0 {
		return nil
	}
	return m
}

func applyList(have []string, f addRm[string]) []string {
	if !f.touched() {
		return have
	}
	have = slices.DeleteFunc(have, func(s string) bool { return slices.Contains(f.rm.vals, s) })
	for _, s := range f.add.vals {
		if !slices.Contains(have, s) {
			have = append(have, s)
		}
	}
	if len(have) == 0 {
		return nil
	}
	return have
}
