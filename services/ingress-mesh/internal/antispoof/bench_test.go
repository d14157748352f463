package antispoof

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

// BenchmarkFrame is what a frame from task to task costs on a bridge of 1,000 tasks, in processor time, with the rules
// and without: by turns, and of each the median, for a machine's speed wanders.
func BenchmarkFrame(b *testing.B) {
	r := newRig(b)
	from, to := r.ends["ska"], r.ends["skb"]
	ports := r.ports("ska", "skb")
	for i := range 1000 {
		ports = append(ports, Port{Link: fmt.Sprintf("sk%d", i), Addr: netip.AddrFrom4([4]byte{10, 8, byte(i >> 8), byte(i)})})
	}
	frame := from.ip4(to, from.mac, from.Addr, make([]byte, 100))
	const frames = 20000
	spent := func() (ns int64) {
		var u unix.Rusage
		nstest.Must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return u.Stime.Nano() + u.Utime.Nano()
	}
	send := func() float64 {
		before := spent()
		for range frames {
			_, _ = unix.Write(from.fd, frame)
		}
		return float64(spent()-before) / frames
	}
	var with, without []float64
	for b.Loop() {
		for range 16 {
			_, err := r.table.Apply(ports)
			nstest.Must(b, err)
			with = append(with, send())
			nstest.Must(b, r.table.Remove())
			without = append(without, send())
		}
	}
	slices.Sort(with)
	slices.Sort(without)
	b.ReportMetric(0, "ns/op") // how many frames is chosen above
	b.ReportMetric(with[len(with)/2], "ns/frame")
	b.ReportMetric(without[len(without)/2], "ns/open-frame")
}
