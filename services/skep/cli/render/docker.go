package render

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"
)

// Inspect prints objects in Docker's form: an indented array, or a template for each.
func Inspect(w io.Writer, objs []any, format string) error {
	switch format {
	case "":
		if objs == nil {
			objs = []any{}
		}
		return indented(w, objs)
	case "json":
		return writeJSONLine(w, objs)
	}
	tp, err := NewTemplate(unescape(format))
	if err != nil {
		return &ErrFormat{err}
	}
	for _, o := range objs {
		if _, is := o.(map[string]any); is {
			tp.Option("missingkey=error") // a field nobody has is a mistake, as it is in a struct
		}
		err := Execute(w, tp, o)
		if fe := (*ErrFormat)(nil); errors.As(err, &fe) {
			// Docker falls back on the plain JSON names, so that a template may use either.
			raw, merr := json.Marshal(o)
			var m any
			if merr == nil && json.Unmarshal(raw, &m) == nil && Execute(w, tp.Option("missingkey=error"), m) == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// One prints what is not one of many, what `info` and `version` show: "json" is the object, not an array of it.
func One(w io.Writer, obj any, format string) error {
	if format == "json" {
		return writeJSONLine(w, obj)
	}
	return Inspect(w, []any{obj}, format)
}

func meta(m *skepv1.Meta) swarm.Meta {
	out := swarm.Meta{Version: swarm.Version{Index: m.GetVersion()}}
	if m.GetCreatedAt() != nil {
		out.CreatedAt = m.CreatedAt.AsTime()
	}
	if m.GetUpdatedAt() != nil {
		out.UpdatedAt = m.UpdatedAt.AsTime()
	}
	return out
}

// DockerService is a service in the form of Docker's API.
func DockerService(s *skepv1.Service) any {
	out := swarm.Service{ID: s.GetMeta().GetId(), Meta: meta(s.Meta), Spec: dockerServiceSpec(s.GetSpec())}
	if e := s.GetSpec().GetEndpoint(); e != nil {
		out.Endpoint.Spec = dockerEndpoint(e)
	}
	out.Endpoint.Ports = dockerPorts(s.GetEndpoint().GetPorts())
	for _, v := range s.GetEndpoint().GetVirtualIps() {
		p, err := netip.ParsePrefix(v.Addr)
		if err != nil {
			continue // not an address: nothing to show
		}
		out.Endpoint.VirtualIPs = append(out.Endpoint.VirtualIPs, swarm.EndpointVirtualIP{NetworkID: v.NetworkId, Addr: p})
	}
	if u := s.UpdateStatus; u.GetState() != "" {
		out.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateState(u.State), Message: u.Message, StartedAt: timePtr(u.StartedAt), CompletedAt: timePtr(u.CompletedAt)}
	}
	if st := s.Status; st != nil {
		out.ServiceStatus = &swarm.ServiceStatus{RunningTasks: st.Running, DesiredTasks: st.Desired, CompletedTasks: st.Completed}
	}
	if s.JobIteration > 0 {
		out.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: s.JobIteration}}
		if r := s.Run; r != nil {
			out.JobStatus.LastExecution = r.GetStarted().AsTime()
		}
	}
	return out
}

func dockerServiceSpec(s *skepv1.ServiceSpec) swarm.ServiceSpec {
	out := swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: s.GetName(), Labels: labels(s.GetLabels())}, TaskTemplate: dockerTaskSpec(s.GetTask()),
		UpdateConfig: dockerUpdate(s.GetUpdate()), RollbackConfig: dockerUpdate(s.GetRollback()),
	}
	switch m := s.GetMode().GetMode().(type) {
	case *skepv1.ServiceMode_Replicated:
		n := m.Replicated.GetReplicas()
		out.Mode.Replicated = &swarm.ReplicatedService{Replicas: &n}
	case *skepv1.ServiceMode_Global:
		out.Mode.Global = &swarm.GlobalService{}
	case *skepv1.ServiceMode_ReplicatedJob:
		c, n := m.ReplicatedJob.GetMaxConcurrent(), m.ReplicatedJob.GetTotalCompletions()
		out.Mode.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: &c, TotalCompletions: &n}
	case *skepv1.ServiceMode_GlobalJob:
		out.Mode.GlobalJob = &swarm.GlobalJob{}
	}
	if s.GetEndpoint() != nil {
		e := dockerEndpoint(s.Endpoint)
		out.EndpointSpec = &e
	}
	return out
}

func dockerEndpoint(e *skepv1.EndpointSpec) swarm.EndpointSpec {
	out := swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP, Ports: dockerPorts(e.Ports)}
	if e.Mode == skepv1.EndpointSpec_MODE_DNSRR {
		out.Mode = swarm.ResolutionModeDNSRR
	}
	return out
}

func dockerPorts(ports []*skepv1.PortConfig) []swarm.PortConfig {
	var out []swarm.PortConfig
	for _, p := range ports {
		mode := swarm.PortConfigPublishModeIngress
		if p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_HOST {
			mode = swarm.PortConfigPublishModeHost
		}
		out = append(out, swarm.PortConfig{Name: p.Name, Protocol: network.IPProtocol(protocol(p)), TargetPort: p.TargetPort, PublishedPort: p.PublishedPort, PublishMode: mode})
	}
	return out
}

func dockerUpdate(c *skepv1.UpdateConfig) *swarm.UpdateConfig {
	if c == nil {
		return nil
	}
	return &swarm.UpdateConfig{Parallelism: c.Parallelism, Delay: c.Delay.AsDuration(), Monitor: c.Monitor.AsDuration(), MaxFailureRatio: float32(c.MaxFailureRatio),
		FailureAction: swarm.FailureAction(FailureAction(c.FailureAction)), Order: swarm.UpdateOrder(Order(c.Order))}
}

// FailureAction is the word of the API for it: pause.
func FailureAction(f skepv1.FailureAction) string {
	return enumWord(f.String(), "FAILURE_ACTION_")
}

// Order is the word of the API for it: stop-first.
func Order(o skepv1.UpdateOrder) string { return enumWord(o.String(), "UPDATE_ORDER_") }

// RestartCondition is the word of the API for it: on-failure.
func RestartCondition(c skepv1.RestartCondition) string {
	return enumWord(c.String(), "RESTART_CONDITION_")
}

func enumWord(s, prefix string) string {
	s = strings.TrimPrefix(s, prefix)
	if s == "UNSPECIFIED" {
		return ""
	}
	return strings.ReplaceAll(strings.ToLower(s), "_", "-")
}

func dockerTaskSpec(t *skepv1.TaskSpec) swarm.TaskSpec {
	out := swarm.TaskSpec{ForceUpdate: t.GetForceUpdate(), Runtime: swarm.RuntimeContainer}
	if t.GetContainer() != nil {
		out.ContainerSpec = dockerContainer(t.Container)
	}
	if r := t.GetResources(); r != nil {
		out.Resources = &swarm.ResourceRequirements{SwapBytes: r.SwapBytes, MemorySwappiness: r.MemorySwappiness}
		if l := r.Limits; l != nil {
			out.Resources.Limits = &swarm.Limit{NanoCPUs: l.NanoCpus, MemoryBytes: l.MemoryBytes, Pids: l.Pids}
		}
		if r.Reservations != nil {
			v := dockerResources(r.Reservations)
			out.Resources.Reservations = &v
		}
	}
	if r := t.GetRestart(); r != nil {
		n := r.MaxAttempts
		out.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyCondition(RestartCondition(r.Condition)), Delay: durPtr(r.Delay), Window: durPtr(r.Window), MaxAttempts: &n}
	}
	if p := t.GetPlacement(); p != nil {
		out.Placement = &swarm.Placement{Constraints: p.Constraints, MaxReplicas: p.MaxReplicasPerNode}
		for _, x := range p.Preferences {
			out.Placement.Preferences = append(out.Placement.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: x.Spread}})
		}
		for _, x := range p.Platforms {
			out.Placement.Platforms = append(out.Placement.Platforms, swarm.Platform{Architecture: x.Arch, OS: x.Os})
		}
	}
	for _, n := range t.GetNetworks() {
		out.Networks = append(out.Networks, swarm.NetworkAttachmentConfig{Target: n.Target, Aliases: n.Aliases, DriverOpts: n.DriverOpts})
	}
	if l := t.GetLogDriver(); l != nil {
		out.LogDriver = &swarm.Driver{Name: l.Name, Options: l.Options}
	}
	return out
}

func dockerResources(r *skepv1.Resources) swarm.Resources {
	out := swarm.Resources{NanoCPUs: r.GetNanoCpus(), MemoryBytes: r.GetMemoryBytes()}
	for _, g := range r.GetGeneric() {
		out.GenericResources = append(out.GenericResources, dockerGeneric(g)...)
	}
	return out
}

func dockerGeneric(g *skepv1.GenericResource) []swarm.GenericResource {
	var out []swarm.GenericResource
	for _, n := range g.Named {
		out = append(out, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: g.Kind, Value: n}})
	}
	if len(g.Named) == 0 {
		out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: g.Kind, Value: g.Value}})
	}
	return out
}

func dockerContainer(c *skepv1.ContainerSpec) *swarm.ContainerSpec {
	out := &swarm.ContainerSpec{
		Image: c.Image, Labels: c.Labels, Command: c.Command, Args: c.Args, Hostname: c.Hostname, Env: c.Env, Dir: c.Dir, User: c.User, Groups: c.Groups,
		Init: c.Init, StopSignal: c.StopSignal, TTY: c.Tty, OpenStdin: c.OpenStdin, ReadOnly: c.ReadOnly, StopGracePeriod: durPtr(c.StopGracePeriod),
		Hosts: c.Hosts, Isolation: container.Isolation(c.Isolation), Sysctls: c.Sysctls, CapabilityAdd: c.CapabilityAdd, CapabilityDrop: c.CapabilityDrop, OomScoreAdj: c.OomScoreAdj,
	}
	for _, m := range c.Mounts {
		out.Mounts = append(out.Mounts, dockerMount(m))
	}
	if h := c.Health; h != nil {
		out.Healthcheck = &container.HealthConfig{Test: checkWords(h), Interval: h.Interval.AsDuration(), Timeout: h.Timeout.AsDuration(),
			StartPeriod: h.StartPeriod.AsDuration(), StartInterval: h.StartInterval.AsDuration(), Retries: int(h.Retries)}
	}
	if d := c.Dns; d != nil {
		out.DNSConfig = &swarm.DNSConfig{Search: d.Search, Options: d.Options}
		for _, n := range d.Nameservers {
			if ip, err := netip.ParseAddr(n); err == nil {
				out.DNSConfig.Nameservers = append(out.DNSConfig.Nameservers, ip)
			}
		}
	}
	for _, r := range c.Secrets {
		out.Secrets = append(out.Secrets, &swarm.SecretReference{SecretID: r.Id, SecretName: r.Name,
			File: &swarm.SecretReferenceFileTarget{Name: r.Target, UID: r.Uid, GID: r.Gid, Mode: os.FileMode(r.Mode)}})
	}
	for _, r := range c.Configs {
		out.Configs = append(out.Configs, &swarm.ConfigReference{ConfigID: r.Id, ConfigName: r.Name,
			File: &swarm.ConfigReferenceFileTarget{Name: r.Target, UID: r.Uid, GID: r.Gid, Mode: os.FileMode(r.Mode)}})
	}
	for _, u := range c.Ulimits {
		out.Ulimits = append(out.Ulimits, &container.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	if p := c.Privileges; p != nil {
		out.Privileges = &swarm.Privileges{NoNewPrivileges: p.NoNewPrivileges}
		if scheme, rest, ok := strings.Cut(p.CredentialSpec, "://"); ok {
			out.Privileges.CredentialSpec = &swarm.CredentialSpec{}
			switch scheme {
			case "config":
				out.Privileges.CredentialSpec.Config = rest
			case "file":
				out.Privileges.CredentialSpec.File = rest
			default:
				out.Privileges.CredentialSpec.Registry = rest
			}
		}
		if p.SeccompMode != "" {
			out.Privileges.Seccomp = &swarm.SeccompOpts{Mode: swarm.SeccompMode(p.SeccompMode), Profile: p.SeccompProfile}
		}
		if p.ApparmorMode != "" {
			out.Privileges.AppArmor = &swarm.AppArmorOpts{Mode: swarm.AppArmorMode(p.ApparmorMode)}
		}
	}
	return out
}

func dockerMount(m *skepv1.Mount) mount.Mount {
	out := mount.Mount{Type: mount.Type(mountType(m.Type)), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly, Consistency: mount.Consistency(m.Consistency)}
	if m.BindPropagation != "" || m.BindRecursive != "" || m.BindCreateSrc {
		out.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(m.BindPropagation), CreateMountpoint: m.BindCreateSrc, NonRecursive: m.BindRecursive == "disabled",
			ReadOnlyNonRecursive: m.BindRecursive == "writable", ReadOnlyForceRecursive: m.BindRecursive == "readonly"}
	}
	if m.VolumeNocopy || m.VolumeSubpath != "" || m.VolumeDriver != "" || len(m.VolumeLabels)+len(m.VolumeOpts) > 0 {
		out.VolumeOptions = &mount.VolumeOptions{NoCopy: m.VolumeNocopy, Labels: m.VolumeLabels, Subpath: m.VolumeSubpath}
		if m.VolumeDriver != "" || len(m.VolumeOpts) > 0 {
			out.VolumeOptions.DriverConfig = &mount.Driver{Name: m.VolumeDriver, Options: m.VolumeOpts}
		}
	}
	if m.ImageSubpath != "" {
		out.ImageOptions = &mount.ImageOptions{Subpath: m.ImageSubpath}
	}
	if m.TmpfsSize != 0 || m.TmpfsMode != 0 {
		out.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: m.TmpfsSize, Mode: os.FileMode(m.TmpfsMode)}
	}
	return out
}

func mountType(t skepv1.Mount_Type) string { return enumWord(t.String(), "TYPE_") }

// DockerNode is a node in the form of Docker's API.
func DockerNode(n *skepv1.Node) any {
	d := n.GetDescription()
	out := swarm.Node{ID: n.GetMeta().GetId(), Meta: meta(n.Meta), Spec: swarm.NodeSpec{
		Annotations: swarm.Annotations{Name: n.GetSpec().GetName(), Labels: labels(n.GetSpec().GetLabels())},
		Role:        swarm.NodeRole(enumWord(n.GetSpec().GetRole().String(), "NODE_ROLE_")), Availability: swarm.NodeAvailability(enumWord(n.GetSpec().GetAvailability().String(), "AVAILABILITY_")),
	}}
	out.Description = swarm.NodeDescription{Hostname: d.GetHostname(), Platform: swarm.Platform{Architecture: d.GetPlatform().GetArch(), OS: d.GetPlatform().GetOs()},
		Resources: dockerResources(d.GetResources()), Engine: swarm.EngineDescription{EngineVersion: d.GetEngineVersion(), Labels: d.GetEngineLabels()}}
	for _, p := range d.GetPlugins() {
		out.Description.Engine.Plugins = append(out.Description.Engine.Plugins, swarm.PluginDescription{Type: p.Type, Name: p.Name})
	}
	out.Status = swarm.NodeStatus{State: swarm.NodeState(enumWord(n.GetStatus().GetState().String(), "NODE_STATE_")), Message: n.GetStatus().GetMessage(), Addr: d.GetAddr()}
	if out.Status.Message == "" && len(n.GetStatus().GetBlocked()) > 0 {
		out.Status.Message = "data path " + DataPath(n)
	}
	if m := n.Manager; m != nil {
		out.ManagerStatus = &swarm.ManagerStatus{Leader: m.Leader, Reachability: swarm.Reachability(m.Reachability), Addr: m.Addr}
	}
	return out
}

// DockerTask is a task in the form of Docker's API.
func DockerTask(t *skepv1.Task) any {
	out := swarm.Task{ID: t.GetMeta().GetId(), Meta: meta(t.Meta), Annotations: swarm.Annotations{Name: t.Name, Labels: map[string]string{}}, Spec: dockerTaskSpec(t.Spec),
		ServiceID: t.ServiceId, Slot: int(t.Slot), NodeID: t.NodeId, DesiredState: swarm.TaskState(StateWord(t.Desired))}
	st := t.GetStatus()
	out.Status = swarm.TaskStatus{State: swarm.TaskState(StateWord(st.GetState())), Message: st.GetMessage(), Err: st.GetErr(), PortStatus: swarm.PortStatus{Ports: dockerPorts(st.GetPorts())}}
	if ms := st.GetSinceUnixMs(); ms > 0 {
		out.Status.Timestamp = time.UnixMilli(ms).UTC()
	}
	if st.GetContainerId() != "" || st.GetPid() != 0 || st.GetExitCode() != 0 {
		out.Status.ContainerStatus = &swarm.ContainerStatus{ContainerID: st.ContainerId, PID: int(st.Pid), ExitCode: int(st.GetExitCode())}
	}
	for _, g := range t.Assigned {
		out.GenericResources = append(out.GenericResources, dockerGeneric(g)...)
	}
	if t.JobIteration > 0 {
		out.JobIteration = &swarm.Version{Index: t.JobIteration}
	}
	return task{Task: out, Status: taskStatus{TaskStatus: out.Status, Health: taskHealth(st)}}
}

// task is Docker's with what its API says of containers and not of tasks.
type task struct {
	swarm.Task
	Status taskStatus
}

type taskStatus struct {
	swarm.TaskStatus
	Health *health `json:",omitempty"`
}

// health is what a task's checks say. Status is Docker's word.
type health struct {
	Status   string
	NotReady bool   `json:",omitempty"`
	Output   string `json:",omitempty"`
}

func taskHealth(st *skepv1.TaskStatus) *health {
	if st.GetHealth() == skepv1.HealthState_HEALTH_STATE_NONE && !st.GetNotReady() && st.GetHealthOutput() == "" {
		return nil
	}
	return &health{Status: HealthWord(st.GetHealth()), NotReady: st.GetNotReady(), Output: st.GetHealthOutput()}
}

func labels(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func durPtr(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	v := d.AsDuration()
	return &v
}

func timePtr(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	v := t.AsTime()
	return &v
}
