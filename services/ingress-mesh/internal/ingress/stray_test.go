package ingress

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

// A segment far out of the window, as a late duplicate is, ends no connection by a published port, whoever sends it,
// wherever the client and the task are; and none leaves the host with a task's own address.
func TestStraySegmentResetsNoPublishedPort(t *testing.T) {
	r := newRig(t)
	entry, here, there := r.nodes[0], r.nodes[0].tasks[0], r.nodes[1].tasks[0]
	services := append(both(8080, "here", here.backend(80)), both(8081, "there", there.backend(80))...)
	for _, n := range r.nodes {
		st := State{Peers: r.peers(n), Services: services}
		if n == entry {
			one, all := here.hostPort("tcp", 8082, netip.Addr{}), here.hostPort("tcp", 8083, entry.addr)
			six := here.hostPort("tcp", 8083, entry.addr6)
			st.HostPorts = []HostPort{one, all, six}
		}
		n.apply(st)
		n.wantRight()
	}
	client := r.clients[0]
	client.do(`nft 'table inet hears { chain in { type filter hook prerouting priority -500; ip saddr 100.64.0.0/10 counter; ip6 saddr fd94:4a0:dd4d::/96 counter; }; }'`)
	for way, w := range map[string]struct {
		from space
		at   func(uint16) string
	}{
		"from outside":         {client, entry.at},
		"over IPv6":            {client, entry.at6},
		"from the node":        {entry.space, entry.at},
		"by the loopback":      {entry.space, func(p uint16) string { return fmt.Sprintf("127.0.0.1:%d", p) }},
		"from its task":        {entry.tasks[1].space, entry.at},
		"from another's task":  {r.nodes[2].tasks[1].space, entry.at},
		"from another node":    {r.nodes[2].space, entry.at},
		"from another node, 6": {r.nodes[2].space, entry.at6},
	} {
		for port, server := range map[uint16]struct {
			task
			port uint16
		}{8080: {here, 80}, 8081: {there, 80}, 8082: {here, 81}, 8083: {here, 81}} {
			if port == 8083 && way == "by the loopback" {
				continue // it is published at another address alone
			}
			t.Run(fmt.Sprintf("%s, port %d", way, port), func(t *testing.T) {
				c, err := w.from.dial("tcp", "", w.at(port))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close() //nolint:errcheck // its end is not what is tested
				_, seen, err := say(c)
				if err != nil {
					t.Fatal(err)
				}
				seen = netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port())
				by := server.addr
				if seen.Addr().Is6() {
					by = server.addr6()
				}
				plain := func(a net.Addr) netip.AddrPort {
					x := a.(*net.TCPAddr).AddrPort()
					return netip.AddrPortFrom(x.Addr().Unmap(), x.Port())
				}
				tcp := c.(*net.TCPConn)
				if err := server.run(func() error { return nstest.Stray(netip.AddrPortFrom(by, server.port), seen, nstest.SentUpTo(t, tcp)) }); err != nil {
					t.Fatal(err)
				}
				if _, _, err := say(c); err != nil {
					t.Fatalf("after a stray segment of the task: %v", err)
				}
				if err := w.from.run(func() error {
					return nstest.Stray(plain(c.LocalAddr()), plain(c.RemoteAddr()), nstest.ReceivedUpTo(t, tcp))
				}); err != nil {
					t.Fatal(err)
				}
				if _, _, err := say(c); err != nil {
					t.Fatalf("after a stray segment of the client: %v", err)
				}
			})
		}
	}
	if out := client.do("nft list table inet hears"); strings.Count(out, "counter packets 0 ") != 2 {
		t.Errorf("the client hears from tasks' own addresses:\n%s", out)
	}
}

// The same for what a task asks of the outside: the stray comes in for the host's address, which has no such connection.
func TestStraySegmentResetsNoConnectionToTheOutside(t *testing.T) {
	r := newRig(t)
	r.apply(both(8080, "web", r.all(80)...)...)
	server := r.clients[0]
	server.serve(80)
	for what, at := range map[string]netip.Addr{"IPv4": netip.MustParseAddr("198.51.100.7"), "IPv6": netip.MustParseAddr("2001:db8:51::7")} {
		t.Run(what, func(t *testing.T) {
			c, err := r.nodes[0].tasks[0].dial("tcp", "", netip.AddrPortFrom(at, 80).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() //nolint:errcheck // its end is not what is tested
			_, seen, err := say(c)
			if err != nil {
				t.Fatal(err)
			}
			seen = netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port())
			if a := seen.Addr(); a != r.nodes[0].addr && a != r.nodes[0].addr6 {
				t.Fatalf("the server sees %s", a)
			}
			if err := server.run(func() error {
				return nstest.Stray(netip.AddrPortFrom(at, 80), seen, nstest.SentUpTo(t, c.(*net.TCPConn)))
			}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := say(c); err != nil {
				t.Fatalf("after a stray segment of the server: %v", err)
			}
		})
	}
	// A port that nobody listens on refuses as ever.
	if c, err := server.dial("tcp4", "", r.nodes[0].at(9)); err == nil || !strings.Contains(err.Error(), "refused") {
		if err == nil {
			_ = c.Close()
		}
		t.Errorf("a closed port: %v", err)
	}
}

// Connections of others that this host sees one half of, of which most segments are invalid to it, go on.
func TestAsymmetricRoutesOfOthersGoOn(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	r.apply(both(8080, "web", r.all(80)...)...)
	lan := newSpace(t, "lan")
	r.fab.do("ip addr add 203.0.113.1/24 dev br0; ip route add 203.0.113.9/32 via " + n.addr.String())
	r.wire(lan, "203.0.113.9/24", "203.0.113.1")
	lan.do("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0")
	n.do("ip link add lan0 type veth peer name eth1 netns lan && ip addr add 172.31.9.1/30 dev lan0 && ip link set lan0 up")
	lan.do("ip addr add 172.31.9.2/30 dev eth1; ip link set eth1 up")
	n.do("ip route add 203.0.113.9/32 via 172.31.9.2; iptables -I FORWARD -d 203.0.113.9 -j ACCEPT")
	lan.serve(80)
	c, err := r.clients[0].dial("tcp4", "", "203.0.113.9:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // its end is not what is tested
	for range 3 {
		if who, _, err := say(c); err != nil || who != "lan" {
			t.Fatalf("%q %v", who, err)
		}
	}
	if out := n.do("conntrack -L -p tcp 2>/dev/null | cat"); strings.Contains(out, "dst=203.0.113.9") && strings.Contains(out, "ESTABLISHED src=198.51.100.7 dst=203.0.113.9") {
		t.Errorf("the host saw both halves:\n%s", out)
	}
}
