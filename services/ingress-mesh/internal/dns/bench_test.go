package dns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// load keeps many queries under way on a few sockets in a namespace, as many tasks' programs would.
func load(b *testing.B, path, name string, kind uint16) {
	q, _ := new(dns.Msg).SetQuestion(name, kind).Pack()
	const sockets, window = 4, 16
	done := make(chan error, sockets)
	b.ResetTimer()
	for i := range sockets {
		go func() {
			var c net.Conn
			err := nsfs.In(path, func() (err error) { c, err = net.Dial("udp4", address.String()); return err })
			if err != nil {
				done <- err
				return
			}
			defer c.Close()
			n, sent, got := b.N/sockets, 0, 0
			if i == 0 {
				n += b.N % sockets
			}
			buf := make([]byte, 4096)
			for got < n && err == nil {
				for sent < n && sent-got < window && err == nil {
					_, err = c.Write(q)
					sent++
				}
				if err == nil {
					_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
					_, err = c.Read(buf)
					got++
				}
			}
			done <- err
		}()
	}
	for range sockets {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}

func BenchmarkQueries(b *testing.B) {
	u := newUpstream(b, plain)
	s, path := newServer(b, u.addr), newSpace(b)
	if err := s.Open("t1", path, NewTable([]Network{front(), back()}), nil); err != nil {
		b.Fatal(err)
	}
	b.Run("vip", func(b *testing.B) { load(b, path, "my_web.", dns.TypeA) })
	b.Run("tasks", func(b *testing.B) { load(b, path, "tasks.my_web.", dns.TypeA) })
	b.Run("unknown", func(b *testing.B) { load(b, path, "nobody.", dns.TypeA) })
	b.Run("ptr", func(b *testing.B) { load(b, path, "1.200.1.10.in-addr.arpa.", dns.TypePTR) })
	b.Run("forwarded", func(b *testing.B) { load(b, path, "example.com.", dns.TypeA) })
}

func BenchmarkAnswer(b *testing.B) {
	s := New(Config{})
	t := &task{s: s}
	t.view.Store(&view{zone: NewTable([]Network{front(), back()})})
	q, _ := new(dns.Msg).SetQuestion("my_web.", dns.TypeA).Pack()
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if out, _ := s.answer(t, q, true, buf); out == nil {
			b.Fatal("no answer")
		}
	}
}

// BenchmarkTasks opens the resolvers of 500 tasks and reports what each of them costs.
func BenchmarkTasks(b *testing.B) {
	const n = 500
	paths := make([]string, n)
	for i := range paths {
		paths[i] = newSpace(b)
	}
	table := NewTable([]Network{front()})
	memory := func() (heap, rss uint64) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		text, _ := os.ReadFile("/proc/self/status")
		_, after, _ := strings.Cut(string(text), "VmRSS:")
		_, _ = fmt.Sscan(after, &rss)
		return m.HeapInuse + m.StackInuse, rss << 10
	}
	for b.Loop() {
		s := New(Config{})
		before, rss := memory()
		began := time.Now()
		for i, p := range paths {
			if err := s.Open(fmt.Sprint(i), p, table, nil); err != nil {
				b.Fatal(err)
			}
		}
		opened := time.Since(began)
		after, rss2 := memory()
		b.ReportMetric(float64(after-before)/n/1024, "KiB-go/task")
		b.ReportMetric(float64(int64(rss2)-int64(rss))/n/1024, "KiB-rss/task")
		b.ReportMetric(float64(opened.Microseconds())/n, "µs/open")
		s.Shutdown()
	}
}

func BenchmarkNewTable(b *testing.B) {
	n := Network{Name: "net", Subnet: netip.MustParsePrefix("10.0.0.0/8")}
	for i := range 1000 {
		svc := Service{Name: fmt.Sprintf("stack_service%d", i), Aliases: []string{fmt.Sprintf("service%d", i)}, VIP: netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})}
		for j := range 3 {
			svc.Tasks = append(svc.Tasks, Task{ID: taskID(3*i + j), Slot: uint64(j + 1), Addr: netip.AddrFrom4([4]byte{10, byte(j), byte(i >> 8), byte(i)}), Serving: true})
		}
		n.Services = append(n.Services, svc)
	}
	b.ReportAllocs()
	for b.Loop() {
		NewTable([]Network{n})
	}
}
