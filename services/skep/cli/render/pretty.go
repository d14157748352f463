package render

import (
	"cmp"
	"io"
	"math/big"
	"sort"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
)

// page writes the indented "Key: value" text of inspect --pretty.
type page struct{ w io.Writer }

func (p page) line(indent int, format string, a ...any) {
	plain.Fprintf(p.w, strings.Repeat(" ", indent)+format+"\n", a...)
}

// field writes one value, unless it is empty.
func (p page) field(indent int, key, val string) {
	if val != "" {
		p.line(indent, "%s:\t%s", key, val)
	}
}

func (p page) labels(indent int, title string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	p.line(indent, "%s:", title)
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if m[k] == "" {
			p.line(indent, " - %s", k)
		} else {
			p.line(indent, " - %s=%s", k, m[k])
		}
	}
}

func duration(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return d.AsDuration().String()
}

// PrettyService is `service inspect --pretty`.
func PrettyService(w io.Writer, s *skepv1.Service, now time.Time) {
	p, spec, task := page{w}, s.GetSpec(), s.GetSpec().GetTask()
	c := task.GetContainer()
	p.field(0, "ID", s.GetMeta().GetId())
	p.field(0, "Name", spec.GetName())
	p.labels(0, "Labels", spec.GetLabels())
	p.line(0, "Service Mode:\t%s", title(Mode(spec.GetMode())))
	switch m := spec.GetMode().GetMode().(type) {
	case *skepv1.ServiceMode_Replicated:
		p.line(0, " Replicas:\t%d", m.Replicated.Replicas)
	case *skepv1.ServiceMode_ReplicatedJob:
		p.line(0, " Max Concurrent:\t%d", m.ReplicatedJob.MaxConcurrent)
		p.line(0, " Total Completions:\t%d", m.ReplicatedJob.TotalCompletions)
	}
	if st := s.Status; st != nil {
		p.line(0, "Tasks:\t\t%s running", Replicas(s))
	}
	p.job(s, now)
	p.line(0, "Revision:\t%d", s.Revision)
	if s.PreviousRevision > 0 {
		p.line(0, " Previous:\t%d", s.PreviousRevision)
	}
	if u := s.UpdateStatus; u.GetState() != "" {
		p.line(0, "UpdateStatus:")
		p.field(1, "State", u.State)
		if u.StartedAt != nil {
			p.field(1, "Started", Ago(u.StartedAt.AsTime(), now))
		}
		if u.CompletedAt != nil {
			p.field(1, "Completed", Ago(u.CompletedAt.AsTime(), now))
		}
		p.field(1, "Message", u.Message)
	}
	if pl := task.GetPlacement(); pl != nil && len(pl.Constraints)+len(pl.Preferences)+int(pl.MaxReplicasPerNode) > 0 || pl.GetVolumePin() {
		p.line(0, "Placement:")
		if len(pl.Constraints) > 0 {
			p.line(1, "Constraints:\t[%s]", strings.Join(pl.Constraints, " "))
		}
		if pl.VolumePin {
			p.line(1, "Volume Pin:\tyes: a task stays where its local volumes are")
		}
		if len(pl.Preferences) > 0 {
			p.line(1, "Preferences:")
			for _, x := range pl.Preferences {
				p.line(2, "Spread:\t%s", x.Spread)
			}
		}
		if pl.MaxReplicasPerNode > 0 {
			p.line(1, "Max Replicas Per Node:\t%d", pl.MaxReplicasPerNode)
		}
	}
	p.update("UpdateConfig", spec.GetUpdate())
	p.update("RollbackConfig", spec.GetRollback())
	if r := task.GetRestart(); r != nil {
		p.line(0, "RestartPolicy:")
		p.field(1, "Condition", RestartCondition(r.Condition))
		p.field(1, "Delay", duration(r.Delay))
		if r.MaxAttempts > 0 {
			p.line(1, "Max attempts:\t%d", r.MaxAttempts)
		}
		if r.MaxDelay.AsDuration() > 0 {
			p.field(1, "Max delay", duration(r.MaxDelay))
		}
		if r.Window.AsDuration() > 0 {
			p.field(1, "Window", duration(r.Window))
		}
	}
	if n := spec.GetHealthBudget(); n > 0 {
		p.line(0, "Health budget:\t%d", n)
	}
	p.container(c)
	p.resources(task.GetResources())
	if len(task.GetNetworks()) > 0 {
		var names []string
		for _, n := range task.Networks {
			names = append(names, n.Target)
			if own := strings.TrimSpace(n.Ipv4Address + " " + n.Ipv6Address); own != "" {
				names = append(names, "("+own+")")
			}
		}
		p.line(0, "Networks: %s", strings.Join(names, " "))
	}
	if l := task.GetLogDriver(); l.GetName() != "" {
		p.line(0, "Log Driver:\t%s", l.Name)
		p.labels(1, "LogOpts", l.Options)
	}
	mode := "vip"
	if spec.GetEndpoint().GetMode() == skepv1.EndpointSpec_MODE_DNSRR {
		mode = "dnsrr"
	}
	p.line(0, "Endpoint Mode:\t%s", mode)
	if spec.GetEndpoint().GetDnsStarting() {
		p.line(0, "DNS Starting:\ttrue")
	}
	ports := s.GetEndpoint().GetPorts()
	if len(ports) == 0 {
		ports = spec.GetEndpoint().GetPorts()
	}
	if len(ports) > 0 {
		p.line(0, "Ports:")
		for _, x := range ports {
			p.line(1, "PublishedPort = %d", x.PublishedPort)
			p.line(2, "Protocol = %s", protocol(x))
			p.line(2, "TargetPort = %d", x.TargetPort)
			p.line(2, "PublishMode = %s", enumWord(x.PublishMode.String(), "PUBLISH_MODE_"))
			if x.HostIp != "" {
				p.line(2, "HostIP = %s", x.HostIp)
			}
		}
	}
	if spec.GetOnPartition() == skepv1.PartitionPolicy_PARTITION_POLICY_STOP {
		p.line(0, "On Partition:\tstop")
	}
}

func (p page) update(name string, c *skepv1.UpdateConfig) {
	if c == nil {
		return
	}
	p.line(0, "%s:", name)
	p.line(1, "Parallelism:\t%d", c.Parallelism)
	if c.Delay.AsDuration() > 0 {
		p.field(1, "Delay", duration(c.Delay))
	}
	p.field(1, "On failure", FailureAction(c.FailureAction))
	p.field(1, "Monitoring Period", duration(c.Monitor))
	p.line(1, "Max failure ratio:\t%g", c.MaxFailureRatio)
	p.field(1, "Update order", Order(c.Order))
}

func (p page) container(c *skepv1.ContainerSpec) {
	if c == nil {
		return
	}
	list := func(key string, v []string) {
		if len(v) > 0 {
			p.field(1, key, strings.Join(v, " "))
		}
	}
	p.line(0, "ContainerSpec:")
	p.field(1, "Image", c.Image)
	list("Command", c.Command)
	list("Args", c.Args)
	list("Env", c.Env)
	p.field(1, "Dir", c.Dir)
	p.field(1, "User", c.User)
	list("Groups", c.Groups)
	p.field(1, "Hostname", c.Hostname)
	if c.Init != nil {
		p.line(1, "Init:\t%t", *c.Init)
	}
	if c.Tty {
		p.line(1, "TTY:\ttrue")
	}
	if c.ReadOnly {
		p.line(1, "Read only:\ttrue")
	}
	p.field(1, "StopSignal", c.StopSignal)
	p.field(1, "StopGracePeriod", duration(c.StopGracePeriod))
	p.labels(1, "Labels", c.Labels)
	list("CapabilityAdd", c.CapabilityAdd)
	list("CapabilityDrop", c.CapabilityDrop)
	for _, u := range c.Ulimits {
		p.line(1, "Ulimit:\t%s=%d:%d", u.Name, u.Soft, u.Hard)
	}
	p.labels(1, "Sysctls", c.Sysctls)
	list("Hosts", c.Hosts)
	if d := c.Dns; d != nil {
		list("DNS", d.Nameservers)
		list("DNS search", d.Search)
		list("DNS options", d.Options)
	}
	if len(c.Mounts) > 0 {
		p.line(0, "Mounts:")
		for _, m := range c.Mounts {
			p.line(1, "Target:\t%s", m.Target)
			p.field(2, "Source", m.Source)
			p.line(2, "ReadOnly:\t%t", m.ReadOnly)
			p.line(2, "Type:\t%s", mountType(m.Type))
			p.field(2, "Driver", m.VolumeDriver)
			p.labels(2, "Options", m.VolumeOpts)
			p.field(2, "Subpath", cmp.Or(m.VolumeSubpath, m.ImageSubpath))
			p.field(2, "Sharing", m.VolumeSharing)
			if m.VolumeNocopy {
				p.line(2, "NoCopy:\ttrue")
			}
			if m.BindWait {
				p.line(2, "WaitForMount:\ttrue")
			}
		}
	}
	refs := func(name string, rs []*skepv1.FileReference) {
		if len(rs) == 0 {
			return
		}
		p.line(0, "%s:", name)
		for _, r := range rs {
			p.line(1, "Target:\t%s", r.Target)
			p.line(2, "Source:\t%s", r.Name)
		}
	}
	refs("Secrets", c.Secrets)
	refs("Configs", c.Configs)
	p.check("Healthcheck", c.Health)
	p.check("Readiness check", c.Ready)
}

func (p page) resources(r *skepv1.ResourceRequirements) {
	part := func(name string, v *skepv1.Resources) {
		if v == nil || v.NanoCpus == 0 && v.MemoryBytes == 0 && v.Pids == 0 && len(v.Generic) == 0 {
			return
		}
		p.line(1, "%s:", name)
		if v.NanoCpus != 0 {
			p.field(2, "CPU", cpus(v.NanoCpus))
		}
		if v.MemoryBytes != 0 {
			p.field(2, "Memory", Bytes(v.MemoryBytes))
		}
		if v.Pids != 0 {
			p.line(2, "PIDs:\t%d", v.Pids)
		}
		for _, g := range v.Generic {
			p.line(2, "%s:\t%d", g.Kind, g.Value)
		}
	}
	if r == nil {
		return
	}
	p.line(0, "Resources:")
	part("Reservations", r.Reservations)
	part("Limits", r.Limits)
	if r.SwapBytes != nil {
		if *r.SwapBytes < 0 {
			p.line(1, "Swap:\tunlimited")
		} else {
			p.field(1, "Swap", Bytes(*r.SwapBytes))
		}
	}
	if r.MemorySwappiness != nil {
		p.line(1, "Swappiness:\t%d", *r.MemorySwappiness)
	}
}

func cpus(nano int64) string {
	return strings.TrimRight(strings.TrimRight(big.NewRat(nano, 1e9).FloatString(9), "0"), ".")
}

// PrettyNode is `node inspect --pretty`.
func PrettyNode(w io.Writer, n *skepv1.Node) {
	p, d := page{w}, n.GetDescription()
	p.line(0, "ID:\t\t\t%s", n.GetMeta().GetId())
	if n.GetSpec().GetName() != "" {
		p.line(0, "Name:\t\t\t%s", n.Spec.Name)
	}
	p.labels(0, "Labels", n.GetSpec().GetLabels())
	p.line(0, "Hostname:              \t%s", Hostname(n))
	if n.GetMeta().GetCreatedAt() != nil {
		p.line(0, "Joined at:             \t%s", n.Meta.CreatedAt.AsTime().UTC().Format("2006-01-02 15:04:05.999999999 -0700 utc"))
	}
	p.line(0, "Status:")
	p.line(1, "State:\t\t\t%s", NodeStatus(n))
	if why := n.GetDescription().GetTrouble(); why != "" {
		p.line(1, "Begins no tasks:\t%s (since %s)", why, time.UnixMilli(n.GetDescription().GetTroubleSinceUnixMs()).UTC().Format(time.RFC3339))
	}
	if n.GetStatus().GetMessage() != "" {
		p.line(1, "Message:\t\t%s", n.Status.Message)
	}
	if f := Fence(n); f != "" {
		p.line(1, "Fenced:\t\t\t%s", f)
	}
	if len(n.GetStatus().GetBlocked()) > 0 {
		p.line(1, "Data Path:\t\t%s", DataPath(n))
	}
	p.line(1, "Availability:         \t%s", Availability(n.GetSpec().GetAvailability()))
	p.line(1, "Address:\t\t%s", d.GetAddr())
	if m := n.Manager; m != nil {
		p.line(0, "Manager Status:")
		p.line(1, "Address:\t\t%s", m.Addr)
		p.line(1, "Raft Status:\t\t%s", title(m.Reachability))
		leader := "No"
		if m.Leader {
			leader = "Yes"
		}
		p.line(1, "Leader:\t\t%s", leader)
		if m.Server != "" {
			p.line(1, "Server:\t\t%s", m.Server)
		}
		if m.State != "" && m.State != "voter" {
			p.line(1, "State:\t\t\t%s", title(m.State))
		}
		if m.Witness {
			p.line(1, "Witness:\t\tYes")
		}
	}
	p.line(0, "Platform:")
	p.line(1, "Operating System:\t%s", d.GetPlatform().GetOs())
	p.line(1, "Architecture:\t\t%s", d.GetPlatform().GetArch())
	p.line(0, "Resources:")
	p.line(1, "CPUs:\t\t\t%s", cpus(d.GetResources().GetNanoCpus()))
	p.line(1, "Memory:\t\t%s", Bytes(d.GetResources().GetMemoryBytes()))
	for _, g := range d.GetResources().GetGeneric() {
		if len(g.Named) > 0 {
			p.line(1, "%s:\t\t\t%s", g.Kind, strings.Join(g.Named, " "))
		} else {
			p.line(1, "%s:\t\t\t%d", g.Kind, g.Value)
		}
	}
	byType := map[string][]string{}
	for _, x := range d.GetPlugins() {
		byType[x.Type] = append(byType[x.Type], x.Name)
	}
	if len(byType) > 0 {
		p.line(0, "Plugins:")
		var types []string
		for t := range byType {
			types = append(types, t)
		}
		sort.Strings(types)
		for _, t := range types {
			sort.Strings(byType[t])
			p.line(1, "%s:\t\t%s", t, strings.Join(byType[t], ", "))
		}
	}
	p.line(0, "Engine Version:\t\t%s", d.GetEngineVersion())
	p.labels(0, "Engine Labels", d.GetEngineLabels())
	if n.Number > 0 {
		p.line(0, "Node Number:\t\t%d", n.Number)
		p.line(0, "Subnet:\t\t\t%s", n.Subnet)
	}
}
