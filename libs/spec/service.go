package spec

import (
	"regexp"
	"strings"
	"unicode"

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
		func(s *skepv1.ServiceSpec) error { return ValidateName(s.Name) },
		func(s *skepv1.ServiceSpec) error { return ValidateLabels(s.Labels) },
		validateMode,
		validateTask,
		validateUpdates,
		validateEndpoint,
	}
	for _, check := range checks {
		if err := check(s); err != nil {
			return err
		}
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
	type key struct {
		protocol string
		port     uint32
	}
	seen := map[key]bool{}
	for _, p := range e.Ports {
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
		if p.PublishedPort == 0 {
			continue
		}
		k := key{p.Protocol, p.PublishedPort}
		if k.protocol == "" {
			k.protocol = "tcp"
		}
		if seen[k] {
			return fault.Invalid("EndpointSpec: duplicate published ports provided")
		}
		seen[k] = true
	}
	return nil
}
