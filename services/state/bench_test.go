package state

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

// BenchmarkCreateService is one client creating services in a loop; p50-ms is the bar's figure.
func BenchmarkCreateService(b *testing.B) {
	for _, c := range []struct {
		name  string
		start func(testing.TB) *kvtest.NATS
	}{
		{"R1", kvtest.Server},
		{"R3", func(t testing.TB) *kvtest.NATS { return kvtest.Cluster(t, 3) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b, c.start(b))
			took := make([]time.Duration, 0, b.N)
			b.ResetTimer()
			for i := range b.N {
				began := time.Now()
				if _, err := call(r, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: webSpec(fmt.Sprintf("svc-%d", i), 1), NoResolveImage: true}); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
