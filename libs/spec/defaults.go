package spec

import (
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/cron"
	skepv1 "skep.dev/proto/skep/v1"
)

// The defaults of a service, as Docker Swarm's.
const (
	DefaultStopGrace    = 10 * time.Second
	DefaultRestartDelay = 5 * time.Second
	DefaultMaxDelay     = 5 * time.Minute // of restarts; Swarm has none
	DefaultMonitor      = 5 * time.Second
	// DefaultUpdateTimeout is how long a new task of an update has until it serves.
	DefaultUpdateTimeout = 10 * time.Minute
	DefaultFileMode      = 0o444
)

// Defaults fills in everything that was left open, so that a stored spec never depends on a later version's
// defaults. It is idempotent and does not validate.
func Defaults(s *skepv1.ServiceSpec) {
	if s == nil {
		return
	}
	if s.Task == nil {
		s.Task = &skepv1.TaskSpec{}
	}
	defaultMode(s)
	defaultTask(s.Task)
	if !IsJob(s) {
		s.Update = defaultUpdate(s.Update)
		s.Rollback = defaultUpdate(s.Rollback)
	}
	defaultSchedule(s.Schedule)
	for _, d := range s.DependsOn {
		if d.Condition == skepv1.Dependency_CONDITION_UNSPECIFIED {
			d.Condition = skepv1.Dependency_CONDITION_STARTED
		}
	}
	if s.Endpoint == nil {
		s.Endpoint = &skepv1.EndpointSpec{}
	}
	for _, p := range s.Endpoint.Ports {
		p.Protocol = strings.ToLower(p.Protocol)
		if p.Protocol == "" {
			p.Protocol = "tcp"
		}
		p.HostIp = hostIP(p)
	}
}

func defaultMode(s *skepv1.ServiceSpec) {
	if s.Mode == nil || s.Mode.Mode == nil {
		s.Mode = Replicated(1)
	}
	if j := s.Mode.GetReplicatedJob(); j != nil {
		if j.MaxConcurrent == 0 {
			j.MaxConcurrent = 1
			if j.TotalCompletions > 0 {
				j.MaxConcurrent = j.TotalCompletions
			}
		}
		if j.TotalCompletions == 0 {
			j.TotalCompletions = j.MaxConcurrent
		}
	}
}

func defaultSchedule(s *skepv1.Schedule) {
	if s == nil {
		return
	}
	if s.Concurrency == skepv1.Concurrency_CONCURRENCY_UNSPECIFIED {
		s.Concurrency = skepv1.Concurrency_CONCURRENCY_FORBID
	}
	if s.KeepCompleted == nil {
		s.KeepCompleted = proto.Uint32(cron.DefaultKeepCompleted)
	}
	if s.KeepFailed == nil {
		s.KeepFailed = proto.Uint32(cron.DefaultKeepFailed)
	}
	if s.CatchUp == nil {
		s.CatchUp = durationpb.New(cron.DefaultCatchUp)
	}
}

func defaultTask(t *skepv1.TaskSpec) {
	if c := t.Container; c != nil {
		if n, err := NormalizeImage(c.Image); err == nil {
			c.Image = n
		}
		if c.StopGracePeriod == nil {
			c.StopGracePeriod = durationpb.New(DefaultStopGrace)
		}
		c.StopSignal = strings.ToUpper(c.StopSignal)
		c.SecretUpdateSignal, c.ConfigUpdateSignal = strings.ToUpper(c.SecretUpdateSignal), strings.ToUpper(c.ConfigUpdateSignal)
		for i, v := range c.CapabilityAdd {
			c.CapabilityAdd[i] = normalizeCapability(v)
		}
		for i, v := range c.CapabilityDrop {
			c.CapabilityDrop[i] = normalizeCapability(v)
		}
		for _, m := range c.Mounts {
			if m.Type == skepv1.Mount_TYPE_BIND && m.BindPropagation == "" {
				m.BindPropagation = "rprivate"
			}
			if m.Type == skepv1.Mount_TYPE_TMPFS && m.TmpfsMode == 0 {
				m.TmpfsMode = 0o1777
			}
		}
		defaultFiles(c.Secrets)
		defaultFiles(c.Configs)
	}
	for _, n := range t.Networks {
		if a, err := netip.ParseAddr(n.Ipv6Address); err == nil {
			n.Ipv6Address = a.String() // the one spelling of it
		}
	}
	if t.Restart == nil {
		t.Restart = &skepv1.RestartPolicy{}
	}
	if t.Restart.Condition == skepv1.RestartCondition_RESTART_CONDITION_UNSPECIFIED {
		t.Restart.Condition = skepv1.RestartCondition_RESTART_CONDITION_ANY
	}
	if t.Restart.Delay == nil {
		t.Restart.Delay = durationpb.New(DefaultRestartDelay)
	}
	if t.Restart.MaxDelay == nil {
		t.Restart.MaxDelay = durationpb.New(DefaultMaxDelay)
	}
	if t.Resources == nil {
		t.Resources = &skepv1.ResourceRequirements{}
	}
	if t.Placement == nil {
		t.Placement = &skepv1.Placement{}
	}
}

func defaultFiles(files []*skepv1.FileReference) {
	for _, f := range files {
		if f.Target == "" {
			f.Target = f.Name
		}
		if f.Uid == "" {
			f.Uid = "0"
		}
		if f.Gid == "" {
			f.Gid = "0"
		}
		if f.Mode == 0 {
			f.Mode = DefaultFileMode
		}
	}
}

// defaultUpdate keeps Swarm's rule: no configuration means one at a time, a given one with parallelism 0 means all.
func defaultUpdate(u *skepv1.UpdateConfig) *skepv1.UpdateConfig {
	if u == nil {
		u = &skepv1.UpdateConfig{Parallelism: 1}
	}
	if u.FailureAction == skepv1.FailureAction_FAILURE_ACTION_UNSPECIFIED {
		u.FailureAction = skepv1.FailureAction_FAILURE_ACTION_PAUSE
	}
	if u.Order == skepv1.UpdateOrder_UPDATE_ORDER_UNSPECIFIED {
		u.Order = skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST
	}
	if u.Monitor.AsDuration() == 0 {
		u.Monitor = durationpb.New(DefaultMonitor)
	}
	if u.Delay == nil {
		u.Delay = durationpb.New(0)
	}
	if u.Timeout == nil {
		u.Timeout = durationpb.New(DefaultUpdateTimeout)
	}
	return u
}

// Replicated is the mode of a service with n replicas.
func Replicated(n uint64) *skepv1.ServiceMode {
	return &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Replicated{Replicated: &skepv1.ReplicatedMode{Replicas: n}}}
}

// Mode names the mode as the CLI does: replicated, global, replicated-job, global-job.
func Mode(s *skepv1.ServiceSpec) string {
	switch s.GetMode().GetMode().(type) {
	case *skepv1.ServiceMode_Global:
		return "global"
	case *skepv1.ServiceMode_ReplicatedJob:
		return "replicated-job"
	case *skepv1.ServiceMode_GlobalJob:
		return "global-job"
	}
	return "replicated"
}

// IsJob tells services that run to completion from those that are kept running.
func IsJob(s *skepv1.ServiceSpec) bool { return strings.HasSuffix(Mode(s), "-job") }

// Replicas is the number of tasks the spec asks for at a time: ok is false for global services, whose number is the
// nodes'.
func Replicas(s *skepv1.ServiceSpec) (n uint64, ok bool) {
	switch m := s.GetMode().GetMode().(type) {
	case *skepv1.ServiceMode_Replicated:
		return m.Replicated.GetReplicas(), true
	case *skepv1.ServiceMode_ReplicatedJob:
		return m.ReplicatedJob.GetTotalCompletions(), true
	}
	return 0, false
}
