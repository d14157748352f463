package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep.dev/libs/containers"
	skepv1 "skep.dev/proto/skep/v1"
)

// never is the time of what has not happened yet.
const never = "0001-01-01T00:00:00Z"

func stamp(ms int64) string {
	if ms == 0 {
		return never
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339Nano)
}

// Container is a container as inspect tells of it.
func Container(c containers.Container, v ContainerView) container.InspectResponse {
	s, st := specOf(c), c.Status
	args := containerArgs(c, v)
	out := container.InspectResponse{
		ID: c.ID(), Created: stamp(c.Record.GetCreatedUnixMs()), State: containerState(c), Image: cmp.Or(imageID(s.GetImage()), s.GetImage()),
		Name: "/" + ContainerName(c, v), RestartCount: int(st.GetRestarts()), Driver: "overlayfs", Platform: "linux", Args: []string{},
		Mounts: containerMounts(c), Config: containerConfig(c, v, args), HostConfig: hostConfig(c),
		NetworkSettings: &container.NetworkSettings{SandboxID: c.ID(), Ports: portMap(c), Networks: containerNetworks(c)},
	}
	if len(args) > 0 {
		out.Path, out.Args = args[0], args[1:]
	}
	return out
}

func containerState(c containers.Container) *container.State {
	st := c.Status
	out := &container.State{
		Status: ContainerState(c), OOMKilled: st.GetOomKilled(), Pid: int(st.GetPid()), ExitCode: int(st.GetExitCode()), Error: st.GetErr(),
		StartedAt: stamp(st.GetStartedUnixMs()), FinishedAt: never,
	}
	switch out.Status {
	case container.StateRunning:
		out.Running = true
	case container.StateExited:
		out.FinishedAt = stamp(st.GetSinceUnixMs())
	}
	if h := ContainerHealth(c); h != container.NoHealthcheck {
		out.Health = &container.Health{Status: h, Log: []*container.HealthcheckResult{}}
		if text := st.GetHealthOutput(); text != "" { // of the last that changed the verdict; there are no times of it
			r := &container.HealthcheckResult{Output: text}
			if h != container.Healthy {
				r.ExitCode = 1
			}
			out.Health.Log = append(out.Health.Log, r)
		}
	}
	return out
}

// containerConfig is what it was made with. What a secret's file holds is nowhere in it.
func containerConfig(c containers.Container, v ContainerView, args []string) *container.Config {
	s := specOf(c)
	out := &container.Config{
		Hostname: s.GetHostname(), User: s.GetUser(), Tty: s.GetTty(), OpenStdin: s.GetOpenStdin(), Env: append([]string{}, s.GetEnv()...), Cmd: args,
		Image: s.GetImage(), Volumes: map[string]struct{}{}, WorkingDir: s.GetDir(), Labels: ContainerLabels(c, v),
		Healthcheck: healthToDocker(s.GetHealth()), StopSignal: s.GetStopSignal(), ExposedPorts: network.PortSet{},
	}
	if len(s.GetCommand()) > 0 {
		out.Entrypoint, out.Cmd = s.GetCommand(), s.GetArgs()
	}
	if p := v.Process; p != nil {
		out.Hostname, out.Env, out.WorkingDir = p.Hostname, append([]string{}, p.Env...), p.Dir
	}
	if g := s.GetStopGracePeriod(); g != nil {
		sec := int(g.AsDuration().Seconds())
		out.StopTimeout = &sec
	}
	for _, p := range c.Revision.GetSpec().GetEndpoint().GetPorts() {
		if port, ok := portOf(p); ok {
			out.ExposedPorts[port] = struct{}{}
		}
	}
	return out
}

func portOf(p *skepv1.PortConfig) (network.Port, bool) {
	port, err := network.ParsePort(fmt.Sprintf("%d/%s", p.GetTargetPort(), protocol(p)))
	return port, err == nil
}

func portMap(c containers.Container) network.PortMap {
	out := network.PortMap{}
	for _, p := range c.Status.GetPorts() {
		if port, ok := portOf(p); ok {
			ip, _ := netip.ParseAddr(cmp.Or(p.GetHostIp(), "0.0.0.0")) // what was bound is an address
			out[port] = append(out[port], network.PortBinding{HostIP: ip, HostPort: fmt.Sprint(p.GetPublishedPort())})
		}
	}
	return out
}

func hostConfig(c containers.Container) *container.HostConfig {
	t := c.Revision.GetSpec().GetTask()
	s := specOf(c)
	out := &container.HostConfig{
		// Collectors of logs read those of this driver alone; it is skep's usual one too.
		LogConfig:   container.LogConfig{Type: cmp.Or(t.GetLogDriver().GetName(), "json-file"), Config: map[string]string{}},
		NetworkMode: container.NetworkMode(networkMode(c)), RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		CapAdd: s.GetCapabilityAdd(), CapDrop: s.GetCapabilityDrop(), ReadonlyRootfs: s.GetReadOnly(), ExtraHosts: s.GetHosts(), Sysctls: s.GetSysctls(),
		PortBindings: network.PortMap{}, OomScoreAdj: int(s.GetOomScoreAdj()), Init: s.Init,
	}
	for _, m := range s.GetMounts() {
		d := mountToDocker(m)
		if d.VolumeOptions != nil {
			d.VolumeOptions.DriverConfig = nil // its options may hold passwords
		}
		out.Mounts = append(out.Mounts, d)
	}
	l := t.GetResources().GetLimits()
	out.NanoCPUs, out.Memory = l.GetNanoCpus(), l.GetMemoryBytes()
	if n := l.GetPids(); n > 0 {
		out.PidsLimit = &n
	}
	return out
}

// legacyNetworkSettings has what clients older than 1.52 read of a container's own address.
type legacyNetworkSettings struct {
	*container.NetworkSettings
	Bridge, Gateway, IPAddress, MacAddress string
	IPPrefixLen                            int
	EndpointID, GlobalIPv6Address          string
	GlobalIPv6PrefixLen                    int
	IPv6Gateway, LinkLocalIPv6Address      string
	LinkLocalIPv6PrefixLen                 int
	HairpinMode                            bool
	SecondaryIPAddresses                   []network.EndpointSettings
	SecondaryIPv6Addresses                 []network.EndpointSettings
}

type legacyConfig struct {
	*container.Config
	MacAddress string `json:",omitempty"`
}

type legacyContainer struct {
	container.InspectResponse
	Config          legacyConfig
	NetworkSettings legacyNetworkSettings
}

// ContainerFor is a container for a client of a version, to be encoded as JSON.
func ContainerFor(d container.InspectResponse, v Version) any {
	if !v.Before(52) {
		return d
	}
	return legacyContainer{InspectResponse: d, Config: legacyConfig{Config: d.Config}, NetworkSettings: legacyNetworkSettings{NetworkSettings: d.NetworkSettings}}
}
