package ingress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// stream is a connection that must go on.
type stream struct {
	t   *testing.T
	c   net.Conn
	who string
}

func (r *rig) stream(t *testing.T, to string) stream {
	t.Helper()
	c, err := r.clients[0].dial("tcp", "", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	who, _, err := say(c)
	if err != nil {
		t.Fatal(err)
	}
	return stream{t, c, who}
}

func (s stream) goesOn(after string) {
	s.t.Helper()
	if who, _, err := say(s.c); err != nil || who != s.who {
		s.t.Fatalf("the stream does not go on after %s: %s %v", after, who, err)
	}
}

func TestStreamsGoOn(t *testing.T) {
	r := newRig(t)
	entry, far := r.nodes[0], r.nodes[1]
	client := netip.MustParseAddr("198.51.100.7")
	r.apply(both(8080, "web", far.tasks[0].backend(80))...)
	s, s6 := r.stream(t, entry.at(8080)), r.stream(t, entry.at6(8080))
	check := func(after string) {
		t.Helper()
		for _, n := range r.nodes {
			n.wantRight()
		}
		s.goesOn(after)
		s6.goesOn(after)
	}

	r.apply(append(both(8080, "web", far.tasks[1].backend(80), r.nodes[2].tasks[0].backend(80)), hundred()...)...)
	check("its backend left, and 100 services came")
	reach(t, r.clients[0], "tcp4", entry.at(8080), always(client), "t11", "t20")

	for _, n := range r.nodes {
		n.start()
	}
	r.apply(append(both(8080, "web", far.tasks[1].backend(80)), hundred()[10:50]...)...)
	check("a restart with another state")

	r.apply()
	check("all services are gone")
	r.apply(both(8080, "web", far.tasks[0].backend(80))...)

	for _, n := range r.nodes {
		n.do("nft flush ruleset; iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
	}
	for _, n := range r.nodes {
		if f, err := n.plane.Verify(context.Background()); err != nil || len(f) != 8 {
			t.Fatalf("%d findings: %q %v", len(f), f, err)
		}
		if err := n.plane.Repair(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	check("a flush of the ruleset while it was silent")
	reach(t, r.clients[1], "tcp4", entry.at(8080), always(netip.MustParseAddr("198.51.100.8")), "t10")
	reach(t, r.clients[1], "tcp6", entry.at6(8080), always(netip.MustParseAddr("2001:db8:51::8")), "t10")
}

// Somebody takes away or changes one thing: it is found, named and healed.
func TestRepair(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	client := netip.MustParseAddr("198.51.100.7")
	r.apply(append(both(8080, "web", r.all(80)...), append(both(8081, "far", r.nodes[1].tasks[0].backend(80)), hundred()...)...)...)
	for do, want := range map[string]string{
		"nft delete element inet skep ports '{ tcp . 8080 }'":                                             "set ports lacks 8080/tcp",
		"nft delete element inet skep backends '{ tcp . 8081 . 0x0 }'":                                    "set backends lacks 8081/tcp backend 0",
		"nft add element inet skep refused '{ tcp . 1234 }'":                                              "set refused should not have 1234/tcp",
		"nft flush map inet skep backends":                                                                "set backends lacks",
		"nft flush set inet skep peers":                                                                   "set peers lacks 10.90.0.2, 10.90.0.3",
		"nft flush chain inet skep publish-in":                                                            "rules of chain publish-in",
		"nft flush chain inet skep pick-6":                                                                "rules of chain pick-6",
		"nft insert rule inet skep source accept":                                                         "rules of chain source",
		"nft add chain inet skep extra; nft add rule inet skep extra drop":                                "chain extra should not be there",
		"nft add set inet skep extra '{ type ipv4_addr; }'":                                               "set extra should not be there",
		"nft chain inet skep guard '{ policy drop; }'":                                                    "chain guard at another place or with another policy",
		"nft add table inet skep '{ flags dormant; }'":                                                    "switched off",
		"nft delete table inet skep":                                                                      "nft table inet skep is missing",
		"nft delete table inet skep_zones":                                                                "nft table inet skep_zones",
		"nft flush table inet skep_zones":                                                                 "nft table inet skep_zones",
		"nft delete table netdev skep_fabric":                                                             "nft table netdev skep_fabric is missing",
		"nft flush chain netdev skep_fabric egress":                                                       "rules of chain egress",
		"nft delete table inet skep; nft add table inet skep; nft add chain inet skep postrouting":        "of another version",
		"ip link del skin0":                                                                               "link skin0 is missing",
		"ip link set skin0 down":                                                                          "link skin0 is down",
		"ip link set skin0 mtu 1400":                                                                      "MTU 1400",
		"ip link set skin0 address 02:00:00:00:00:01":                                                     "another MAC",
		"ip link del skin0; ip link add skin0 type vxlan id 4000 local 10.90.0.1 dstport 4790 nolearning": "another port",
		"ip rule del pref 100":                                                                            "ip rule",
		"ip route flush table 4000":                                                                       "table 4000",
		"ip route del 100.64.4.0/23":                                                                      "route 100.64.4.0/23",
		"ip route add 203.0.113.0/24 dev skin0":                                                           "route 203.0.113.0/24 via skin0 should not",
		"ip addr flush dev skin0":                                                                         "lacks address 100.64.2.0/32",
		"ip neigh del 100.64.4.0 dev skin0":                                                               "lacks neighbour 100.64.4.0",
		"bridge fdb replace 02:53:4b:45:01:02 dev skin0 dst 10.90.0.3 self permanent":                     "does not send 02:53:4b:45:01:02 to 10.90.0.2",
		"bridge fdb add 02:53:4b:45:77:77 dev skin0 dst 10.90.0.77 self permanent":                        "sends 02:53:4b:45:77:77",
		"echo 0 > /proc/sys/net/ipv4/ip_forward":                                                          "net.ipv4.ip_forward is 0",
		"echo 0 > /proc/sys/net/ipv4/conf/skep0/route_localnet":                                           "route_localnet is 0",
		"iptables -F SKEP-FORWARD":                                                                        "SKEP-FORWARD is missing or has other rules",
		"iptables -D FORWARD -j SKEP-FORWARD; iptables -F SKEP-FORWARD; iptables -X SKEP-FORWARD":         "does not jump",
		"iptables -I SKEP-FORWARD -j DROP":                                                                "SKEP-FORWARD is missing or has other rules",
		"iptables -F FORWARD":                                                                             "does not jump",
		"bridge link set dev v-t00 hairpin off":                                                           "does not send back",
		"bridge link set dev v-t00 isolated on":                                                           "is isolated from tasks",
		"nft delete element inet skep ports6 '{ tcp . 8080 }'":                                            "set ports6 lacks 8080/tcp",
		"nft flush map inet skep backends6":                                                               "set backends6 lacks",
		"nft flush chain inet skep pick6-6":                                                               "rules of chain pick6-6",
		"nft flush chain inet skep_zones aliases":                                                         "nft table inet skep_zones",
		"ip -6 rule del pref 100":                                                                         "ip rule",
		"ip -6 route flush table 4000":                                                                    "table 4000",
		"ip -6 route del fd94:4a0:dd4d::6440:400/119":                                                     "route fd94:4a0:dd4d::6440:400/119",
		"ip -6 route add 2001:db8:ff::/64 dev skin0":                                                      "route 2001:db8:ff::/64 via skin0 should not",
		"ip neigh del fe80::53:4bff:fe45:102 dev skin0":                                                   "lacks neighbour fe80::53:4bff:fe45:102",
		"echo 0 > /proc/sys/net/ipv6/conf/all/forwarding":                                                 "net.ipv6.conf.all.forwarding is 0",
		"echo 1 > /proc/sys/net/ipv6/conf/skep0/accept_ra":                                                "net.ipv6.conf.skep0.accept_ra is 1",
		"echo 1 > /proc/sys/net/ipv6/conf/skin0/disable_ipv6":                                             "net.ipv6.conf.skin0.disable_ipv6 is 1",
		"ip link set skep0 type bridge nf_call_ip6tables 0":                                               "bridge skep0 does not filter IPv6",
		"ip6tables -F SKEP-FORWARD":                                                                       "ip6tables chain SKEP-FORWARD is missing or has other rules",
		"ip6tables -F FORWARD":                                                                            "ip6tables chain FORWARD does not jump",
	} {
		n.do(do)
		f, err := n.plane.Verify(context.Background())
		if err != nil || !strings.Contains(strings.Join(f, "\n"), want) {
			t.Fatalf("after %q: findings %q do not say %q: %v", do, f, want, err)
		}
		if err := n.plane.Repair(context.Background()); err != nil {
			t.Fatalf("after %q: %v", do, err)
		}
		if f, err := n.plane.Verify(context.Background()); err != nil || len(f) > 0 {
			t.Fatalf("after %q and the repair: %q %v", do, f, err)
		}
		for _, port := range []uint16{8080, 8081} {
			if _, saw, err := r.clients[0].ask("tcp4", n.at(port)); err != nil || saw != client {
				t.Fatalf("after %q and the repair, %d: %s %v", do, port, saw, err)
			}
			if _, saw, err := r.clients[0].ask("tcp6", n.at6(port)); err != nil || saw != client6 {
				t.Fatalf("after %q and the repair, %d over IPv6: %s %v", do, port, saw, err)
			}
		}
		if _, _, err := r.nodes[2].tasks[0].ask("udp4", n.at(8081)); err != nil {
			t.Fatalf("after %q and the repair: %v", do, err)
		}
	}
}

func TestForeignDrop(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	r.apply()
	n.do("nft add table inet strict; nft add chain inet strict forward '{ type filter hook forward priority 0; policy drop; }'")
	f, err := n.plane.Verify(context.Background())
	if err != nil || len(f) != 1 || !strings.Contains(f[0], "table inet strict chain forward policy drop") {
		t.Fatal(f, err)
	}
	for _, line := range strings.Split(f[0], "'") { // what it says is what helps
		if strings.HasPrefix(line, "nft ") {
			n.do(line[:strings.Index(line, "{")] + "'" + line[strings.Index(line, "{"):] + "'")
		}
	}
	n.do("nft insert rule inet strict forward ct original zone 5 accept") // which the library cannot read
	n.do("nft delete rule inet strict forward handle $(nft -a list chain inet strict forward | sed -n 's/.*zone 5.*handle //p')")
	n.wantRight()
}

// A UDP client that never stops follows the backends; a TCP connection stays until its task is forgotten.
func TestFlowsOfBackendsThatLeave(t *testing.T) {
	r := newRig(t)
	entry, far := r.nodes[0], r.nodes[1]
	for _, to := range []string{entry.at(8080), entry.at6(8080)} {
		t.Run(to, func(t *testing.T) {
			r.apply(both(8080, "web", far.tasks[0].backend(80))...)
			s := r.stream(t, to)
			u, err := r.clients[0].dial("udp", "", to)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = u.Close() }()
			asks := func(want string) {
				t.Helper()
				if who, _, err := say(u); err != nil || who != want {
					t.Fatal(who, err)
				}
			}
			asks("t10")
			r.apply(both(8080, "web", far.tasks[0].backend(80), far.tasks[1].backend(80))...)
			asks("t10") // one more is no reason to change
			r.apply(both(8080, "web", far.tasks[1].backend(80))...)
			asks("t11")
			s.goesOn("its backend left")
			r.apply()
			if who, _, err := say(u); err == nil {
				t.Fatalf("%s answers on a port that is not published", who)
			}
			r.apply(both(8080, "web", r.nodes[2].tasks[0].backend(80))...)
			asks("t20")

			task := far.tasks[0]
			tracked := func(n *node) bool {
				out := n.do("conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null")
				return strings.Contains(out, task.addr.String()+" ") || strings.Contains(out, task.addr6().String()+" ")
			}
			for _, n := range []*node{entry, far} {
				if !tracked(n) {
					t.Fatal(n.name, "does not track the stream")
				}
				if err := n.plane.Forget(task.addr); err != nil {
					t.Fatal(err)
				}
				if tracked(n) {
					t.Fatal(n.name, "tracks it still")
				}
			}
			asks("t20")
		})
	}
}

func TestOnlyNodesOfTheCluster(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	evil := newSpace(t, "evil")
	r.wire(evil, "10.90.0.66/24", "10.90.0.254")
	evil.do("ip link add vx address 02:53:4b:45:01:02 type vxlan id 4000 local 10.90.0.66 dstport 4789 nolearning; ip addr add 100.64.9.9/32 dev vx; ip link set vx mtu 1450 up;" +
		"ip neigh add 100.64.2.0 lladdr 02:53:4b:45:00:01 dev vx nud permanent; bridge fdb add 02:53:4b:45:00:01 dev vx dst 10.90.0.1 self permanent; ip route add 100.64.2.0/23 via 100.64.2.0 dev vx onlink src 100.64.9.9")
	seen := func() string { return n.do("conntrack -L 2>/dev/null") }
	for _, st := range []State{{}, {Peers: r.peers(n)}} { // before anybody is known, too
		n.apply(st)
		if who, _, err := evil.ask("udp4", "100.64.2.10:80"); err == nil {
			t.Fatalf("%s answers a host that is no node", who)
		}
		if out := seen(); strings.Contains(out, "100.64.9.9") || strings.Contains(out, "dport=4789") {
			t.Fatalf("it came through:\n%s", out)
		}
	}
	if out := n.do("nft list chain inet skep guard"); strings.Contains(out, "counter packets 0 bytes 0 drop comment \"only nodes of the cluster send fabric packets (") {
		t.Fatal(out)
	}
	n.apply(State{Peers: append(r.peers(n), Peer{"new", 666, netip.MustParsePrefix("100.64.8.0/23"), netip.MustParseAddr("10.90.0.66")})})
	if who, _, err := evil.ask("udp4", "100.64.2.10:80"); err == nil { // it answers to the MAC it knows: node 666's
		t.Log("answered by", who)
	}
	if out := seen(); !strings.Contains(out, "100.64.9.9") || strings.Contains(out, "dport=4789") {
		t.Fatalf("as a node it is not heard, or its VXLAN packets are tracked:\n%s", out)
	}
}

func TestCleanup(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	n.do("nft add table inet other; nft add chain inet other c; ip rule add pref 100 fwmark 0x2/0x2 lookup 77; iptables -N OTHER")
	before := n.hostState()
	r.apply(append(both(8080, "web", r.all(80)...), hundred()...)...)
	for _, e := range r.nodes {
		for _, nw := range networks {
			for range 10 {
				if _, _, err := r.clients[0].ask(nw, e.at(8080)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if n.hostState() == before {
		t.Fatal("the test sees no traces")
	}
	for range 2 {
		if err := n.plane.Cleanup(); err != nil {
			t.Fatal(err)
		}
		if err := n.plane.Repair(context.Background()); err != nil {
			t.Fatal(err)
		}
		if after := n.hostState(); after != before {
			t.Fatalf("left behind; before:\n%s\nafter:\n%s", before, after)
		}
	}
	if err := n.plane.Apply(context.Background(), State{}); err == nil {
		t.Fatal("applied after the cleanup")
	}
	n.start() // another process cleans up after one that died
	n.apply(State{Peers: r.peers(n)})
	n.start()
	if err := n.plane.Cleanup(); err != nil || n.hostState() != before {
		t.Fatalf("%v\n%s", err, n.hostState())
	}
}

// The table of the version before this package is taken over in place.
func TestUpgrade(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	n.sysctl("net/ipv4/ip_forward", "1")
	n.do(`set -e; nft -f - <<X
table inet skep { chain postrouting { type nat hook postrouting priority 100; ip saddr 100.64.2.0/23 oifname != "skep0" masquerade
 }
}
X
iptables -N SKEP-FORWARD; iptables -A SKEP-FORWARD -i skep0 -j ACCEPT; iptables -A SKEP-FORWARD -o skep0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -I FORWARD -j SKEP-FORWARD`)
	r.fab.serve(7001)
	c, err := n.tasks[0].dial("tcp4", "", "198.51.100.1:7001")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r.apply(both(8080, "web", r.all(80)...)...)
	n.wantRight()
	if _, saw, err := say(c); err != nil || saw.Addr() != n.addr {
		t.Fatal(saw, err)
	}
	if out := n.do("nft list table inet skep; iptables -S"); strings.Contains(out, "chain postrouting") || strings.Count(out, "-j SKEP-FORWARD") != 1 {
		t.Fatal(out)
	}
}

func TestForeignLink(t *testing.T) {
	r := newRig(t)
	r.nodes[0].do("ip link add skin0 type bridge")
	err := r.nodes[0].plane.Apply(context.Background(), State{})
	if err == nil || !strings.Contains(err.Error(), "rename or remove it") {
		t.Fatal(err)
	}
	r.nodes[0].do("ip link del skin0; ip link add vx type vxlan id 4000 dstport 4789 local 10.90.0.1")
	err = r.nodes[0].plane.Apply(context.Background(), State{})
	if err == nil || !strings.Contains(err.Error(), "--data-path-port") {
		t.Fatal(err)
	}
	r.nodes[2].do("ip link del skep0")
	if err := r.nodes[2].plane.Apply(context.Background(), State{}); err == nil || !strings.Contains(err.Error(), "bridge skep0 is not there") {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.nodes[1].plane.Apply(ctx, State{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// A change writes no more than it has to: the counters of what stays show it.
func TestChangesAreSmall(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	r.apply(both(8080, "web", r.all(80)...)...)
	for range 30 {
		if _, _, err := r.clients[0].ask("tcp4", n.at(8080)); err != nil {
			t.Fatal(err)
		}
	}
	counts := func() map[string]uint64 {
		ports, err := n.plane.Ports(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]uint64{}
		for _, p := range ports {
			for _, b := range p.Backends {
				out[fmt.Sprint(p.Protocol, p.Port, b.Task)] = b.Connections
			}
		}
		return out
	}
	before := counts()
	r.apply(append(both(8080, "web", append(r.all(80)[1:], r.nodes[1].tasks[1].backend(81))...), hundred()...)...)
	after := counts()
	for _, b := range r.all(80)[1:] {
		if k := "tcp8080" + b.Task; after[k] != before[k] && b.Task != "t11" {
			t.Errorf("%s had %d connections, has %d", k, before[k], after[k])
		}
	}
}

// Connections are made all the time while backends change and while the whole table is made anew: none fails.
func TestNoGapUnderLoad(t *testing.T) {
	r := newRig(t)
	n, far := r.nodes[0], r.nodes[1]
	sets := [][]Backend{{far.tasks[0].backend(80), r.nodes[2].tasks[0].backend(80)}, {n.tasks[0].backend(80), r.nodes[2].tasks[0].backend(80), far.tasks[1].backend(81)}, {n.tasks[1].backend(80)}}
	r.apply(both(8080, "web", sets[0]...)...)
	stop, done := make(chan struct{}), make(chan error, 1)
	asked := 0
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, saw, err := r.clients[0].ask("tcp4", n.at(8080)); err != nil || saw != netip.MustParseAddr("198.51.100.7") {
				done <- fmt.Errorf("request %d: saw %s: %w", asked, saw, err)
				return
			}
			asked++
		}
	}()
	for i := range 60 {
		switch {
		case i%20 == 19: // as an upgrade does
			n.do("for c in $(nft list table inet skep | sed -n 's/.*chain \\(layout-[^ ]*\\).*/\\1/p'); do nft delete chain inet skep $c; done")
			if err := n.plane.Repair(context.Background()); err != nil {
				t.Fatal(err)
			}
		case i%20 == 9:
			n.start()
			fallthrough
		default:
			n.apply(State{Peers: r.peers(n), Services: append(both(8080, "web", sets[i%3]...), hundred()[:i]...)})
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if asked < 20 {
		t.Fatalf("only %d requests", asked)
	}
	n.wantRight()
}

// The backend's address is nobody's (its task died a moment ago): the client hears that from the backend's node.
func TestErrorsComeBack(t *testing.T) {
	r := newRig(t)
	r.nodes[1].sysctl("net/ipv4/neigh/skep0/retrans_time_ms", "50")
	r.apply(both(8080, "web", backend(netip.MustParseAddr("100.64.4.99"), 80, "gone"))...)
	if _, err := r.clients[0].dial("tcp4", "", r.nodes[0].at(8080)); err == nil || !strings.Contains(err.Error(), "no route to host") {
		t.Fatal(err)
	}
}

func TestIPv6Underlay(t *testing.T) {
	r := newRig(t)
	for i, n := range r.nodes {
		n.cfg.Underlay = netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))
		n.do(fmt.Sprintf("ip addr add %s/64 dev eth0 nodad", n.cfg.Underlay))
		n.start()
	}
	r.apply(both(8080, "web", r.all(80)...)...)
	for _, nw := range networks {
		reach(t, r.clients[0], nw, r.nodes[0].at(8080), always(netip.MustParseAddr("198.51.100.7")), "t00", "t10", "t20")
	}
	for _, n := range r.nodes {
		n.wantRight()
	}
	if out := r.nodes[0].do("ip link show skin0; conntrack -L -f ipv6 2>/dev/null"); !strings.Contains(out, "mtu 1430") || strings.Contains(out, "dport=4789") {
		t.Fatal(out)
	}
}
