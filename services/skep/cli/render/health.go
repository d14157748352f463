package render

import (
	"fmt"
	"strings"

	"skep.dev/libs/record"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Health is what a task's checks say of it, in Docker's words, with a space before each: " (healthy)", " (unhealthy)
// (not ready)". A task that does not run has none.
func Health(st *skepv1.TaskStatus) string {
	if st.GetState() != skepv1.TaskState_TASK_STATE_RUNNING {
		return ""
	}
	s := ""
	switch st.GetHealth() {
	case skepv1.HealthState_HEALTH_STATE_STARTING:
		s = " (health: starting)"
	case skepv1.HealthState_HEALTH_STATE_HEALTHY:
		s = " (healthy)"
	case skepv1.HealthState_HEALTH_STATE_UNHEALTHY:
		s = " (unhealthy)"
	}
	if st.GetNotReady() {
		s += " (not ready)"
	}
	return s
}

// unwell: it runs and its checks keep it from serving, so that what they said explains it.
func unwell(st *skepv1.TaskStatus) bool {
	c := record.ConditionOf(st)
	return c.State == skepv1.TaskState_TASK_STATE_RUNNING && !c.Serves()
}

// HealthWord is the health of a task in Docker's API: none, starting, healthy or unhealthy.
func HealthWord(h skepv1.HealthState) string {
	return spec.Word(h)
}

// checkWords is what a check asks, in the form of Docker's Test: the way, then what. Empty when only the image says.
func checkWords(h *skepv1.HealthConfig) []string {
	switch {
	case h.GetHttp() != nil:
		return []string{"HTTP", fmt.Sprintf(":%d%s", h.Http.GetPort(), h.Http.GetPath())}
	case h.GetTcpPort() != 0:
		return []string{"TCP", fmt.Sprintf(":%d", h.TcpPort)}
	case h.GetGrpc() != nil:
		if s := h.Grpc.GetService(); s != "" {
			return []string{"GRPC", fmt.Sprintf(":%d/%s", h.Grpc.GetPort(), s)}
		}
		return []string{"GRPC", fmt.Sprintf(":%d", h.Grpc.GetPort())}
	}
	return h.GetTest()
}

// check shows a check on a page.
func (p page) check(title string, h *skepv1.HealthConfig) {
	if h == nil {
		return
	}
	p.line(0, "%s:", title)
	p.field(1, "Test", strings.Join(checkWords(h), " "))
	p.field(1, "Interval", duration(h.Interval))
	p.field(1, "Timeout", duration(h.Timeout))
	p.field(1, "StartPeriod", duration(h.StartPeriod))
	p.field(1, "StartInterval", duration(h.StartInterval))
	if h.Retries > 0 {
		p.line(1, "Retries:\t%d", h.Retries)
	}
}
