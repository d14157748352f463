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
}

// newMeter registers the agent's metrics; tasks gives the number of tasks by state, on a scrape.
func newMeter(reg prometheus.Registerer, tasks func() map[skepv1.TaskState]int) *meter {
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
		}).Gauge("skep_agent_tasks", "Tasks of this node, by state as `skep node ps` shows it.", "state"))
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
