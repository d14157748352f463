package specflag

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	specs "skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Spec is what the flags of `service create` and its arguments ask for. Fields no flag names stay unset: the
// state service fills in the defaults.
func (f *Flags) Spec(image string, args []string) (_ *skepv1.ServiceSpec, err error) {
	s := &skepv1.ServiceSpec{Name: f.name.val, Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: image, Args: args}}}
	if image == "" {
		return nil, invalidf("ContainerSpec: image reference must be provided")
	}
	for _, arg := range append([]string{image}, args...) {
		if err := readable(arg); err != nil {
			return nil, err
		}
	}
	if err := f.createMode(s); err != nil {
		return nil, err
	}
	if err := f.createContainer(s.Task.Container); err != nil {
		return nil, err
	}
	s.Labels = toMap(f.labels.add.vals)
	f.resources(s.Task)
	if r := s.Task.GetResources(); f.generic.add.set() {
		if r == nil {
			r = &skepv1.ResourceRequirements{}
			s.Task.Resources = r
		}
		if r.Reservations == nil {
			r.Reservations = &skepv1.Resources{}
		}
		for _, g := range f.generic.add.vals {
			for _, o := range r.Reservations.Generic {
				if o.Kind == g.Kind {
					return nil, invalidf("duplicate generic-resource %s", g.Kind)
				}
			}
			r.Reservations.Generic = append(r.Reservations.Generic, g)
		}
	}
	f.restart(s.Task)
	if f.constraints.add.set() || f.prefs.add.set() || f.maxPerNode.set || f.volumePin.set {
		s.Task.Placement = &skepv1.Placement{Constraints: f.constraints.add.vals, Preferences: f.prefs.add.vals, MaxReplicasPerNode: f.maxPerNode.val, VolumePin: f.volumePin.val}
	}
	for _, n := range f.networks.add.vals {
		for _, o := range s.Task.Networks {
			if o.Target == n.Target {
				return nil, invalidf("service is already attached to network %s", n.Target)
			}
		}
		s.Task.Networks = append(s.Task.Networks, n)
	}
	f.logging(s.Task)
	s.Update = f.up.merge(nil)
	s.Rollback = f.back.merge(nil)
	s.OnPartition = f.onPartition.val
	s.HealthBudget = f.healthBudget.val
	if f.publish.add.set() || f.endpointMode.set || f.dnsStarting.val {
		s.Endpoint = &skepv1.EndpointSpec{Mode: f.endpointMode.val, DnsStarting: f.dnsStarting.val}
		s.Endpoint.Ports = f.publish.add.vals
	}
	s.DependsOn = f.depends.add.vals
	if s.Schedule, err = f.schedule.apply(nil); err != nil {
		return nil, err
	}
	return s, checkEndpoint(s)
}

func checkEndpoint(s *skepv1.ServiceSpec) error {
	if s.GetEndpoint().GetMode() == skepv1.EndpointSpec_MODE_DNSRR {
		for _, p := range s.Endpoint.Ports {
			if p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_INGRESS {
				return invalidf("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
			}
		}
	}
	ports := s.GetEndpoint().GetPorts()
	for i, p := range ports {
		if slices.ContainsFunc(ports[:i], func(o *skepv1.PortConfig) bool { return specs.PortsMeet(o, p) }) {
			return invalidf("EndpointSpec: duplicate published ports provided")
		}
	}
	return nil
}

func (f *Flags) createMode(s *skepv1.ServiceSpec) error {
	mode := f.mode.val
	if mode == "" {
		mode = "replicated"
	}
	replicated := mode == "replicated" || mode == "replicated-job"
	if f.replicas.set && !replicated {
		return invalidf("replicas can only be used with replicated or replicated-job mode")
	}
	if f.maxPerNode.set && !replicated {
		return invalidf("replicas-max-per-node can only be used with replicated or replicated-job mode")
	}
	if f.maxConcurrent.set && mode != "replicated-job" {
		return invalidf("max-concurrent can only be used with replicated-job mode")
	}
	n := uint64(1)
	if f.replicas.set {
		n = f.replicas.val
	}
	s.Mode = &skepv1.ServiceMode{}
	switch mode {
	case "global":
		s.Mode.Mode = &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}
	case "replicated-job":
		c := n
		if f.maxConcurrent.set {
			c = f.maxConcurrent.val
		}
		s.Mode.Mode = &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: c, TotalCompletions: n}}
	case "global-job":
		s.Mode.Mode = &skepv1.ServiceMode_GlobalJob{GlobalJob: &skepv1.GlobalJobMode{}}
	default:
		s.Mode.Mode = &skepv1.ServiceMode_Replicated{Replicated: &skepv1.ReplicatedMode{Replicas: n}}
	}
	if mode == "replicated-job" || mode == "global-job" {
		if f.up.touched() || f.back.touched() {
			return invalidf("update and rollback configuration is not supported for jobs")
		}
	}
	return nil
}

func (f *Flags) createContainer(c *skepv1.ContainerSpec) (err error) {
	if c.Env, err = environment(f.LookupEnv, f.envFiles.vals, f.env.add.vals); err != nil {
		return err
	}
	if err = f.containerScalars(c); err != nil {
		return err
	}
	c.Groups = f.groups.add.vals
	c.Labels = toMap(f.containerLabels.add.vals)
	c.CapabilityAdd, c.CapabilityDrop = capabilities(f.capAdd.vals, f.capDrop.vals)
	c.Sysctls = toMap(f.sysctls.add.vals)
	for _, u := range f.ulimits.add.vals {
		c.Ulimits = replaceOrAppend(c.Ulimits, u, func(o *skepv1.Ulimit) bool { return o.Name == u.Name })
	}
	c.Hosts = f.hosts.add.vals
	if f.dns.add.set() || f.dnsOptions.add.set() || f.dnsSearch.add.set() {
		c.Dns = &skepv1.DNSConfig{Nameservers: f.dns.add.vals, Search: f.dnsSearch.add.vals, Options: f.dnsOptions.add.vals}
	}
	for _, m := range f.mounts.add.vals {
		if slices.ContainsFunc(c.Mounts, func(o *skepv1.Mount) bool { return o.Target == m.Target }) {
			return invalidf("ContainerSpec: duplicate mount point: %s", m.Target)
		}
		c.Mounts = append(c.Mounts, m)
	}
	if c.Secrets, err = addFiles("secret", nil, f.secrets.add.vals); err != nil {
		return err
	}
	if c.Configs, err = addFiles("config", nil, f.configs.add.vals); err != nil {
		return err
	}
	return f.checks(c)
}

// containerScalars sets the container's single values that were given; it serves create and update alike.
func (f *Flags) containerScalars(c *skepv1.ContainerSpec) error {
	for _, x := range []struct {
		flag *scalar[string]
		to   *string
	}{{f.workdir, &c.Dir}, {f.user, &c.User}, {f.hostname, &c.Hostname}, {f.stopSignal, &c.StopSignal}, {f.isolation, &c.Isolation},
		{f.secretSignal, &c.SecretUpdateSignal}, {f.configSignal, &c.ConfigUpdateSignal}} {
		if x.flag.set {
			*x.to = x.flag.val
		}
	}
	if f.entrypoint.set {
		words, err := SplitWords(f.entrypoint.val)
		if err != nil {
			return err
		}
		c.Command = words
	}
	if f.credential.set {
		if c.Privileges == nil {
			c.Privileges = &skepv1.Privileges{}
		}
		c.Privileges.CredentialSpec = f.credential.val
	}
	if f.init.set {
		v := f.init.val
		c.Init = &v
	}
	if f.tty.set {
		c.Tty = f.tty.val
	}
	if f.readOnly.set {
		c.ReadOnly = f.readOnly.val
	}
	if f.stopGrace.set {
		c.StopGracePeriod = durationpb.New(f.stopGrace.val)
	}
	if f.oomScore.set {
		c.OomScoreAdj = f.oomScore.val
	}
	return nil
}

func (f *Flags) resources(t *skepv1.TaskSpec) {
	limits := f.limitCPU.set || f.limitMem.set || f.limitPids.set
	reserve := f.reserveCPU.set || f.reserveMem.set
	if !limits && !reserve && !f.swap.set && !f.swappiness.set {
		return
	}
	r := t.Resources
	if r == nil {
		r = &skepv1.ResourceRequirements{}
		t.Resources = r
	}
	if limits && r.Limits == nil {
		r.Limits = &skepv1.Resources{}
	}
	if reserve && r.Reservations == nil {
		r.Reservations = &skepv1.Resources{}
	}
	if f.limitCPU.set {
		r.Limits.NanoCpus = f.limitCPU.val
	}
	if f.limitMem.set {
		r.Limits.MemoryBytes = f.limitMem.val
	}
	if f.limitPids.set {
		r.Limits.Pids = f.limitPids.val
	}
	if f.reserveCPU.set {
		r.Reservations.NanoCpus = f.reserveCPU.val
	}
	if f.reserveMem.set {
		r.Reservations.MemoryBytes = f.reserveMem.val
	}
	if f.swap.set {
		v := f.swap.val
		r.SwapBytes = &v
	}
	if f.swappiness.set {
		if v := f.swappiness.val; v < 0 {
			r.MemorySwappiness = nil
		} else {
			r.MemorySwappiness = &v
		}
	}
}

func (f *Flags) restart(t *skepv1.TaskSpec) {
	if !f.restartCond.set && !f.restartDelay.set && !f.restartMax.set && !f.restartWindow.set && !f.restartBackoff.set {
		return
	}
	r := t.Restart
	if r == nil {
		r = &skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_ANY, Delay: durationpb.New(5 * time.Second)}
		t.Restart = r
	}
	if f.restartCond.set {
		r.Condition = f.restartCond.val
	}
	if f.restartDelay.set {
		r.Delay = durationpb.New(f.restartDelay.val)
	}
	if f.restartMax.set {
		r.MaxAttempts = f.restartMax.val
	}
	if f.restartBackoff.set {
		r.MaxDelay = durationpb.New(f.restartBackoff.val)
	}
	if f.restartWindow.set {
		r.Window = durationpb.New(f.restartWindow.val)
	}
}

func (f *Flags) logging(t *skepv1.TaskSpec) {
	if f.logDriver.set || f.logOpts.set() {
		t.LogDriver = &skepv1.LogDriver{Name: f.logDriver.val, Options: toMap(f.logOpts.vals)}
	}
}

func (u updateFlags) touched() bool {
	return u.parallelism.set || u.delay.set || u.monitor.set || u.timeout.set || u.action.set || u.ratio.set || u.order.set
}

// merge lays the given flags over c, or over the defaults when there is nothing yet; untouched c stays as it is.
func (u updateFlags) merge(c *skepv1.UpdateConfig) *skepv1.UpdateConfig {
	if !u.touched() {
		return c
	}
	if c == nil {
		c = &skepv1.UpdateConfig{
			Parallelism: 1, Delay: durationpb.New(0), Monitor: durationpb.New(5 * time.Second),
			FailureAction: skepv1.FailureAction_FAILURE_ACTION_PAUSE, Order: skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST,
		}
	}
	if u.parallelism.set {
		c.Parallelism = u.parallelism.val
	}
	if u.delay.set {
		c.Delay = durationpb.New(u.delay.val)
	}
	if u.monitor.set {
		c.Monitor = durationpb.New(u.monitor.val)
	}
	if u.timeout.set {
		c.Timeout = durationpb.New(u.timeout.val)
	}
	if u.action.set {
		c.FailureAction = u.action.val
	}
	if u.ratio.set {
		c.MaxFailureRatio = u.ratio.val
	}
	if u.order.set {
		c.Order = u.order.val
	}
	return c
}

func addFiles(kind string, have, add []*skepv1.FileReference) ([]*skepv1.FileReference, error) {
	for _, r := range add {
		for _, o := range have {
			if o.Target == r.Target {
				return nil, invalidf("duplicate %s target for %s not allowed", kind, r.Name)
			}
		}
		have = append(have, r)
	}
	return have, nil
}

func replaceOrAppend[T any](list []T, v T, same func(T) bool) []T {
	if i := slices.IndexFunc(list, same); i >= 0 {
		list[i] = v
		return list
	}
	return append(list, v)
}
