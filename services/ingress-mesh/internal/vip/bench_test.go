package vip

import (
	"net"
	"net/netip"
	"testing"
)

// BenchmarkApply is for a network of 1,000 services of three tasks, over IPv4 and IPv6.
func BenchmarkApply(b *testing.B) {
	want := many(1000)
	changed := many(1000)
	changed[500].Backends = []netip.Addr{v4(1), v4(2), v4(3)}
	grown := many(1000)
	grown[500].Backends = append(grown[500].Backends, v4(9999))
	apply := func(b *testing.B, c interface {
		Apply(string, []Service) error
	}, path string, s []Service) {
		if err := c.Apply(path, s); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			path, c := newSpace(b), new(Cache)
			b.StartTimer()
			apply(b, c, path, want)
		}
	})
	path, c := newSpace(b), new(Cache)
	apply(b, c, path, want)
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			apply(b, c, path, want)
		}
	})
	b.Run("one-changed", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			apply(b, c, path, [][]Service{changed, want}[i%2])
		}
	})
	b.Run("one-scaled", func(b *testing.B) {
		apply(b, c, path, want)
		for i := 0; b.Loop(); i++ {
			apply(b, c, path, [][]Service{grown, want}[i%2])
		}
	})
	apply(b, c, path, want)
	b.Run("unchanged-no-cache", func(b *testing.B) {
		for b.Loop() {
			apply(b, new(Cache), path, want)
		}
	})
	b.Run("clear", func(b *testing.B) {
		for b.Loop() {
			if err := Clear(path, []netip.Addr{v4(1)}, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ten-tasks-one-changed", func(b *testing.B) {
		paths := []string{}
		for range 10 {
			paths = append(paths, newSpace(b))
		}
		for i := 0; b.Loop(); i++ {
			for _, p := range paths {
				apply(b, c, p, [][]Service{changed, want}[i%2])
			}
		}
	})
}

// BenchmarkConnect opens TCP connections from one task to three, directly and by a virtual address among 1,000.
func BenchmarkConnect(b *testing.B) {
	hs := newHosts(b, 4)
	a := hs[0]
	rate := func(b *testing.B, to func(i int) netip.Addr) {
		a.in(func() error {
			for i := 0; b.Loop(); i++ {
				c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(to(i), port)))
				if err != nil {
					return err
				}
				_ = c.SetLinger(0)
				_ = c.Close()
			}
			return nil
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
	}
	b.Run("direct", func(b *testing.B) { rate(b, func(i int) netip.Addr { return v4(2 + i%3) }) })
	a.apply(service(0, hs[1:]...))
	b.Run("vip-of-1", func(b *testing.B) { rate(b, func(int) netip.Addr { return v4(200) }) })
	a.apply(append(many(1000), service(0, hs[1:]...))...)
	b.Run("vip-of-1000", func(b *testing.B) { rate(b, func(int) netip.Addr { return v4(200) }) })
}
