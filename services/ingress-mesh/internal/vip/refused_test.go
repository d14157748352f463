package vip

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

// changing connects to a virtual address over IPv4 and IPv6 as fast as it can and goes through every kind of change
// until enough says so.
func changing(t testing.TB, enough func(made int64) bool) (made, refused, failed, changes int64) {
	hs := newHosts(t, 5)
	a, tasks, c := hs[0], hs[1:], new(Cache)
	apply := func(tasks ...*host) {
		if err := c.Apply(a.path, []Service{service(0, tasks...)}); err != nil {
			t.Fatal(err)
		}
		changes++
	}
	a.sh("sysctl -qw net.ipv4.ip_local_port_range='1024 65000' net.netfilter.nf_conntrack_tcp_timeout_close=1")
	apply(tasks[:3]...)
	at := func(a netip.Addr) string { return netip.AddrPortFrom(a, port).String() }
	p := nstest.Probe(t, func(f func() error) error { return nsfs.In(a.path, f) }, 3, map[string]string{"tcp4": at(v4(200)), "tcp6": at(v6(200))})
	for round := 0; !enough(p.Made.Load()); round++ {
		for range 20 {
			apply(tasks[0])     // shrink
			apply(tasks[:3]...) // grow
			apply(tasks[:2]...)
			apply(tasks[2:]...) // swap
		}
		p.Outage(func() {
			apply()
			apply(tasks[1:]...)
		})
		if round%2 == 0 { // as a table that another version made
			a.sh("nft flush chain inet skep_vip $(nft list chains inet | grep -o 'layout-[0-9a-f]*'); nft delete chain inet skep_vip $(nft list chains inet | grep -o 'layout-[0-9a-f]*')")
		} else {
			c = new(Cache) // a restart
		}
		apply(tasks[:3]...)
	}
	p.Stop()
	return p.Made.Load(), p.Refused.Load(), p.Failed.Load(), changes
}

// A healthy service refuses nobody, whatever changes.
func TestNoChangeRefuses(t *testing.T) {
	end := time.Now().Add(30 * time.Second)
	made, refused, failed, changes := changing(t, func(int64) bool { return time.Now().After(end) })
	t.Logf("%d connections in %d changes", made, changes)
	if refused+failed > 0 || made == 0 {
		t.Errorf("of %d connections in %d changes %d were refused, %d failed", made, changes, refused, failed)
	}
}

// A million connections, and how many of them were lost.
func BenchmarkNoChangeRefusesVIP(b *testing.B) {
	const million = 1_000_000
	made, refused, failed, changes := changing(b, func(made int64) bool { return made >= million })
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(made), "connections")
	b.ReportMetric(float64(changes), "changes")
	b.ReportMetric(float64(refused+failed), "lost")
	b.Logf("%d refused, %d failed", refused, failed)
}

// What left the tables untranslated is dropped while the service has tasks, and refused when it has none.
func TestUntranslatedIsDropped(t *testing.T) {
	hs := newHosts(t, 2)
	a := hs[0]
	a.apply(service(0, hs[1]))
	a.sh("nft flush map inet skep_vip services; nft flush map inet skep_vip services6")
	for network, to := range map[string]netip.Addr{"tcp4": v4(200), "tcp6": v6(200)} {
		if _, err := a.dial(network, to); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v; want a timeout", network, err)
		}
	}
	a.apply(service(0))
	for network, to := range map[string]netip.Addr{"tcp4": v4(200), "tcp6": v6(200)} {
		if _, err := a.dial(network, to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s without tasks: %v; want it refused", network, err)
		}
	}
}

// A process that ended while it made the table anew leaves no twin.
func TestTwinIsRemoved(t *testing.T) {
	for _, main := range []bool{true, false} {
		t.Run(fmt.Sprint("with the table ", main), func(t *testing.T) {
			path := newSpace(t)
			want := []Service{{VIP: v4(200), Service: "web", Backends: []netip.Addr{v4(2)}}}
			if main {
				if err := Apply(path, want); err != nil {
					t.Fatal(err)
				}
			}
			mustNft(t, path, "add table inet skep_vip_twin")
			if err := Apply(path, want); err != nil {
				t.Fatal(err)
			}
			if out := mustNft(t, path, "list tables"); strings.Contains(out, "twin") || !strings.Contains(out, "skep_vip") {
				t.Error(out)
			}
			check(t, path, want)
		})
	}
}
