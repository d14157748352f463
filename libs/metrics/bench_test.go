package metrics

import (
	"fmt"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// A page of 5,000 samples, as of 1,000 ports with three tasks each.
func BenchmarkScrape5000(b *testing.B) {
	reg := New("1", "c")
	reg.MustRegister(NewFamily(func(s *Sample) {
		for i := range 5000 {
			s.Set("skep_mesh_backend_connections_total", float64(i), "web", "tcp", fmt.Sprint(i%1000), fmt.Sprintf("task%021d", i), "w1")
		}
	}).Counter("skep_mesh_backend_connections_total", "Connections.", "service", "protocol", "port", "task", "node"))
	h := promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		if w.Body.Len() < 5000*100 {
			b.Fatal(w.Body.Len())
		}
	}
}
