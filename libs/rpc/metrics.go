package rpc

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"skep.dev/libs/fault"
)

// ok is the code of a request that was answered without a fault.
const ok fault.Code = "ok"

// meter counts requests for Prometheus. A nil one counts nothing.
type meter struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

// newMeter registers skep_<service>_requests_total and …_request_duration_seconds; the verbs are the endpoints' names, as
// `nats micro stats` shows them.
func newMeter(reg prometheus.Registerer, name string) (*meter, error) {
	if reg == nil {
		return nil, nil
	}
	prefix := strings.ReplaceAll(name, "-", "_")
	m := &meter{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "_requests_total", Help: "Requests answered, by verb and code (ok, or the fault's).",
		}, []string{"verb", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "_request_duration_seconds", Help: "Time from a request's arrival to its answer, by verb.",
			Buckets: []float64{.001, .0025, .01, .05, .25, 1, 10},
		}, []string{"verb"}),
	}
	// A service that comes and goes counts on.
	var have prometheus.AlreadyRegisteredError
	if err := reg.Register(m.requests); errors.As(err, &have) {
		m.requests = have.ExistingCollector.(*prometheus.CounterVec) //nolint:forcetypeassert // of the same description
	} else if err != nil {
		return nil, fmt.Errorf("register the metrics of service %s: %w", name, err)
	}
	if err := reg.Register(m.seconds); errors.As(err, &have) {
		m.seconds = have.ExistingCollector.(*prometheus.HistogramVec) //nolint:forcetypeassert // of the same description
	} else if err != nil {
		return nil, fmt.Errorf("register the metrics of service %s: %w", name, err)
	}
	return m, nil
}

func (m *meter) served(endpoint string, code fault.Code, began time.Time) {
	if m == nil {
		return
	}
	verb := endpointName(endpoint)
	m.requests.WithLabelValues(verb, string(code)).Inc()
	m.seconds.WithLabelValues(verb).Observe(time.Since(began).Seconds())
}
