// Package metrics is what a process of skep shows to Prometheus: one registry a process, made by whoever assembles the
// process and handed to its services, and the HTTP listener that serves it.
//
// There is no global registry. A service takes a prometheus.Registerer; nil means that nobody looks: counters are then
// kept by nobody, and what is collected on a scrape is never collected. Names are skep_<service>_<thing>_<unit>.
//
// It refuses to serve anything but /metrics and a page that says so, and to listen unless told to: what it shows names
// services and nodes, and it asks nobody who they are.
package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// New is a process's registry. It has the runtime's own metrics (go_…, process_…) and skep_build_info.
func New(version, commit string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "skep_build_info", Help: "1; the version that runs.", ConstLabels: prometheus.Labels{"version": version, "commit": commit},
	})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// DurationBuckets fit what takes from a millisecond to a minute, in seconds.
var DurationBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

// Gauge is a value looked up when it is scraped.
func Gauge(name, help string, value func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
}

// Counter is a count kept elsewhere, looked up when it is scraped.
func Counter(name, help string, value func() float64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value)
}

// Family is a set of metrics that is collected as a whole, on a scrape.
type Family struct {
	descs   map[string]*prometheus.Desc
	kinds   map[string]prometheus.ValueType
	collect func(*Sample)
}

// Sample takes the values of one scrape.
type Sample struct {
	f   *Family
	out chan<- prometheus.Metric
}

// NewFamily is one without metrics; collect is called for each scrape, by several goroutines at once if several scrape.
func NewFamily(collect func(*Sample)) *Family {
	return &Family{descs: map[string]*prometheus.Desc{}, kinds: map[string]prometheus.ValueType{}, collect: collect}
}

// Gauge adds a metric whose value goes up and down.
func (f *Family) Gauge(name, help string, labels ...string) *Family {
	return f.add(prometheus.GaugeValue, name, help, labels)
}

// Counter adds a metric that only grows, but for a reset.
func (f *Family) Counter(name, help string, labels ...string) *Family {
	return f.add(prometheus.CounterValue, name, help, labels)
}

func (f *Family) add(kind prometheus.ValueType, name, help string, labels []string) *Family {
	f.descs[name], f.kinds[name] = prometheus.NewDesc(name, help, labels, nil), kind
	return f
}

// Describe is part of prometheus.Collector.
func (f *Family) Describe(out chan<- *prometheus.Desc) {
	for _, d := range f.descs {
		out <- d
	}
}

// Collect is part of prometheus.Collector.
func (f *Family) Collect(out chan<- prometheus.Metric) { f.collect(&Sample{f, out}) }

// Set gives a metric of the family a value, under labels in the order in which it was added.
func (s *Sample) Set(name string, value float64, labels ...string) {
	m, err := prometheus.NewConstMetric(s.f.descs[name], s.f.kinds[name], value, labels...)
	if err != nil {
		m = prometheus.NewInvalidMetric(s.f.descs[name], err)
	}
	s.out <- m
}

// Fail makes the scrape say that a metric could not be collected.
func (s *Sample) Fail(name string, err error) {
	s.out <- prometheus.NewInvalidMetric(s.f.descs[name], err)
}
