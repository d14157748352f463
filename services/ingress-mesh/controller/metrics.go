package controller

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"skep.dev/libs/metrics"
)

// meter counts what the leader does. With no registry nobody sees it.
type meter struct {
	leading prometheus.Gauge
	rounds  prometheus.Histogram
	failed  prometheus.Counter
	silent  prometheus.Gauge
}

func newMeter(reg prometheus.Registerer) *meter {
	f := promauto.With(reg)
	return &meter{
		leading: f.NewGauge(prometheus.GaugeOpts{
			Name: "skep_mesh_controller_leading", Help: "1 for the instance that writes who is where, 0 for one that stands by.",
		}),
		rounds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "skep_mesh_controller_round_duration_seconds", Help: "Time to derive what changed and write it.", Buckets: metrics.DurationBuckets,
		}),
		failed: f.NewCounter(prometheus.CounterOpts{
			Name: "skep_mesh_controller_round_errors_total", Help: "Rounds whose records were not written, and are tried again.",
		}),
		silent: f.NewGauge(prometheus.GaugeOpts{
			Name: "skep_mesh_controller_silent_nodes", Help: "Nodes that are up and did not say in time that they acted on a drain: nobody waits for them until they answer.",
		}),
	}
}

func (m *meter) committed(began time.Time, err error) {
	m.rounds.Observe(time.Since(began).Seconds())
	if err != nil {
		m.failed.Inc()
	}
}
