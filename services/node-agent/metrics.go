package agent

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"skep.dev/libs/metrics"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/task"
)

// meter counts what becomes of tasks. With no registry nobody sees it.
type meter struct {
	starts prometheus.Histogram
	ends   *prometheus.CounterVec
	pulls  *prometheus.CounterVec
	pull   prometheus.Histogram
	calls  *prometheus.HistogramVec
	failed *prometheus.CounterVec
}

// newMeter registers the agent's metrics; tasks gives the number of tasks by state, on a scrape.
// held the volumes of plug-ins that tasks use and those that could not be unmounted.
func newMeter(reg prometheus.Registerer, tasks func() map[skepv1.TaskState]int, held func() (used, stuck int)) *meter {
	f := promauto.With(reg)
	m := &meter{
		starts: f.NewHistogram(prometheus.HistogramOpts{
			Name: "skep_agent_task_start_duration_seconds", Help: "Work to prepare and start a container: image, network and all, waits not counted.",
			Buckets: metrics.DurationBuckets,
		}),
		ends: f.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_agent_task_exits_total", Help: "Tasks that ended, by reason: " + strings.Join(task.Ends, ", ") + ".",
		}, []string{"reason"}),
		pulls: f.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_agent_image_pulls_total", Help: "Pulls of images, by result: ok, failed.",
		}, []string{"result"}),
		pull: f.NewHistogram(prometheus.HistogramOpts{
			Name: "skep_agent_image_pull_duration_seconds", Help: "Time of one pull that succeeded, unpacking included.", Buckets: metrics.DurationBuckets,
		}),
	}
	m.calls = f.NewHistogramVec(prometheus.HistogramOpts{
		Name: "skep_agent_volume_plugin_call_duration_seconds", Help: "Time of one call of a volume plug-in, failed ones included.", Buckets: metrics.DurationBuckets,
	}, []string{"plugin", "call"})
	m.failed = f.NewCounterVec(prometheus.CounterOpts{
		Name: "skep_agent_volume_plugin_call_failures_total", Help: "Calls of a volume plug-in that it refused, or did not answer as the protocol wants.",
	}, []string{"plugin", "call"})
	for _, how := range task.Ends {
		m.ends.WithLabelValues(how)
	}
	m.pulls.WithLabelValues("ok")
	m.pulls.WithLabelValues("failed")
	if reg != nil {
		reg.MustRegister(metrics.NewFamily(func(s *metrics.Sample) {
			for state, n := range tasks() {
				s.Set("skep_agent_tasks", float64(n), spec.Word(state))
			}
			used, stuck := held()
			s.Set("skep_agent_plugin_volumes", float64(used), "used")
			s.Set("skep_agent_plugin_volumes", float64(stuck), "stuck")
		}).Gauge("skep_agent_plugin_volumes", "Volumes of plug-ins that this node holds: used by tasks, or stuck because the plug-in does not unmount them.", "state").
			Gauge("skep_agent_tasks", "Tasks of this node, by state as `skep node ps` shows it.", "state"))
	}
	return m
}

func (m *meter) started(took time.Duration) { m.starts.Observe(took.Seconds()) }

func (m *meter) ended(how string) { m.ends.WithLabelValues(how).Inc() }

func (m *meter) pulled(took time.Duration, err error) {
	if err != nil {
		m.pulls.WithLabelValues("failed").Inc()
		return
	}
	m.pulls.WithLabelValues("ok").Inc()
	m.pull.Observe(took.Seconds())
}

func (m *meter) pluginCalled(plugin, call string, took time.Duration, err error) {
	m.calls.WithLabelValues(plugin, call).Observe(took.Seconds())
	if err != nil {
		m.failed.WithLabelValues(plugin, call).Inc()
	}
}

// holdsVolumes counts the volumes of plug-ins.
func (s *Service) holdsVolumes() (used, stuck int) {
	if !s.Serves() {
		return 0, 0
	}
	for _, h := range s.plugins.Held() {
		if len(h.TaskIds) > 0 {
			used++
		}
		if h.Err != "" {
			stuck++
		}
	}
	return used, stuck
}

// runsTasks counts the tasks by state; running ones are always among them, so that a graph of them has no gap.
func (s *Service) runsTasks() map[skepv1.TaskState]int {
	if !s.Serves() {
		return nil // the set is not opened yet, or closed
	}
	out := map[skepv1.TaskState]int{skepv1.TaskState_TASK_STATE_RUNNING: 0}
	for _, st := range s.set.Statuses() {
		out[st.State]++
	}
	return out
}
