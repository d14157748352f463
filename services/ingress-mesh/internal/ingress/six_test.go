package ingress

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

var networks6 = []string{"tcp6", "udp6"}

var client6 = netip.MustParseAddr("2001:db8:51::7")

func TestMeshIPv6(t *testing.T) {
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
	onNode := func(n *node, who string) bool { return strings.HasPrefix(who, "t"+n.name[1:]) }

	t.Run("client keeps its address at every node", func(t *testing.T) {
		for _, n := range r.nodes {
			for _, nw := range networks6 {
				reach(t, r.clients[0], nw, n.at6(8080), always(client6), names...)
				reach(t, r.clients[0], nw, n.at6(9001), always(client6), "t10")
			}
		}
	})
	t.Run("task asks another node", func(t *testing.T) {
		n, other := r.nodes[0], r.nodes[1]
		saw := func(who string) netip.Addr {
			if onNode(n, who) { // it would be its own address: see aliasIn
				return n.cfg.gateway6()
			}
			return n.addr6
		}
		for _, nw := range networks6 {
			reach(t, n.tasks[0].space, nw, other.at6(8080), saw, names...)
		}
	})
	t.Run("task asks its own node", func(t *testing.T) {
		for _, n := range r.nodes { // with and without bridged packets in iptables
			for _, k := range n.tasks {
				saw := func(who string) netip.Addr {
					if onNode(n, who) {
						return n.cfg.gateway6()
					}
					return k.addr6()
				}
				for _, nw := range networks6 {
					reach(t, k.space, nw, n.at6(8080), saw, names...)
					reach(t, k.space, nw, netip.AddrPortFrom(n.cfg.gateway6(), 8080).String(), saw, names...)
				}
			}
		}
	})
	t.Run("node asks itself", func(t *testing.T) {
		for _, n := range r.nodes {
			for _, nw := range networks6 {
				reach(t, n.space, nw, n.at6(8080), always(n.addr6), names...)
			}
		}
	})
	t.Run("node asks its loopback", func(t *testing.T) {
		n := r.nodes[2]
		for _, nw := range networks6 {
			reach(t, n.space, nw, "[::1]:8080", always(n.cfg.gateway6()), names...)
		}
		n.do("ip -6 route del local ::1 dev skep0 table local")
		if err := n.plane.Repair(context.Background()); err != nil {
			t.Fatal(err)
		}
		reach(t, n.space, "tcp6", "[::1]:8080", always(n.cfg.gateway6()), names...)
		// Where bridged packets are filtered it is refused at once, so that a client goes on to 127.0.0.1.
		filtered := r.nodes[0]
		t0 := time.Now()
		if who, _, err := filtered.ask("tcp6", "[::1]:8080"); err == nil || !strings.Contains(err.Error(), "refused") || time.Since(t0) > time.Second {
			t.Fatal(who, err, time.Since(t0))
		}
		n.sysctl("net/bridge/bridge-nf-call-ip6tables", "1")
		if err := n.plane.Repair(context.Background()); err != nil {
			t.Fatal(err)
		}
		n.wantRight()
		if who, _, err := n.ask("tcp6", "[::1]:8080"); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Fatal(who, err)
		}
		for _, k := range n.tasks { // its ports are open now
			reach(t, k.space, "tcp6", n.at6(8080), func(who string) netip.Addr {
				if onNode(n, who) {
					return n.cfg.gateway6()
				}
				return k.addr6()
			}, names...)
			reach(t, k.space, "tcp4", n.at(8080), func(who string) netip.Addr {
				if onNode(n, who) {
					return n.cfg.Gateway
				}
				return k.addr
			}, names...)
		}
		n.sysctl("net/bridge/bridge-nf-call-ip6tables", "0")
		if err := n.plane.Repair(context.Background()); err != nil {
			t.Fatal(err)
		}
		reach(t, n.space, "tcp6", "[::1]:8080", always(n.cfg.gateway6()), names...)
	})
	t.Run("nobody reaches a task but by what it publishes", func(t *testing.T) {
		outside := r.clients[0]
		outside.do("ip route add fd94:4a0:dd4d::/96 via 2001:db8:51::1")
		r.fab.do("ip route add fd94:4a0:dd4d::/96 via 2001:db8:90::1")
		defer func() {
			outside.do("ip route del fd94:4a0:dd4d::/96")
			r.fab.do("ip route del fd94:4a0:dd4d::/96")
		}()
		linkLocal := func(k task) string {
			f := strings.Fields(k.do("ip -6 -o addr show dev eth0 scope link"))
			return "[" + strings.Split(f[3], "/")[0] + "%eth0]"
		}
		var wg sync.WaitGroup // each try takes as long as a client waits
		for _, try := range []struct {
			from space
			to   string
		}{
			{r.nodes[0].tasks[0].space, "[" + r.nodes[0].tasks[1].addr6().String() + "]"}, // bridged, packets in iptables
			{r.nodes[1].tasks[0].space, "[" + r.nodes[1].tasks[1].addr6().String() + "]"}, // of IPv4 alone, by the host's own word
			{r.nodes[2].tasks[0].space, "[" + r.nodes[2].tasks[1].addr6().String() + "]"}, // not in iptables
			{r.nodes[0].tasks[0].space, linkLocal(r.nodes[0].tasks[1])},
			{r.nodes[1].tasks[0].space, linkLocal(r.nodes[1].tasks[1])},
			{r.nodes[2].tasks[0].space, linkLocal(r.nodes[2].tasks[1])},
			{r.nodes[0].tasks[0].space, "[" + r.nodes[1].tasks[0].addr6().String() + "]"}, // through the fabric
			{outside, "[" + r.nodes[0].tasks[0].addr6().String() + "]"},
		} {
			for _, port := range []string{"80", "81"} {
				for _, nw := range networks6 {
					wg.Go(func() {
						if who, _, err := try.from.ask(nw, try.to+":"+port); err == nil {
							t.Errorf("%s reaches %s at %s over %s", try.from.name, who, try.to, nw)
						}
					})
				}
			}
			wg.Go(func() {
				if out, err := try.from.try("ping -6 -c1 -W1 " + strings.Trim(try.to, "[]")); err == nil {
					t.Errorf("%s reaches %s:\n%s", try.from.name, try.to, out)
				}
			})
		}
		wg.Wait()
	})
	t.Run("the fabric is no way for a task to another node", func(t *testing.T) {
		to := netip.AddrPortFrom(r.nodes[2].cfg.gateway6(), 8080).String()
		if who, _, err := r.nodes[0].tasks[0].ask("tcp6", to); err == nil {
			t.Errorf("a task reaches %s at %s", who, to)
		}
	})
	t.Run("an alias is nobody's address", func(t *testing.T) {
		c := r.clients[0]
		c.do("ip addr add 6001:db8:51::7/128 dev eth0 nodad")
		r.fab.do("ip -6 route add 6001:db8:51::/64 dev br0")
		n := r.nodes[0]
		n.do("ip -6 route add 6001:db8:51::/64 via 2001:db8:90::fe")
		if c, err := c.dial("tcp6", "[6001:db8:51::7]:0", n.at6(9001)); err == nil {
			_ = c.Close()
			t.Error("it was let in")
		}
		if out := n.do("nft list chain inet skep isolate"); !strings.Contains(out, "6000::/3") || strings.Contains(out, `6000::/3 counter packets 0`) {
			t.Error(out)
		}
		c.do("ip addr del 6001:db8:51::7/128 dev eth0")
	})
	t.Run("node talks to a task elsewhere", func(t *testing.T) {
		reach(t, r.nodes[0].space, "tcp6", netip.AddrPortFrom(r.nodes[1].tasks[0].addr6(), 80).String(), always(r.nodes[0].cfg.gateway6()), "t10")
	})
	t.Run("same source port through two nodes", func(t *testing.T) {
		for _, nw := range networks6 {
			for entry := range 2 {
				c, err := r.clients[0].dial(nw, "[2001:db8:51::7]:5556", []string{r.nodes[0].at6(9001), r.nodes[2].at6(9001)}[entry])
				if err != nil {
					t.Fatal(nw, entry, err)
				}
				defer func() { _ = c.Close() }()
				who, saw, err := say(c)
				if err != nil || who != "t10" || saw.Addr() != client6 {
					t.Fatal(nw, entry, who, saw, err)
				}
			}
		}
	})
	t.Run("no backend refuses at once", func(t *testing.T) {
		r.nodes[0].serve(9000) // another program behind the port must not be found
		for _, from := range []space{r.clients[0], r.nodes[0].space, r.nodes[0].tasks[0].space} {
			for _, nw := range networks6 {
				t0 := time.Now()
				if who, _, err := from.ask(nw, r.nodes[0].at6(9000)); err == nil || !strings.Contains(err.Error(), "refused") || time.Since(t0) > time.Second {
					t.Fatal(from.name, nw, who, err, time.Since(t0))
				}
			}
		}
	})
	t.Run("egress", func(t *testing.T) {
		r.fab.serve(7001)
		reach(t, r.nodes[1].tasks[0].space, "tcp6", "[2001:db8:51::1]:7001", always(r.nodes[1].addr6), "fab")
	})
	t.Run("ports and trace", func(t *testing.T) {
		ports, err := r.nodes[0].plane.Ports(context.Background())
		if err != nil || len(ports) != 6 {
			t.Fatal(ports, err)
		}
		sum := uint64(0)
		for _, b := range ports[0].Backends {
			sum += b.Connections
		}
		if web := ports[0]; web.Port != 8080 || len(web.Backends) != 6 || web.Connections < 12 || sum != web.Connections {
			t.Fatalf("%+v", web)
		}
		hops, err := r.nodes[0].plane.Trace(context.Background(), "tcp", 8080)
		var text []string
		for _, h := range hops {
			text = append(text, h.Where+": "+h.Text)
		}
		all := strings.Join(text, "\n")
		for _, want := range []string{"chain pick6-6", "[fd94:4a0:dd4d::6440:40a]:80, task t10", "by skin0 via fe80::53:4bff:fe45:102", "sent to node address 10.90.0.2, UDP port 4789"} {
			if err != nil || !strings.Contains(all, want) {
				t.Fatalf("%q is not in\n%s\n%v", want, all, err)
			}
		}
	})
	t.Run("node asks another node", func(t *testing.T) {
		n, other := r.nodes[2], r.nodes[0]
		saw := func(who string) netip.Addr {
			if onNode(n, who) {
				return n.cfg.gateway6()
			}
			return n.addr6
		}
		for _, nw := range networks6 {
			reach(t, n.space, nw, other.at6(8080), saw, names...)
		}
	})
}

// A node without IPv6, or with it switched off, publishes as before, and nothing is said about it.
func TestWithoutIPv6(t *testing.T) {
	r := newRig(t)
	n, far := r.nodes[0], r.nodes[1]
	core, logs := observer.New(zap.InfoLevel)
	n.cfg.Log = zap.New(core)
	n.start()
	n.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
	services := both(8080, "web", n.tasks[0].backend(80), far.tasks[0].backend(80))
	four := func() {
		t.Helper()
		for range 3 {
			if err := n.plane.Repair(context.Background()); err != nil {
				t.Fatal(err)
			}
			n.wantRight()
		}
		for _, nw := range networks {
			reach(t, r.clients[0], nw, n.at(8080), always(netip.MustParseAddr("198.51.100.7")), "t00", "t10")
		}
	}
	r.apply(services...)
	four()
	if logs.Len() > 0 {
		t.Fatal(logs.All())
	}
	if out := n.do("nft list map inet skep ports6; ip -6 rule; ip -6 route show table all"); strings.Contains(out, "8080") || strings.Contains(out, "skin0") || strings.Contains(out, "4000") {
		t.Fatal(out)
	}
	hops, err := n.plane.Trace(context.Background(), "tcp", 8080)
	if err != nil || !strings.Contains(hops[len(hops)-1].Text, "no IPv6") {
		t.Fatal(hops, err)
	}

	// It is switched on: the bridge gets its address, and the next look makes the rest.
	n.sysctl("net/ipv6/conf/all/disable_ipv6", "0")
	n.do("ip addr add " + n.cfg.gateway6().String() + "/119 dev skep0 nodad; ip addr add " + n.addr6.String() + "/64 dev eth0 nodad; ip route replace default via 2001:db8:90::fe")
	if err := n.plane.Repair(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.wantRight()
	for _, nw := range networks6 {
		reach(t, r.clients[0], nw, n.at6(8080), always(client6), "t00", "t10")
	}
	// And off again, with connections under way.
	n.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
	four()
	if out := n.do("nft list map inet skep ports6"); strings.Contains(out, "8080") {
		t.Fatal(out)
	}
}

// A node that has IPv6 and no address of it outside: clients of other nodes come to its tasks.
func TestNodeWithoutIPv6Address(t *testing.T) {
	r := newRig(t)
	n := r.nodes[2]
	n.do("ip -6 addr flush dev eth0; ip -6 route flush dev eth0")
	r.apply(both(8080, "web", n.tasks[0].backend(80), n.tasks[1].backend(80))...)
	n.wantRight()
	for _, nw := range networks6 {
		reach(t, r.clients[0], nw, r.nodes[0].at6(8080), always(client6), "t20", "t21")
	}
	if who, _, err := n.tasks[0].ask("tcp6", "[2001:db8:51::1]:7001"); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Fatal("a task without a way out over IPv6 should hear so at once:", who, err)
	}
}

// Of a service's tasks those without IPv6 get no clients of it; with none that has it, the port refuses.
func TestTasksWithoutIPv6(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	old := n.tasks[0].backend(80)
	old.Addr6 = netip.Addr{}
	r.apply(append(both(8080, "web", old, r.nodes[1].tasks[0].backend(80)), both(8081, "old", old)...)...)
	n.wantRight()
	for range 10 {
		if who, _, err := r.clients[0].ask("tcp6", n.at6(8080)); err != nil || who != "t10" {
			t.Fatal(who, err)
		}
	}
	if who, _, err := r.clients[0].ask("tcp6", n.at6(8081)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatal(who, err)
	}
	reach(t, r.clients[0], "tcp4", n.at(8081), always(netip.MustParseAddr("198.51.100.7")), "t00")
}

// Local addresses (fc00::/7) come home as well, and so does what is too big for the fabric.
func TestAliasesOfLocalAddresses(t *testing.T) {
	r := newRig(t)
	for i, n := range r.nodes {
		n.do(fmt.Sprintf("ip addr flush dev eth0 scope global; ip addr add %s/24 dev eth0; ip addr add fd12:3456::%d/64 dev eth0 nodad", n.addr, i+1))
	}
	n, other := r.nodes[0], r.nodes[1]
	r.apply(both(8080, "web", n.tasks[0].backend(80))...)
	for _, nw := range networks6 {
		for _, from := range []space{n.space, n.tasks[0].space, n.tasks[1].space} {
			reach(t, from, nw, "[fd12:3456::2]:8080", always(n.cfg.gateway6()), "t00")
		}
		reach(t, r.nodes[2].space, nw, "[fd12:3456::2]:8080", always(netip.MustParseAddr("fd12:3456::3")), "t00")
	}
	// Checksums that the card would fill in are right too: a long answer, in segments larger than a packet.
	c, err := n.dial("tcp6", "", "[fd12:3456::2]:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write(append(bytes.Repeat([]byte("x"), 1<<20), '\n')); err != nil {
		t.Fatal(err)
	}
	if who, _, err := say(c); err != nil || who != "t00" {
		t.Fatal(who, err)
	}
	other.wantRight()
}

// What the host learned from routers it keeps, though it forwards now.
func TestRoutersAreHeardStill(t *testing.T) {
	r := newRig(t)
	n := r.nodes[0]
	n.do("ip route replace default via 2001:db8:90::fe proto ra")
	n.apply(State{})
	if out := n.do("cat /proc/sys/net/ipv6/conf/eth0/accept_ra /proc/sys/net/ipv6/conf/v-t00/accept_ra; ip -6 route show default"); !strings.HasPrefix(out, "2\n1\n") || !strings.Contains(out, "proto ra") {
		t.Fatal(out)
	}
	if out := r.nodes[1].do("cat /proc/sys/net/ipv6/conf/eth0/accept_ra"); out != "1\n" {
		t.Fatal(out)
	}
}
