package ingress

import (
	"net"
	"sync/atomic"
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

// A million connections, and how many of them were served.
func BenchmarkNoChangeRefuses(b *testing.B) {
	const million = 1_000_000
	made, refused, failed, strays, changes := changing(b, func(made int64) bool { return made >= million })
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(made), "connections")
	b.ReportMetric(float64(changes), "changes")
	b.ReportMetric(100*float64(made)/float64(made+refused+failed+strays), "%-served")
	b.Logf("%d refused, %d failed, %d datagrams to the host itself", refused, failed, strays)
}
