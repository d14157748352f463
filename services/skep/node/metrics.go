package node

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"skep.dev/libs/metrics"
)

// registries are the metrics of one process: those that every node has, and those of the managers' services, which come and
// go with its role. nil shows nothing.
type registries struct {
	every *prometheus.Registry

	mu       sync.Mutex
	managers *prometheus.Registry
}

func newRegistries(version, commit string) *registries {
	return &registries{every: metrics.New(version, commit), managers: prometheus.NewRegistry()}
}

func (r *registries) node() prometheus.Registerer {
	if r == nil {
		return nil
	}
	return r.every
}

// managing forgets what managers' services showed before and takes what those that start now will.
func (r *registries) managing() prometheus.Registerer {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.managers = prometheus.NewRegistry()
	return r.managers
}

// Gather implements prometheus.Gatherer.
func (r *registries) Gather() ([]*dto.MetricFamily, error) {
	r.mu.Lock()
	both := prometheus.Gatherers{r.every, r.managers}
	r.mu.Unlock()
	return both.Gather()
}
