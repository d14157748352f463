package scheduler

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"skep.dev/libs/metrics"
	"skep.dev/libs/reconcile"
)

// meter counts what the leader does. With no registry nobody sees it.
type meter struct {
	plans   prometheus.Histogram
	commits *prometheus.CounterVec
	changes *prometheus.CounterVec
	placed  prometheus.Counter
	leading prometheus.Gauge
}

func newMeter(reg prometheus.Registerer) *meter {
	f := promauto.With(reg)
	m := &meter{
		plans: f.NewHistogram(prometheus.HistogramOpts{
			Name: "skep_scheduler_plan_duration_seconds", Help: "Time to make one plan, without its commit.", Buckets: metrics.DurationBuckets,
		}),
		commits: f.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_scheduler_batches_total", Help: "Batches written, by result: ok, failed.",
		}, []string{"result"}),
		changes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_scheduler_task_changes_total", Help: "Changes of tasks committed, by verb.",
		}, []string{"verb"}),
		placed: f.NewCounter(prometheus.CounterOpts{
			Name: "skep_scheduler_tasks_placed_total", Help: "Tasks that were given a node.",
		}),
		leading: f.NewGauge(prometheus.GaugeOpts{
			Name: "skep_scheduler_leading", Help: "1 for the instance that plans, 0 for one that stands by.",
		}),
	}
	m.commits.WithLabelValues("ok")
	m.commits.WithLabelValues("failed")
	return m
}

func (m *meter) planned(began time.Time) { m.plans.Observe(time.Since(began).Seconds()) }

func (m *meter) committed(b *reconcile.Batch, err error) {
	if err != nil {
		m.commits.WithLabelValues("failed").Inc()
		return
	}
	m.commits.WithLabelValues("ok").Inc()
	for i := range b.Changes {
		c := &b.Changes[i]
		m.changes.WithLabelValues(c.Verb.String()).Inc()
		if c.Node != nil && (c.Verb == reconcile.Create || c.Verb == reconcile.Place) {
			m.placed.Inc()
		}
	}
}

// register shows how large the picture is. It is looked up on a scrape.
func (s *Service) register() error {
	if s.cfg.Metrics == nil {
		return nil
	}
	err := s.cfg.Metrics.Register(metrics.NewFamily(func(m *metrics.Sample) {
		s.mu.Lock()
		_, _, tasks := s.state.Sizes()
		pending := s.state.Pending()
		s.mu.Unlock()
		m.Set("skep_scheduler_tasks", float64(tasks))
		m.Set("skep_scheduler_tasks_pending", float64(pending))
	}).
		Gauge("skep_scheduler_tasks", "Tasks there are, those kept as history included.").
		Gauge("skep_scheduler_tasks_pending", "Tasks that should run and have no node: `skep service explain` says why."))
	if err != nil {
		return fmt.Errorf("scheduler: register metrics: %w", err)
	}
	return nil
}
