package render

import (
	"strings"
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestHealthIsShownAsDockerDoes(t *testing.T) {
	const run, failed = skepv1.TaskState_TASK_STATE_RUNNING, skepv1.TaskState_TASK_STATE_FAILED
	const starting, well, ill = skepv1.HealthState_HEALTH_STATE_STARTING, skepv1.HealthState_HEALTH_STATE_HEALTHY, skepv1.HealthState_HEALTH_STATE_UNHEALTHY
	for _, c := range []struct {
		st         *skepv1.TaskStatus
		state, err string
	}{
		{&skepv1.TaskStatus{State: run}, "Running", ""},
		{&skepv1.TaskStatus{State: run, Health: starting, HealthOutput: "connection refused"}, "Running (health: starting)", `"connection refused"`},
		{&skepv1.TaskStatus{State: run, Health: well, HealthOutput: "fine"}, "Running (healthy)", ""},
		{&skepv1.TaskStatus{State: run, Health: ill, HealthOutput: "no\n database"}, "Running (unhealthy)", `"no database"`},
		{&skepv1.TaskStatus{State: run, Health: well, NotReady: true, HealthOutput: "HTTP 503"}, "Running (healthy) (not ready)", `"HTTP 503"`},
		{&skepv1.TaskStatus{State: run, NotReady: true}, "Running (not ready)", ""},
		{&skepv1.TaskStatus{State: failed, Health: ill, NotReady: true, HealthOutput: "x", Err: "task: non-zero exit (1)"}, "Failed", `"task: non-zero exit (1)"`},
	} {
		row := Tasks([]*skepv1.Task{{Status: c.st}}, TaskOptions{Now: time.Now(), NoTrunc: true}).Rows[0]
		if row["CurrentState"] != c.state || row["Error"] != c.err {
			t.Errorf("%v: %q %q, want %q %q", c.st, row["CurrentState"], row["Error"], c.state, c.err)
		}
	}
	for want, h := range map[string]*skepv1.HealthConfig{
		"HTTP :80/x":   {Http: &skepv1.HTTPCheck{Port: 80, Path: "/x"}},
		"TCP :5":       {TcpPort: 5},
		"GRPC :9/s.v1": {Grpc: &skepv1.GRPCCheck{Port: 9, Service: "s.v1"}},
		"GRPC :9":      {Grpc: &skepv1.GRPCCheck{Port: 9}},
		"CMD true":     {Test: []string{"CMD", "true"}},
	} {
		if got := strings.Join(checkWords(h), " "); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
