package state

import (
	"fmt"

	"skep.dev/libs/metrics"
)

// register shows what is stored. It is looked up on a scrape and costs nothing between two.
func (s *Service) register() error {
	if s.cfg.Metrics == nil {
		return nil
	}
	err := s.cfg.Metrics.Register(metrics.NewFamily(s.measure).
		Gauge("skep_state_objects", "Objects stored, by kind: service, stack, node, network.", "kind").
		Gauge("skep_state_stack_problems", "What keeps a stack from being as asked.", "stack").
		Gauge("skep_state_service_tasks_desired", "Tasks the service should have now.", "service").
		Gauge("skep_state_service_tasks_running", "Tasks of the service that run.", "service"))
	if err != nil {
		return fmt.Errorf("state: register metrics: %w", err)
	}
	return nil
}

func (s *Service) measure(m *metrics.Sample) {
	services := s.ix.ServicesAfter("")
	m.Set("skep_state_objects", float64(len(services)), "service")
	m.Set("skep_state_objects", float64(len(s.ix.NodeIDs())), "node")
	stacks := s.ix.Stacks()
	m.Set("skep_state_objects", float64(len(stacks)), "stack")
	for _, n := range stacks {
		m.Set("skep_state_stack_problems", float64(len(s.ix.Stack(n.ID).GetProblems())), n.Name)
	}
	m.Set("skep_state_objects", float64(len(s.ix.Networks())), "network")
	for _, v := range services {
		// As `service ls` has it.
		st := s.viewService(v.ID).GetStatus()
		m.Set("skep_state_service_tasks_desired", float64(st.GetDesired()), v.Name)
		m.Set("skep_state_service_tasks_running", float64(st.GetRunning()), v.Name)
	}
}
