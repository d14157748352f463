package ingress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

// changing publishes a port at one node, connects to it over IPv4 and IPv6 as fast as it can, sends it datagrams of new
// flows, and goes through every kind of change until enough says so.
func changing(t testing.TB, enough func(made int64) bool) (made, refused, failed, strays, changes int64) {
	r := newRig(t)
	n, client := r.nodes[0], r.clients[0]
	const port = 8080
	a, b := n.tasks[0], n.tasks[1]
	targets := []Backend{a.backend(80), a.backend(81), b.backend(80), b.backend(81)}
	state := func(b ...Backend) State { return State{Peers: r.peers(n), Services: both(port, "web", b...)} }
	client.sysctl("net/ipv4/ip_local_port_range", "1024 65000")
	for _, s := range []string{"nf_conntrack_tcp_timeout_close", "nf_conntrack_udp_timeout"} {
		n.sysctl("net/netfilter/"+s, "1") // or the table fills up
	}
	n.apply(state(targets[:3]...))

	// What the host itself listens on must never hear a datagram of the port.
	var heard atomic.Int64
	var host net.PacketConn
	if err := n.run(func() (err error) { host, err = net.ListenPacket("udp", ":8080"); return err }); err != nil {
		t.Fatal(err)
	}
	listened := make(chan struct{})
	go func() {
		defer close(listened)
		for buf := make([]byte, 64); ; heard.Add(1) {
			if _, _, err := host.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	stop, sent := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sent)
		_ = client.run(func() error {
			for {
				for network, to := range map[string]string{"udp4": n.at(port), "udp6": n.at6(port)} {
					select {
					case <-stop:
						return nil
					default:
					}
					if c, err := net.Dial(network, to); err == nil {
						_, _ = c.Write([]byte("hello\n"))
						_ = c.Close()
					}
				}
			}
		})
	}()
	p := nstest.Probe(t, client.run, 3, map[string]string{"tcp4": n.at(port), "tcp6": n.at6(port)})
	defer func() {
		p.Stop()
		close(stop)
		<-sent
		_ = host.Close()
		<-listened
		made, refused, failed, strays = p.Made.Load(), p.Refused.Load(), p.Failed.Load(), heard.Load()
	}()
	for round := 0; !enough(p.Made.Load()); round++ {
		for range 20 {
			n.apply(state(targets[0]))     // shrink
			n.apply(state(targets[:3]...)) // grow
			n.apply(state(targets[:2]...))
			n.apply(state(targets[2:]...)) // swap
			changes += 4
		}
		p.Outage(func() {
			n.apply(state())
			n.apply(state(targets[1:]...))
		})
		changes += 2
		switch round % 4 {
		case 0: // as a table that another version made
			n.do("nft delete chain inet skep $(nft list chains inet | grep -o 'layout-[0-9a-f]*')")
		case 1:
			n.do("nft add rule inet skep_zones aliases counter")
		case 2:
			n.do("nft delete chain netdev skep_fabric $(nft list chains netdev | grep -o 'layout-[0-9a-f]*')")
		case 3:
			n.start()
		}
		n.apply(state(targets[:3]...))
		changes++
	}
	n.wantRight()
	return
}

// A healthy service refuses nobody, whatever changes.
func TestNoChangeRefuses(t *testing.T) {
	end := time.Now().Add(30 * time.Second)
	made, refused, failed, strays, changes := changing(t, func(int64) bool { return time.Now().After(end) })
	t.Logf("%d connections in %d changes", made, changes)
	if refused+failed+strays > 0 || made == 0 {
		t.Errorf("of %d connections in %d changes %d were refused, %d failed; the host itself heard %d datagrams", made, changes, refused, failed, strays)
	}
}

// A million connections, and how many of them were lost.
func BenchmarkNoChangeRefuses(b *testing.B) {
	const million = 1_000_000
	made, refused, failed, strays, changes := changing(b, func(made int64) bool { return made >= million })
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(made), "connections")
	b.ReportMetric(float64(changes), "changes")
	b.ReportMetric(float64(refused+failed+strays), "lost")
	b.Logf("%d refused, %d failed, %d datagrams to the host itself", refused, failed, strays)
}

// What left the tables untranslated is dropped while the service has backends, over TCP as over UDP, whoever else listens
// on the port; and a number that is gone is answered by the first.
func TestUntranslatedIsDropped(t *testing.T) {
	r := newRig(t)
	n, client := r.nodes[0], r.clients[0]
	const port = 8080
	k := n.tasks[0]
	n.apply(State{Peers: r.peers(n), Services: both(port, "web", k.backend(80), k.backend(81))})
	n.do("nft delete element inet skep backends { tcp . 8080 . 1 }; nft delete element inet skep backends6 { tcp . 8080 . 1 }")
	for range 20 {
		for network, to := range map[string]string{"tcp4": n.at(port), "tcp6": n.at6(port)} {
			if _, _, err := client.ask(network, to); err != nil {
				t.Fatalf("%s, one of two backends is gone: %v", network, err)
			}
		}
	}
	n.serve(port) // the host's own
	n.do("nft flush map inet skep ports; nft flush map inet skep ports6")
	for network, to := range map[string]string{"tcp4": n.at(port), "tcp6": n.at6(port), "udp4": n.at(port), "udp6": n.at6(port)} {
		var timeout net.Error
		if who, _, err := client.ask(network, to); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s, not translated: answered by %q, %v; want silence", network, who, err)
		}
	}
	n.apply(State{Peers: r.peers(n), Services: both(port, "web")})
	for network, to := range map[string]string{"tcp4": n.at(port), "tcp6": n.at6(port), "udp4": n.at(port), "udp6": n.at6(port)} {
		if _, _, err := client.ask(network, to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s, no backend: %v; want it refused", network, err)
		}
	}
}

// At every step of a change, what a port leads to is there: its chain, and each number that this one draws; and what a
// packet may have drawn before the turn is there after it.
func TestWhatIsReferredToIsThere(t *testing.T) {
	s := newSpace(t, "order")
	cfg := Config{Bridge: "skep0", Number: 1, Subnet: netip.MustParsePrefix("100.64.2.0/23"), Gateway: netip.MustParseAddr("100.64.2.1"),
		Underlay: netip.MustParseAddr("10.90.0.1"), Port: 4789, UnderlayMTU: func() int { return 1500 }}
	if err := s.run(func() error {
		var drawn map[string]elements
		for step, n := range []int{3, 1, 5, 2, 0, 4, 4, 1} {
			have, err := readOnce()
			if err != nil {
				return err
			}
			st := State{}
			for p := range 3 { // each grows and shrinks at other times
				var b []Backend
				for i := range (n + p) % 6 {
					b = append(b, backend(netip.AddrFrom4([4]byte{100, 64, 2, byte(10 + i + step%2)}), 80, fmt.Sprint(i)))
				}
				st.Services = append(st.Services, both(uint16(8080+p), fmt.Sprint("web", p), b...)...)
			}
			changes := wantedTables(&cfg, planState(&cfg, st, have.backends(), true))[0].changes(have.host)
			for _, at := range []stage{lay, turn, sweep} {
				var now []change
				for _, c := range changes {
					if c.at == at {
						now = append(now, c)
					}
				}
				if _, err := commit(now); err != nil {
					return err
				}
				is, err := readOnce()
				if err != nil {
					return err
				}
				if is.host == nil {
					continue
				}
				there(t, is.host, is.host.sets)
				if at == turn && drawn != nil {
					there(t, is.host, drawn)
				}
				drawn = is.host.sets
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// there fails the test if the table lacks what ports of sets lead to.
func there(t *testing.T, table *tableState, sets map[string]elements) {
	t.Helper()
	for _, f := range []*family{inet4, inet6} {
		for k, e := range sets[f.ports] {
			if len(table.rules[e.val]) == 0 {
				t.Errorf("chain %s is not there", e.val)
			}
			for i := 0; f.pickName(i) != e.val; i++ {
				if _, ok := table.sets[f.backends][k+string(native(uint32(i)))]; !ok {
					t.Errorf("nothing has number %d of %s", i, e.val)
				}
			}
		}
		for k := range sets[f.refused] {
			if _, ok := table.sets[f.published][k]; !ok {
				t.Errorf("port %s is refused and not published", describeKey(f.refused, k))
			}
		}
	}
}

// A process that ended while it made a table anew leaves no twin.
func TestTwinIsRemoved(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	st := State{Peers: r.peers(n), Services: both(8080, "web", n.tasks[0].backend(80))}
	n.apply(st)
	n.do("nft add table inet skep_twin; nft add table inet skep_zones_twin; nft add table netdev skep_fabric_twin")
	if f, err := n.plane.Verify(context.Background()); err != nil || len(f) != 3 {
		t.Errorf("found %q, %v; want the three tables", f, err)
	}
	n.start()
	n.apply(st)
	if out := n.do("nft list tables"); strings.Contains(out, "twin") {
		t.Error(out)
	}
	n.wantRight()
}
