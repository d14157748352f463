package engine

import (
	"fmt"

	"skep.dev/libs/metrics"
)

// register shows what the server counts, looked up on a scrape.
func (s *Service) register() error {
	if s.cfg.Metrics == nil {
		return nil
	}
	err := s.cfg.Metrics.Register(metrics.NewFamily(func(m *metrics.Sample) {
		c := s.http.Counts()
		m.Set("skep_engine_requests_total", float64(c.Served), "served")
		m.Set("skep_engine_requests_total", float64(c.Refused), "refused")
		m.Set("skep_engine_panics_total", float64(c.Panics))
		m.Set("skep_engine_connections", float64(c.Connections))
		m.Set("skep_engine_open", float64(c.Requests), "request")
		m.Set("skep_engine_open", float64(c.Streams), "stream")
	}).
		Counter("skep_engine_requests_total", "Requests of Docker's API, by how they ended: served, refused.", "outcome").
		Counter("skep_engine_panics_total", "Requests that made the program fail.").
		Gauge("skep_engine_connections", "Connections on the socket.").
		Gauge("skep_engine_open", "What is under way: request, or stream for followers of logs and events.", "kind"))
	if err != nil {
		return fmt.Errorf("engine: register metrics: %w", err)
	}
	return nil
}
