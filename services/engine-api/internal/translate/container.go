package translate

import (
	"net/netip"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

func containerFromDocker(in *swarm.ContainerSpec) (*skepv1.ContainerSpec, error) {
	out := &skepv1.ContainerSpec{
		Image: in.Image, Labels: in.Labels, Command: in.Command, Args: in.Args, Hostname: in.Hostname, Env: in.Env, Dir: in.Dir,
		User: in.User, Groups: in.Groups, StopSignal: in.StopSignal, StopGracePeriod: durationFromDocker(in.StopGracePeriod),
		Tty: in.TTY, OpenStdin: in.OpenStdin, ReadOnly: in.ReadOnly, Hosts: in.Hosts, Sysctls: in.Sysctls,
		CapabilityAdd: in.CapabilityAdd, CapabilityDrop: in.CapabilityDrop, OomScoreAdj: in.OomScoreAdj,
	}
	// Docker's client says false where nobody asked, for the sake of engines with a default of their own. There is none here.
	if in.Init != nil && *in.Init {
		out.Init = in.Init
	}
	if in.Isolation != container.IsolationDefault {
		out.Isolation = string(in.Isolation)
	}
	for i, u := range in.Ulimits {
		if u == nil {
			return nil, fault.Invalid("TaskTemplate.ContainerSpec.Ulimits[%d] is null", i)
		}
		out.Ulimits = append(out.Ulimits, &skepv1.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	for _, m := range in.Mounts {
		v, err := mountFromDocker(m)
		if err != nil {
			return nil, err
		}
		out.Mounts = append(out.Mounts, v)
	}
	var err error
	if out.Dns, err = dnsFromDocker(in.DNSConfig); err != nil {
		return nil, err
	}
	if out.Health, err = healthFromDocker(in.Healthcheck); err != nil {
		return nil, err
	}
	if out.Secrets, err = secretRefsFromDocker(in.Secrets); err != nil {
		return nil, err
	}
	if out.Configs, err = configRefsFromDocker(in.Configs); err != nil {
		return nil, err
	}
	out.Privileges, err = privilegesFromDocker(in.Privileges)
	return out, err
}

func containerToDocker(c *skepv1.ContainerSpec) *swarm.ContainerSpec {
	if c == nil {
		c = &skepv1.ContainerSpec{}
	}
	initial := c.GetInit()
	out := &swarm.ContainerSpec{
		Image: c.Image, Labels: c.Labels, Command: c.Command, Args: c.Args, Hostname: c.Hostname, Env: c.Env, Dir: c.Dir, User: c.User,
		Groups: c.Groups, Init: &initial, StopSignal: c.StopSignal, StopGracePeriod: durationToDocker(c.StopGracePeriod), TTY: c.Tty,
		OpenStdin: c.OpenStdin, ReadOnly: c.ReadOnly, Hosts: c.Hosts, Sysctls: c.Sysctls, CapabilityAdd: c.CapabilityAdd,
		CapabilityDrop: c.CapabilityDrop, OomScoreAdj: c.OomScoreAdj, Isolation: container.IsolationDefault,
		DNSConfig: dnsToDocker(c.Dns), Healthcheck: healthToDocker(c.Health), Secrets: secretRefsToDocker(c.Secrets),
		Configs: configRefsToDocker(c.Configs), Privileges: privilegesToDocker(c.Privileges),
	}
	if c.Isolation != "" {
		out.Isolation = container.Isolation(c.Isolation)
	}
	for _, u := range c.Ulimits {
		out.Ulimits = append(out.Ulimits, &container.Ulimit{Name: u.GetName(), Soft: u.GetSoft(), Hard: u.GetHard()})
	}
	for _, m := range c.Mounts {
		out.Mounts = append(out.Mounts, mountToDocker(m))
	}
	return out
}

func dnsFromDocker(d *swarm.DNSConfig) (*skepv1.DNSConfig, error) {
	if d == nil || len(d.Nameservers)+len(d.Search)+len(d.Options) == 0 {
		return nil, nil
	}
	out := &skepv1.DNSConfig{Search: d.Search, Options: d.Options}
	for i, a := range d.Nameservers {
		if !a.IsValid() {
			return nil, fault.Invalid("IP address is not correctly formatted: TaskTemplate.ContainerSpec.DNSConfig.Nameservers[%d] is empty", i)
		}
		out.Nameservers = append(out.Nameservers, a.String())
	}
	return out, nil
}

func dnsToDocker(d *skepv1.DNSConfig) *swarm.DNSConfig {
	out := &swarm.DNSConfig{Search: d.GetSearch(), Options: d.GetOptions()}
	for _, n := range d.GetNameservers() {
		if a, err := netip.ParseAddr(n); err == nil { // no spec with another text is stored
			out.Nameservers = append(out.Nameservers, a)
		}
	}
	return out
}
