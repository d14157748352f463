package health

import (
	"context"
	"fmt"
	"time"

	"skep.dev/libs/metrics"
)

// scrapeFor bounds how long a scrape waits for the loop, which alone knows.
const scrapeFor = 2 * time.Second

// register shows what the loop knows, looked up on a scrape. Leader and standby show the same but for who leads.
func (s *Service) register(ctx context.Context, do chan func()) error {
	if s.cfg.Metrics == nil {
		return nil
	}
	err := s.cfg.Metrics.Register(metrics.NewFamily(func(m *metrics.Sample) {
		done := make(chan func(), 1)
		ask := func() { done <- s.measured(m) }
		late := time.After(scrapeFor)
		select {
		case do <- ask:
		case <-ctx.Done():
			return
		case <-late:
			m.Fail("skep_health_nodes", fmt.Errorf("the monitor did not answer within %s", scrapeFor))
			return
		}
		select {
		case set := <-done:
			set()
		case <-ctx.Done():
		case <-late:
			m.Fail("skep_health_nodes", fmt.Errorf("the monitor did not answer within %s", scrapeFor))
		}
	}).
		Gauge("skep_health_nodes", "Nodes, by state: ready, down, unknown.", "state").
		Gauge("skep_health_nodes_path_blocked", "Ready nodes whose containers do not reach those of some other ready node.").
		Counter("skep_health_heartbeats_total", "Heartbeats heard.").
		Counter("skep_health_heartbeats_late_total", "Heartbeats of ready nodes that came most of a period after they were due.").
		Gauge("skep_health_leading", "1 for the instance that writes verdicts, 0 for one that stands by."))
	if err != nil {
		return fmt.Errorf("health: register metrics: %w", err)
	}
	return nil
}

// measured runs on the loop: it copies what it counts, and what it returns sets the values on the scrape's goroutine.
func (s *Service) measured(m *metrics.Sample) func() {
	up, down, unknown := s.core.Count()
	beats, late, leading := s.beats, s.core.Late(), 0.0
	if s.leading {
		leading = 1
	}
	blocked := 0
	for _, r := range s.record {
		if len(r.live.GetBlocked()) > 0 {
			blocked++
		}
	}
	return func() {
		m.Set("skep_health_nodes_path_blocked", float64(blocked))
		m.Set("skep_health_nodes", float64(up), "ready")
		m.Set("skep_health_nodes", float64(down), "down")
		m.Set("skep_health_nodes", float64(unknown), "unknown")
		m.Set("skep_health_heartbeats_total", float64(beats))
		m.Set("skep_health_heartbeats_late_total", float64(late))
		m.Set("skep_health_leading", leading)
	}
}
