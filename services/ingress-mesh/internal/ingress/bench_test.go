package ingress

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// thousand services of three backends each, on three nodes.
func thousand() (out []Service) {
	for i := range 1000 {
		var b []Backend
		for k := range 3 {
			b = append(b, backend(netip.AddrFrom4([4]byte{100, 64, byte(2*k + 2), byte(20 + i%200)}), uint16(8000+i/200), fmt.Sprintf("0123456789abcdefghijklmn%d", k)))
		}
		out = append(out, Service{"tcp", uint16(20000 + i), fmt.Sprintf("abcdefghijklmnopqrstuvwx%d", i), b})
	}
	return out
}

func benchNode(b *testing.B) (*rig, *node, State) {
	r := newRig(b)
	n := r.nodes[0]
	st := State{Peers: r.peers(n), Services: thousand()}
	t0 := time.Now()
	n.apply(st)
	b.ReportMetric(float64(time.Since(t0).Microseconds())/1000, "first-ms")
	return r, n, st
}

func BenchmarkApplyUnchanged1000(b *testing.B) {
	_, n, st := benchNode(b)
	for b.Loop() {
		n.apply(st)
	}
}

func BenchmarkApplyOneOf1000(b *testing.B) {
	_, n, st := benchNode(b)
	i := 0
	for b.Loop() {
		i++
		s := &st.Services[i%1000]
		s.Backends = append([]Backend(nil), s.Backends...)
		s.Backends[i%3] = backend(netip.AddrFrom4([4]byte{100, 64, 6, byte(i)}), s.Backends[i%3].Port, s.Backends[i%3].Task)
		n.apply(st)
	}
}

func BenchmarkRepairUnchanged1000(b *testing.B) {
	_, n, _ := benchNode(b)
	for b.Loop() {
		if err := n.plane.Repair(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// A scrape of a thousand ports, three backends each.
func BenchmarkCounters1000(b *testing.B) {
	_, n, _ := benchNode(b)
	for b.Loop() {
		ports, err := n.plane.Counters(context.Background())
		if err != nil || len(ports) != 1000 {
			b.Fatal(len(ports), err)
		}
	}
}

// The whole picture, for comparison.
func BenchmarkPorts1000(b *testing.B) {
	_, n, _ := benchNode(b)
	for b.Loop() {
		if _, err := n.plane.Ports(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// Others change the ruleset each time, so all is compared.
func BenchmarkRepairCompared1000(b *testing.B) {
	_, n, _ := benchNode(b)
	for b.Loop() {
		n.plane.known.generation = 0
		if err := n.plane.Repair(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRepairAfterFlush1000(b *testing.B) {
	_, n, _ := benchNode(b)
	for b.Loop() {
		b.StopTimer()
		n.do("nft flush ruleset")
		b.StartTimer()
		if err := n.plane.Repair(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// rateRounds pairs of rounds, of rateFor each: a machine's speed wanders, and so does not between the two of a pair.
const (
	rateRounds = 16
	rateFor    = 250 * time.Millisecond
	dialers    = 16
)

// benchConnections measures new connections to one port with 10 and with 1,000 ports published, by turns on the same
// hosts. "%" is the median of the pairs' ratios: the rate with 1,000 in percent of the one with 10.
func benchConnections(b *testing.B, network string) {
	r := newRig(b)
	n := r.nodes[0]
	const port = 8080
	web := Service{"tcp", port, "web", []Backend{n.tasks[0].backend(80), n.tasks[1].backend(80)}}
	states := [2]State{}
	for i, services := range []int{10, 1000} {
		states[i] = State{Peers: r.peers(n), Services: append(thousand()[:services-1:services-1], web)}
	}
	to := n.at(port)
	if network == "tcp6" {
		to = n.at6(port)
	}
	r.clients[0].sysctl("net/ipv4/ip_local_port_range", "1024 65000")
	measure := func(i int) float64 {
		n.apply(states[i])
		return r.clients[0].connects(b, network, to, rateFor)
	}
	measure(1) // neighbours are learned, pages are there
	var rates [2][]float64
	var ratios []float64
	for b.Loop() {
		for round := range rateRounds {
			var pair [2]float64
			first := round % 2 // neither is always the one after the other
			for _, i := range []int{first, 1 - first} {
				pair[i] = measure(i)
				rates[i] = append(rates[i], pair[i])
			}
			ratios = append(ratios, 100*pair[1]/pair[0])
		}
	}
	b.ReportMetric(0, "ns/op") // a round's length is chosen above
	b.ReportMetric(median(rates[0]), "conn10/s")
	b.ReportMetric(median(rates[1]), "conn1000/s")
	b.ReportMetric(median(ratios), "%")
}

// connects makes connections for a while and gives how many a second there were.
func (s space) connects(b *testing.B, network, to string, during time.Duration) float64 {
	b.Helper()
	var made, failed atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range dialers {
		wg.Go(func() {
			_ = s.run(func() error {
				for time.Since(began) < during {
					conn, err := net.DialTimeout(network, to, 3*time.Second)
					if err != nil {
						failed.Add(1)
						continue
					}
					made.Add(1)
					_ = conn.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: ports would run out
					_ = conn.Close()
				}
				return nil
			})
		})
	}
	wg.Wait()
	if f, m := failed.Load(), made.Load(); f > m/100 {
		b.Fatalf("%d connections failed, %d did not", f, m)
	}
	return float64(made.Load()) / time.Since(began).Seconds()
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
}

func BenchmarkConnections10And1000(b *testing.B)     { benchConnections(b, "tcp4") }
func BenchmarkConnections10And1000IPv6(b *testing.B) { benchConnections(b, "tcp6") }
