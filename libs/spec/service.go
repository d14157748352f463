package spec

import (
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"skep.dev/libs/cron"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// MaxReplicas bounds one service: a slip of the finger must not fill the store.
const MaxReplicas = 1_000_000

var dnsName = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)

// Validate checks a whole service spec, with its defaults filled in or not.
func Validate(s *skepv1.ServiceSpec) error {
	if s == nil {
		return fault.Invalid("service spec is missing")
	}
	checks := []func(*skepv1.ServiceSpec) error{
		CheckSize,
		func(s *skepv1.ServiceSpec) error { return ValidateName(s.Name) },
		func(s *skepv1.ServiceSpec) error { return ValidateLabels(s.Labels) },
		validateMode,
		validateSchedule,
		validateDependencies,
		validateTask,
		validateUpdates,
		validateEndpoint,
	}
	for _, check := range checks {
		if err := check(s); err != nil {
			return err
		}
	}
	if s.HealthBudget > MaxReplicas {
		return fault.Invalid("invalid health-budget value %d: at most %d, or 0 for a quarter of the tasks", s.HealthBudget, MaxReplicas)
	}
	if _, ok := skepv1.PartitionPolicy_name[int32(s.OnPartition)]; !ok {
		return fault.Invalid("invalid on-partition policy %d: use keep or stop", s.OnPartition)
	}
	return nil
}

// ValidateName checks the name of a service or network.
func ValidateName(name string) error {
	switch {
	case name == "":
		return fault.Invalid("meta: name must be provided")
	case !dnsName.MatchString(name):
		return fault.Invalid("name must be valid as a DNS name component")
	case len(name) > 63:
		return fault.Invalid("name must be 63 characters or fewer")
	}
	return nil
}

// ValidateLabels checks the keys of labels; values are free.
func ValidateLabels(labels map[string]string) error {
	for k := range labels {
		if k == "" {
			return fault.Invalid("invalid label '%s': empty name", k+"="+labels[k])
		}
		if strings.ContainsFunc(k, unicode.IsSpace) {
			return fault.Invalid("label '%s' contains whitespaces", k)
		}
	}
	return nil
}

func validateMode(s *skepv1.ServiceSpec) error {
	perNode := s.GetTask().GetPlacement().GetMaxReplicasPerNode()
	switch m := s.GetMode().GetMode().(type) {
	case nil, *skepv1.ServiceMode_Replicated:
		if n := s.GetMode().GetReplicated().GetReplicas(); n > MaxReplicas {
			return fault.Invalid("invalid replicas value %d: at most %d", n, MaxReplicas)
		}
	case *skepv1.ServiceMode_ReplicatedJob:
		if n := max(m.ReplicatedJob.GetMaxConcurrent(), m.ReplicatedJob.GetTotalCompletions()); n > MaxReplicas {
			return fault.Invalid("invalid replicas value %d: at most %d", n, MaxReplicas)
		}
	default:
		if perNode > 0 {
			return fault.Invalid("replicas-max-per-node can only be used with replicated or replicated-job mode")
		}
	}
	return nil
}

func validateSchedule(s *skepv1.ServiceSpec) error {
	if s.Schedule == nil {
		return nil
	}
	if !IsJob(s) {
		return fault.Invalid("a schedule can only be used with replicated-job or global-job mode")
	}
	return cron.Validate(s.Schedule, time.Now())
}

// maxDependencies bounds what one service can wait for.
const maxDependencies = 50

func validateDependencies(s *skepv1.ServiceSpec) error {
	if n := len(s.DependsOn); n > maxDependencies {
		return fault.Invalid("the service depends on %d others: at most %d", n, maxDependencies)
	}
	seen := map[string]bool{}
	for _, d := range s.DependsOn {
		if d.GetService() == "" {
			return fault.Invalid("depends-on needs the name of a service")
		}
		if _, ok := skepv1.Dependency_Condition_name[int32(d.GetCondition())]; !ok {
			return fault.Invalid("invalid condition %d of depends-on %s: use started, healthy or completed", d.GetCondition(), d.GetService())
		}
		if seen[d.GetService()] {
			return fault.Invalid("the service depends on %s twice", d.GetService())
		}
		seen[d.GetService()] = true
	}
	return nil
}

func validateUpdates(s *skepv1.ServiceSpec) error {
	if IsJob(s) {
		if s.Update != nil || s.Rollback != nil {
			return fault.Invalid("update and rollback configuration is not supported for jobs")
		}
		return nil
	}
	if err := validateUpdate("update", s.Update); err != nil {
		return err
	}
	if err := validateUpdate("rollback", s.Rollback); err != nil {
		return err
	}
	if s.Rollback.GetFailureAction() == skepv1.FailureAction_FAILURE_ACTION_ROLLBACK {
		return fault.Invalid("invalid rollback-failure-action rollback: use pause or continue")
	}
	return nil
}

func validateUpdate(which string, u *skepv1.UpdateConfig) error {
	if u == nil {
		return nil
	}
	if err := notNegative("TaskSpec: "+which+"-delay", u.Delay); err != nil {
		return err
	}
	if err := notNegative("TaskSpec: "+which+"-monitor", u.Monitor); err != nil {
		return err
	}
	if err := notNegative("TaskSpec: "+which+"-timeout", u.Timeout); err != nil {
		return err
	}
	// Written so that NaN fails too.
	if !(u.MaxFailureRatio >= 0 && u.MaxFailureRatio <= 1) {
		return fault.Invalid("TaskSpec: %s-maxfailureratio cannot be less than 0 or bigger than 1", which)
	}
	if _, ok := skepv1.FailureAction_name[int32(u.FailureAction)]; !ok {
		return fault.Invalid("invalid %s-failure-action %d: use pause, continue or rollback", which, u.FailureAction)
	}
	if _, ok := skepv1.UpdateOrder_name[int32(u.Order)]; !ok {
		return fault.Invalid("invalid %s-order %d: use stop-first or start-first", which, u.Order)
	}
	return nil
}

func validateEndpoint(s *skepv1.ServiceSpec) error {
	e := s.Endpoint
	if e == nil {
		return nil
	}
	if _, ok := skepv1.EndpointSpec_Mode_name[int32(e.Mode)]; !ok {
		return fault.Invalid("EndpointSpec: invalid endpoint-mode %d: use vip or dnsrr", e.Mode)
	}
	if e.DnsStarting && len(Overlays(s)) == 0 {
		return fault.Invalid("EndpointSpec: dns-starting lists tasks by name on the service's networks, and it is on none: give it a network, or leave dns-starting out")
	}
	for i, p := range e.Ports {
		switch p.Protocol {
		case "", "tcp", "udp", "sctp":
		default:
			return fault.Invalid("invalid protocol value '%s': use tcp, udp or sctp", p.Protocol)
		}
		if _, ok := skepv1.PublishMode_name[int32(p.PublishMode)]; !ok {
			return fault.Invalid("invalid publish mode value (%d): must be either 'ingress' or 'host'", p.PublishMode)
		}
		if p.TargetPort == 0 {
			return fault.Invalid("missing mandatory field 'target' of a published port")
		}
		if p.TargetPort > 65535 {
			return fault.Invalid("EndpointSpec: invalid target port %d: use 1 to 65535", p.TargetPort)
		}
		if p.PublishedPort > 65535 {
			return fault.Invalid("EndpointSpec: invalid published port %d: use 1 to 65535, or none for a free one", p.PublishedPort)
		}
		if e.Mode == skepv1.EndpointSpec_MODE_DNSRR && p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_INGRESS {
			return fault.Invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		}
		if err := validateHostIP(s, p); err != nil {
			return err
		}
		if slices.ContainsFunc(e.Ports[:i], func(o *skepv1.PortConfig) bool { return PortsMeet(o, p) }) {
			return fault.Invalid("EndpointSpec: duplicate published ports provided")
		}
	}
	return nil
}

// HostPorts are the ports a task of the service opens on its own host. They are a part of what a task is; those on the
// mesh, and virtual addresses, lead to whatever tasks there are, so that publishing one restarts none.
func HostPorts(s *skepv1.ServiceSpec) []*skepv1.PortConfig {
	var out []*skepv1.PortConfig
	for _, p := range s.GetEndpoint().GetPorts() {
		if p.GetPublishMode() == skepv1.PublishMode_PUBLISH_MODE_HOST {
			out = append(out, p)
		}
	}
	return out
}
