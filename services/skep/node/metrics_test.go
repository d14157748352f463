package node

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// scrape is /metrics as Prometheus gets it.
func scrape(t *testing.T, addr string) string {
	t.Helper()
	r, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s %v", r.Status, err)
	}
	return string(b)
}

// checkMetrics: all services of a fresh manager in one process are on one page, and it says what is the case.
func checkMetrics(t *testing.T, addr string) {
	t.Helper()
	wanted := []string{
		"skep_build_info{", "go_goroutines ", `skep_state_objects{kind="node"} 1`, `skep_state_objects{kind="service"} 0`,
		`skep_state_requests_total{code="ok",verb="cluster-inspect"} `, `skep_state_request_duration_seconds_count{verb="node-list"} `,
		`skep_health_nodes{state="ready"} 1`, `skep_health_nodes{state="down"} 0`, "skep_health_leading 1", "skep_health_nodes_path_blocked 0",
		"skep_scheduler_leading 1", "skep_scheduler_plan_duration_seconds_count ", "skep_scheduler_tasks_pending 0", `skep_scheduler_batches_total{result="failed"} 0`,
		"skep_mesh_controller_leading 1", "skep_bus_jetstream_has_leader 1", "skep_bus_connections ", "skep_bus_jetstream_store_bytes ", `skep_vault_certificates_issued_total{for="join"} 0`,
		`skep_mesh_dns_queries_total{result="local"} 0`, `skep_mesh_converge_duration_seconds_count{run="heal"} `, "skep_mesh_repairs_total 0", "skep_mesh_peers_blocked 0",
		`skep_agent_tasks{state="running"} 0`, `skep_agent_task_exits_total{reason="oom"} 0`, `skep_agent_image_pulls_total{result="failed"} 0`, "skep_agent_task_start_duration_seconds_count 0",
	}
	var missing []string
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		page := scrape(t, addr)
		missing = nil
		for _, w := range wanted {
			if !strings.Contains(page, "\n"+w) {
				missing = append(missing, w)
			}
		}
		if len(missing) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("metrics lack %q in\n%s", missing, page)
		}
	}
}
