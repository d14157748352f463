package ingress

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/ipam"
)

var networks = []string{"tcp4", "udp4"}

// reach asks until every wanted task has answered, and checks the client's address each time.
func reach(t *testing.T, from space, network, to string, client func(who string) netip.Addr, want ...string) {
	t.Helper()
	missing := map[string]bool{}
	for _, w := range want {
		missing[w] = true
	}
	for range 40 * len(want) {
		who, saw, err := from.ask(network, to)
		if err != nil {
			t.Fatalf("%s → %s %s: %v", from.name, network, to, err)
		}
		if c := client(who); saw != c {
			t.Fatalf("%s → %s %s: %s sees %s, not %s", from.name, network, to, who, saw, c)
		}
		delete(missing, who)
		if len(missing) == 0 {
			return
		}
	}
	t.Fatalf("%s → %s %s: never answered: %v", from.name, network, to, missing)
}

func always(a netip.Addr) func(string) netip.Addr { return func(string) netip.Addr { return a } }

func TestMesh(t *testing.T) {
	r := newRig(t)
	var names []string
	for _, n := range r.nodes {
		for _, k := range n.tasks {
			names = append(names, k.name)
		}
	}
	r.apply(append(both(8080, "web", r.all(80)...), append(both(9000, "none"), both(9001, "remote", r.nodes[1].tasks[0].backend(81))...)...)...)
	for _, n := range r.nodes {
		n.wantRight()
	}
	client := netip.MustParseAddr("198.51.100.7")
	onNode := func(n *node, who string) bool { return strings.HasPrefix(who, "t"+n.name[1:]) }

	t.Run("client keeps its address at every node", func(t *testing.T) {
		for _, n := range r.nodes {
			for _, nw := range networks {
				reach(t, r.clients[0], nw, n.at(8080), always(client), names...)
				reach(t, r.clients[0], nw, n.at(9001), always(client), "t10")
			}
		}
	})
	t.Run("task asks another node", func(t *testing.T) {
		n, other := r.nodes[0], r.nodes[1]
		saw := func(who string) netip.Addr {
			if onNode(n, who) { // it would be its own address: see the rule "back to the node it came from"
				return other.cfg.Gateway
			}
			return n.addr
		}
		for _, nw := range networks {
			reach(t, n.tasks[0].space, nw, other.at(8080), saw, names...)
		}
	})
	t.Run("task asks its own node", func(t *testing.T) {
		for _, n := range r.nodes[1:] { // with and without bridged packets in iptables
			for _, k := range n.tasks {
				saw := func(who string) netip.Addr {
					if onNode(n, who) {
						return n.cfg.Gateway
					}
					return k.addr
				}
				for _, nw := range networks {
					reach(t, k.space, nw, n.at(8080), saw, names...)
					reach(t, k.space, nw, netip.AddrPortFrom(n.cfg.Gateway, 8080).String(), saw, names...)
				}
			}
		}
	})
	t.Run("node asks another node's gateway address", func(t *testing.T) {
		n, other := r.nodes[0], r.nodes[2]
		saw := func(who string) netip.Addr {
			if onNode(other, who) {
				return n.cfg.Gateway
			}
			return other.cfg.Gateway // in by the fabric and out by it
		}
		for _, nw := range networks {
			reach(t, n.space, nw, netip.AddrPortFrom(other.cfg.Gateway, 8080).String(), saw, names...)
		}
	})
	t.Run("the fabric is no way for a task to another node", func(t *testing.T) {
		to := netip.AddrPortFrom(r.nodes[2].cfg.Gateway, 8080).String()
		if c, err := r.nodes[0].tasks[0].space.dial("tcp4", "", to); err == nil {
			_ = c.Close()
			t.Errorf("a task reaches %s", to)
		}
	})
	t.Run("node asks itself", func(t *testing.T) {
		for _, n := range r.nodes {
			for _, nw := range networks {
				reach(t, n.space, nw, n.at(8080), always(n.addr), names...)
				reach(t, n.space, nw, "127.0.0.1:8080", always(n.cfg.Gateway), names...)
			}
		}
	})
	t.Run("node asks another node", func(t *testing.T) {
		n, other := r.nodes[2], r.nodes[0]
		saw := func(who string) netip.Addr {
			if onNode(n, who) {
				return other.cfg.Gateway
			}
			return n.addr
		}
		for _, nw := range networks {
			reach(t, n.space, nw, other.at(8080), saw, names...)
		}
	})
	t.Run("node talks to a task elsewhere", func(t *testing.T) {
		reach(t, r.nodes[0].space, "tcp4", "100.64.4.10:80", always(r.nodes[0].cfg.Gateway), "t10")
	})
	t.Run("nobody reaches a task but by what it publishes", func(t *testing.T) {
		outside := r.clients[0]
		outside.do("ip route add 100.64.2.0/23 via 198.51.100.1")
		r.fab.do("ip route add 100.64.2.0/23 via 10.90.0.1")
		defer func() {
			outside.do("ip route del 100.64.2.0/23")
			r.fab.do("ip route del 100.64.2.0/23")
		}()
		for _, try := range []struct {
			from space
			to   task
		}{
			{r.nodes[0].tasks[0].space, r.nodes[0].tasks[1]}, // bridged, packets in iptables
			{r.nodes[2].tasks[0].space, r.nodes[2].tasks[1]}, // bridged, not in iptables
			{r.nodes[0].tasks[0].space, r.nodes[1].tasks[0]}, // through the fabric
			{outside, r.nodes[0].tasks[0]},
		} {
			for _, port := range []string{"80", "81"} {
				c, err := try.from.dial("tcp4", "", try.to.addr.String()+":"+port)
				if err == nil {
					_ = c.Close()
					t.Errorf("%s reaches %s", try.from.name, try.to.addr)
				}
			}
		}
	})
	t.Run("same source port through two nodes", func(t *testing.T) {
		for _, nw := range networks {
			for entry := range 2 {
				c, err := r.clients[0].dial(nw, "198.51.100.7:5556", []string{r.nodes[0].at(9001), r.nodes[2].at(9001)}[entry])
				if err != nil {
					t.Fatal(nw, entry, err)
				}
				defer func() { _ = c.Close() }()
				who, saw, err := say(c)
				if err != nil || who != "t10" || saw.Addr() != client {
					t.Fatal(nw, entry, who, saw, err)
				}
			}
		}
		if out := r.nodes[1].do("conntrack -L 2>/dev/null"); !strings.Contains(out, "zone-orig=1 ") || !strings.Contains(out, "zone-orig=8192 ") {
			t.Fatalf("zones:\n%s", out)
		}
	})
	t.Run("no backend refuses at once", func(t *testing.T) {
		r.nodes[0].serve(9000) // another program behind the port must not be found
		for _, from := range []space{r.clients[0], r.nodes[0].space, r.nodes[0].tasks[0].space} {
			for _, nw := range networks {
				t0 := time.Now()
				if who, _, err := from.ask(nw, r.nodes[0].at(9000)); err == nil || !strings.Contains(err.Error(), "refused") || time.Since(t0) > time.Second {
					t.Fatal(from.name, nw, who, err, time.Since(t0))
				}
			}
		}
	})
	t.Run("loopback of the host stays closed", func(t *testing.T) {
		n := r.nodes[0]
		k := n.tasks[0]
		n.serve(7000)
		k.sysctl("net/ipv4/conf/all/route_localnet", "1")
		k.do("ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via " + n.cfg.Gateway.String() + " src " + k.addr.String())
		if who, _, err := k.ask("tcp4", "127.0.0.1:7000"); err == nil {
			t.Fatalf("%s answered", who)
		}
		k.do("ip route del 127.0.0.1; ip addr add 127.0.0.1/8 dev lo")
	})
	t.Run("egress", func(t *testing.T) {
		r.fab.serve(7001)
		reach(t, r.nodes[1].tasks[0].space, "tcp4", "198.51.100.1:7001", always(r.nodes[1].addr), "fab")
	})
	t.Run("big packets", func(t *testing.T) {
		out := r.nodes[1].do("nft list chain inet skep clamp")
		if !strings.Contains(out, "maxseg size set rt mtu") {
			t.Fatal(out)
		}
		if mtu := r.nodes[1].do("ip link show skin0"); !strings.Contains(mtu, "mtu 1450") {
			t.Fatal(mtu)
		}
	})
	t.Run("ports and trace", func(t *testing.T) {
		ports, err := r.nodes[0].plane.Ports(context.Background())
		if err != nil || len(ports) != 6 {
			t.Fatal(ports, err)
		}
		web := ports[0]
		counted, err := r.nodes[0].plane.Counters(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(counted, ports) {
			t.Fatalf("Counters: %+v\nPorts: %+v", counted, ports)
		}
		if web.Port != 8080 || web.Protocol != "tcp" || web.Service != "web" || web.HostMode || len(web.Backends) != 6 || web.Connections < 12 {
			t.Fatalf("%+v", web)
		}
		sum := uint64(0)
		for _, b := range web.Backends {
			sum += b.Connections
			if b.Task == "" || b.Port != 80 {
				t.Fatalf("%+v", b)
			}
		}
		if sum != web.Connections {
			t.Fatalf("%d connections, backends had %d", web.Connections, sum)
		}
		if none := ports[2]; none.Port != 9000 || none.Service != "none" || len(none.Backends) != 0 {
			t.Fatalf("%+v", none)
		}
		var text []string
		hops, err := r.nodes[0].plane.Trace(context.Background(), "tcp", 8080)
		for _, h := range hops {
			text = append(text, h.Where+": "+h.Text)
		}
		all := strings.Join(text, "\n")
		for _, want := range []string{"chain pick-6", "100.64.4.10:80, task t10", "by skin0 via 100.64.4.0", "sent to node address 10.90.0.2, UDP port 4789", "100.64.2.10 is on this node"} {
			if err != nil || !strings.Contains(all, want) {
				t.Fatalf("%q is not in\n%s\n%v", want, all, err)
			}
		}
		for port, want := range map[uint16]string{9000: "refused", 1: "not published"} {
			hops, err := r.nodes[0].plane.Trace(context.Background(), "udp", port)
			if err != nil || len(hops) != 1 || !strings.Contains(hops[0].Text, want) {
				t.Fatal(hops, err)
			}
		}
		if _, err := r.nodes[0].plane.Trace(context.Background(), "icmp", 1); err == nil {
			t.Fatal("traced a port of icmp")
		}
	})
}

func TestHostMode(t *testing.T) {
	r := newRig(t)
	k := r.nodes[1].tasks[1]
	for i, n := range r.nodes {
		st := State{Peers: r.peers(n)}
		if i == 1 {
			st.HostPorts = []HostPort{k.hostPort("tcp", 8443, netip.Addr{}), k.hostPort("udp", 8443, netip.Addr{})}
		}
		n.apply(st)
		n.wantRight()
	}
	for _, nw := range networks {
		reach(t, r.clients[0], nw, r.nodes[1].at(8443), always(netip.MustParseAddr("198.51.100.7")), k.name)
		reach(t, r.nodes[1].space, nw, "127.0.0.1:8443", always(r.nodes[1].cfg.Gateway), k.name)
		reach(t, k.space, nw, r.nodes[1].at(8443), always(r.nodes[1].cfg.Gateway), k.name)
		if who, _, err := r.clients[0].ask(nw, r.nodes[0].at(8443)); err == nil {
			t.Fatalf("node 0 answers by %s", who)
		}
	}
	ports, err := r.nodes[1].plane.Ports(context.Background())
	if err != nil || len(ports) != 2 || !ports[0].HostMode || ports[0].Service != "" || ports[0].Backends[0].Task != k.name {
		t.Fatalf("%+v %v", ports, err)
	}
}

// hostPort publishes the task's port 81 on its node.
func (k task) hostPort(protocol string, port uint16, at netip.Addr) HostPort {
	return HostPort{Protocol: protocol, Published: port, At: at, Addr: k.addr, Addr6: ipam.NodeAddr6(k.addr), Target: 81, Task: k.name}
}

// One port at two addresses of a node is two tasks'; what is for a third address is the node's own, and so is what is for
// one of these when its task is gone.
func TestHostModeAtOneAddress(t *testing.T) {
	r := newRig(t)
	n := r.nodes[1]
	a, b := n.tasks[0], n.tasks[1]
	one, two, six := netip.MustParseAddr("192.0.2.71"), netip.MustParseAddr("192.0.2.72"), netip.MustParseAddr("2001:db8:71::1")
	for _, x := range []string{"192.0.2.71/32", "192.0.2.72/32", "192.0.2.73/32", "2001:db8:71::1/128"} {
		n.do("ip address add " + x + " dev lo")
	}
	local := netip.MustParseAddr("127.0.0.1")
	for _, proto := range []string{"tcp", "udp"} {
		st := State{Peers: r.peers(n), HostPorts: []HostPort{
			a.hostPort(proto, 8443, one), b.hostPort(proto, 8443, two), a.hostPort(proto, 8443, six), b.hostPort(proto, 8443, local),
			b.hostPort(proto, 8443, one), // a second one: the first has it
		}}
		n.apply(st)
		if found, err := n.plane.Verify(context.Background()); err != nil || len(found) != 1 || !strings.Contains(found[0], "192.0.2.71:8443/"+proto+" is published by tasks "+a.name) {
			t.Errorf("%s: %v %v", proto, found, err)
		}
		is := func(at, want string) {
			t.Helper()
			who, _, err := n.ask(proto, at)
			if who != want || (want == "") != (err != nil) {
				t.Errorf("%s %s: %q answers, want %q (%v)", proto, at, who, want, err)
			}
		}
		is("192.0.2.71:8443", a.name)
		is("192.0.2.72:8443", b.name)
		is("[2001:db8:71::1]:8443", a.name)
		is("127.0.0.1:8443", b.name)
		is("192.0.2.73:8443", "")
		ports, err := n.plane.Ports(context.Background())
		if err != nil || len(ports) != 4 || ports[0].At != local || !ports[0].HostMode || ports[0].Backends[0].Task != b.name {
			t.Errorf("%+v %v", ports, err)
		}
		// It goes to another task: datagrams of a client that does not stop too.
		st.HostPorts = []HostPort{b.hostPort(proto, 8443, one)}
		n.apply(st)
		n.wantRight()
		is("192.0.2.71:8443", b.name)
		is("192.0.2.72:8443", "")
		if hops, err := n.plane.Trace(context.Background(), proto, 8443); err != nil || len(hops) != 1 || !strings.Contains(hops[0].Text, "192.0.2.71 alone") {
			t.Errorf("%v %v", hops, err)
		}
	}
	n.apply(State{Peers: r.peers(n)})
	n.wantRight()
}

// A port at 127.0.0.1 is the host's own: a neighbour on its link that sends there by the link does not come to the task.
func TestHostModeAtLoopback(t *testing.T) {
	r := newRig(t)
	n, client := r.nodes[1], r.clients[0]
	k := n.tasks[0]
	n.apply(State{Peers: r.peers(n), HostPorts: []HostPort{k.hostPort("tcp", 8443, netip.MustParseAddr("127.0.0.1")), k.hostPort("udp", 8443, netip.MustParseAddr("127.0.0.1"))}})
	n.wantRight()
	client.sysctl("net/ipv4/conf/all/route_localnet", "1")
	client.do("ip addr add 10.90.0.77/24 dev eth0; ip route del local 127.0.0.0/8 dev lo table local; ip route del local 127.0.0.1 dev lo table local; ip route add 127.0.0.1/32 via " + n.addr.String() + " dev eth0 src 10.90.0.77")
	for _, nw := range networks {
		if who, _, err := n.ask(nw, "127.0.0.1:8443"); err != nil || who != k.name {
			t.Errorf("%s on the host itself: %q %v", nw, who, err)
		}
		led := func() (sum uint64) {
			ports, err := n.plane.Ports(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range ports {
				sum += p.Connections
			}
			return sum
		}
		before := led()
		if who, _, err := client.ask(nw, "127.0.0.1:8443"); err == nil || led() != before {
			t.Errorf("%s: what a neighbour sends comes to the task (%q answers)", nw, who)
		}
	}
}

// hundred other services.
func hundred() (out []Service) {
	for i := range 100 {
		var b []Backend
		for k := range i % 5 {
			b = append(b, backend(netip.AddrFrom4([4]byte{100, 64, 7, byte(k + 1)}), 80, fmt.Sprintf("x%d", k)))
		}
		out = append(out, Service{"tcp", uint16(20000 + i), fmt.Sprintf("other%d", i), b})
	}
	return out
}
