package vault

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// countIssued counts certificates by what they were issued for. With no registry nobody sees it.
func countIssued(reg prometheus.Registerer) *prometheus.CounterVec {
	v := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "skep_vault_certificates_issued_total", Help: "Certificates issued, by what for: join, renew, user.",
	}, []string{"for"})
	for _, what := range []string{"join", "renew", "user"} {
		v.WithLabelValues(what)
	}
	return v
}

// showLocked is whether this vault waits for the unlock key.
func showLocked(reg prometheus.Registerer) prometheus.Gauge {
	return promauto.With(reg).NewGauge(prometheus.GaugeOpts{
		Name: "skep_vault_locked", Help: "1 while this manager's vault waits for the unlock key, else 0.",
	})
}
