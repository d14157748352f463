package translate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	"skep.dev/libs/containers"
	"skep.dev/libs/spec"
	"skep.dev/libs/taskname"
	skepv1 "skep.dev/proto/skep/v1"
)

// ContainerView is what of a container is to be told besides its task.
type ContainerView struct {
	NodeID, Hostname string // of the node
	// Process is what runs in it, nil: what its service's spec says is told.
	Process *containers.Process
	Now     time.Time
}

// ContainerName is service.slot.task, that of a global service service.node.task.
func ContainerName(c containers.Container, v ContainerView) string {
	return taskname.Of(v.NodeID, v.Hostname, "", c.Record, c.Revision.GetSpec()).Task.Name
}

// Docker's labels of a service's container.
const (
	labelTask        = "com.docker.swarm.task"
	labelTaskID      = "com.docker.swarm.task.id"
	labelTaskName    = "com.docker.swarm.task.name"
	labelNodeID      = "com.docker.swarm.node.id"
	labelServiceID   = "com.docker.swarm.service.id"
	labelServiceName = "com.docker.swarm.service.name"
)

// ContainerLabels are those that its service gives containers, and Docker's own, which nobody else may set.
func ContainerLabels(c containers.Container, v ContainerView) map[string]string {
	out := map[string]string{}
	for k, value := range specOf(c).GetLabels() {
		if !strings.HasPrefix(k, "com.docker.swarm.") {
			out[k] = value
		}
	}
	maps.Copy(out, map[string]string{
		labelTask: "", labelTaskID: c.ID(), labelTaskName: ContainerName(c, v), labelNodeID: v.NodeID,
		labelServiceID: c.Record.GetServiceId(), labelServiceName: c.Revision.GetSpec().GetName(),
	})
	return out
}

func specOf(c containers.Container) *skepv1.ContainerSpec {
	if s := c.Revision.GetSpec().GetTask().GetContainer(); s != nil {
		return s
	}
	return &skepv1.ContainerSpec{}
}

// ContainerState is how far it is, in Docker's words.
func ContainerState(c containers.Container) container.ContainerState {
	switch s := c.Status.GetState(); {
	case s == skepv1.TaskState_TASK_STATE_RUNNING:
		return container.StateRunning
	case s < skepv1.TaskState_TASK_STATE_RUNNING:
		return container.StateCreated
	case c.Status.GetStartedUnixMs() == 0: // it never ran
		return container.StateCreated
	}
	return container.StateExited
}

// ContainerHealth is the verdict of its check.
func ContainerHealth(c containers.Container) container.HealthStatus {
	switch c.Status.GetHealth() {
	case skepv1.HealthState_HEALTH_STATE_HEALTHY:
		return container.Healthy
	case skepv1.HealthState_HEALTH_STATE_UNHEALTHY:
		return container.Unhealthy
	case skepv1.HealthState_HEALTH_STATE_STARTING:
		return container.Starting
	}
	return container.NoHealthcheck
}

// containerStatus is the state for people: Up 5 minutes (healthy).
func containerStatus(c containers.Container, now time.Time) string {
	st := c.Status
	switch ContainerState(c) {
	case container.StateRunning:
		up := "Up " + age(now.Sub(time.UnixMilli(st.GetStartedUnixMs())))
		switch h := ContainerHealth(c); h {
		case container.NoHealthcheck:
			return up
		case container.Starting:
			return up + " (health: starting)"
		default:
			return up + " (" + string(h) + ")"
		}
	case container.StateExited:
		return fmt.Sprintf("Exited (%d) %s ago", st.GetExitCode(), age(now.Sub(time.UnixMilli(st.GetSinceUnixMs()))))
	}
	return "Created"
}

// age is how long d is, in Docker's words.
func age(d time.Duration) string {
	n := func(count float64, unit string) string { return fmt.Sprintf("%d %s", int(count), unit) }
	switch s, m, h := d.Seconds(), d.Minutes(), float64(int(d.Hours()+0.5)); {
	case s < 1:
		return "Less than a second"
	case s < 2:
		return "1 second"
	case s < 60:
		return n(s, "seconds")
	case m < 2:
		return "About a minute"
	case m < 60:
		return n(m, "minutes")
	case h == 1:
		return "About an hour"
	case h < 48:
		return n(h, "hours")
	case h < 24*7*2:
		return n(h/24, "days")
	case h < 24*30*2:
		return n(h/24/7, "weeks")
	case h < 24*365*2:
		return n(h/24/30, "months")
	default:
		return n(h/24/365, "years")
	}
}

// ContainerSummary is a container as lists have it.
func ContainerSummary(c containers.Container, v ContainerView) container.Summary {
	out := container.Summary{
		ID: c.ID(), Names: []string{"/" + ContainerName(c, v)}, Image: specOf(c).GetImage(), ImageID: imageID(specOf(c).GetImage()),
		Command: strings.Join(containerArgs(c, v), " "), Created: c.Record.GetCreatedUnixMs() / 1000, Ports: containerPorts(c),
		Labels: ContainerLabels(c, v), State: ContainerState(c), Status: containerStatus(c, v.Now), Mounts: containerMounts(c),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: containerNetworks(c)},
		Health:          &container.HealthSummary{Status: ContainerHealth(c)},
	}
	out.HostConfig.NetworkMode = networkMode(c)
	return out
}

// imageID is what the reference is pinned to.
func imageID(ref string) string {
	if _, d, ok := strings.Cut(ref, "@"); ok && digest.Digest(d).Validate() == nil {
		return d
	}
	return ""
}

func containerArgs(c containers.Container, v ContainerView) []string {
	if v.Process != nil {
		return v.Process.Args
	}
	return append(append([]string{}, specOf(c).GetCommand()...), specOf(c).GetArgs()...)
}

// containerPorts: those of its own node with their number there, those of the mesh without, as Docker's containers have only them exposed.
func containerPorts(c containers.Container) []container.PortSummary {
	out := []container.PortSummary{}
	for _, p := range c.Status.GetPorts() {
		ip, _ := netip.ParseAddr(cmp.Or(p.GetHostIp(), "0.0.0.0")) // what was bound is an address
		out = append(out, container.PortSummary{IP: ip, PrivatePort: uint16(p.GetTargetPort()), PublicPort: uint16(p.GetPublishedPort()), Type: protocol(p)})
	}
	for _, p := range c.Revision.GetSpec().GetEndpoint().GetPorts() {
		if p.GetPublishMode() == skepv1.PublishMode_PUBLISH_MODE_INGRESS {
			out = append(out, container.PortSummary{PrivatePort: uint16(p.GetTargetPort()), Type: protocol(p)})
		}
	}
	return out
}

func protocol(p *skepv1.PortConfig) string {
	return string(portsToDocker([]*skepv1.PortConfig{p})[0].Protocol)
}

func networkMode(c containers.Container) string {
	for _, n := range c.Revision.GetSpec().GetTask().GetNetworks() {
		if t := n.GetTarget(); t == spec.NetworkHost || t == spec.NetworkNone {
			return t
		}
	}
	return "default"
}

// containerNetworks are those that it has addresses on, by their names.
func containerNetworks(c containers.Container) map[string]*network.EndpointSettings {
	out := map[string]*network.EndpointSettings{}
	add := func(id, name string, texts ...string) {
		e := &network.EndpointSettings{NetworkID: id, EndpointID: c.ID(), IPAMConfig: &network.EndpointIPAMConfig{}, DNSNames: []string{c.ID()[:min(12, len(c.ID()))]}}
		for _, t := range texts {
			switch p, ok := prefix(t); {
			case !ok:
			case p.Addr().Is4():
				e.IPAddress, e.IPPrefixLen, e.IPAMConfig.IPv4Address = p.Addr(), p.Bits(), p.Addr()
			default:
				e.GlobalIPv6Address, e.GlobalIPv6PrefixLen, e.IPAMConfig.IPv6Address = p.Addr(), p.Bits(), p.Addr()
			}
		}
		if e.IPAddress.IsValid() || e.GlobalIPv6Address.IsValid() {
			out[name] = e
		}
	}
	for _, n := range c.Status.GetNetworks() {
		add(n.GetNetworkId(), cmp.Or(c.Revision.GetNetworks()[n.GetNetworkId()], n.GetNetworkId()), n.GetAddr(), n.GetAddr6())
	}
	if mode := networkMode(c); mode != "default" {
		out[mode] = &network.EndpointSettings{NetworkID: mode, EndpointID: c.ID()}
		return out
	}
	add(spec.NetworkIngress, spec.NetworkIngress, c.Status.GetAddresses()...)
	return out
}

// containerMounts are its volumes and binds, with their names: options, which may hold passwords, are not told.
func containerMounts(c containers.Container) []container.MountPoint {
	out := []container.MountPoint{}
	for _, m := range specOf(c).GetMounts() {
		d := mountToDocker(m)
		p := container.MountPoint{Type: d.Type, Source: d.Source, Destination: d.Target, RW: !d.ReadOnly}
		if d.BindOptions != nil {
			p.Propagation = d.BindOptions.Propagation
		}
		if d.Type == mount.TypeVolume {
			p.Name, p.Source, p.Driver = d.Source, "", cmp.Or(m.GetVolumeDriver(), "local")
		}
		out = append(out, p)
	}
	return out
}
