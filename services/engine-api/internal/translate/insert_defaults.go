package translate

import (
	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/spec"
)

// InsertDefaults fills in what a spec leaves open, as clients ask for with insertDefaults=true. A stored spec has most of it
// already. Jobs have no update configuration: one that was inserted could not be sent back.
func InsertDefaults(s *swarm.ServiceSpec) {
	t := &s.TaskTemplate
	if t.ContainerSpec == nil {
		t.ContainerSpec = &swarm.ContainerSpec{}
	}
	fill(&t.ContainerSpec.StopGracePeriod, spec.DefaultStopGrace)
	fill(&t.ContainerSpec.DNSConfig, swarm.DNSConfig{})
	fill(&t.Resources, swarm.ResourceRequirements{})
	fill(&t.Placement, swarm.Placement{})
	fill(&t.RestartPolicy, swarm.RestartPolicy{})
	if t.RestartPolicy.Condition == "" {
		t.RestartPolicy.Condition = swarm.RestartPolicyConditionAny
	}
	fill(&t.RestartPolicy.Delay, spec.DefaultRestartDelay)
	fill(&t.RestartPolicy.MaxAttempts, 0)
	if s.Mode.ReplicatedJob == nil && s.Mode.GlobalJob == nil {
		fill(&s.UpdateConfig, swarm.UpdateConfig{Parallelism: 1})
		fill(&s.RollbackConfig, swarm.UpdateConfig{Parallelism: 1})
		for _, c := range []*swarm.UpdateConfig{s.UpdateConfig, s.RollbackConfig} {
			if c.FailureAction == "" {
				c.FailureAction = swarm.UpdateFailureActionPause
			}
			if c.Monitor == 0 {
				c.Monitor = spec.DefaultMonitor
			}
			if c.Order == "" {
				c.Order = swarm.UpdateOrderStopFirst
			}
		}
	}
	fill(&s.EndpointSpec, swarm.EndpointSpec{})
	if s.EndpointSpec.Mode == "" {
		s.EndpointSpec.Mode = swarm.ResolutionModeVIP
	}
}

func fill[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}
