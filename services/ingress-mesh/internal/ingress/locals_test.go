package ingress

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"skep.dev/services/ingress-mesh/internal/antispoof"
)

// watched counts UDP packets that come to a node by port, whatever becomes of them.
func (s space) watched(ports ...int) func() int {
	s.t.Helper()
	list := strings.ReplaceAll(strings.Trim(fmt.Sprint(ports), "[]"), " ", ", ")
	s.do("nft -f - <<X\ntable inet watch {}\ndelete table inet watch\ntable inet watch { chain c { type filter hook prerouting priority -450; udp dport { " + list + " } counter\n}\n}\nX")
	return func() (n int) {
		out := s.do("nft list chain inet watch c")
		_, _ = fmt.Sscanf(out[strings.Index(out, "counter packets"):], "counter packets %d", &n)
		return n
	}
}

// TestTasksSendNoFabricPackets: what a task sends to the data path of any node, by any address, reaches none; and what
// only looks like it does.
func TestTasksSendNoFabricPackets(t *testing.T) {
	r := newRig(t)
	r.apply(both(8080, "vx", r.nodes[1].tasks[0].backend(4789))...) // a task may have that port
	n, far, task := r.nodes[0], r.nodes[1], r.nodes[0].tasks[0]
	far.do("ip addr add 10.90.0.77/24 dev eth0; ip addr add 2001:db8:90::77/64 dev eth0 nodad preferred_lft 0")
	n.do("ip addr add 10.90.0.78/24 dev eth0")
	far.serve(5001)
	far.tasks[0].serve(4789)
	send := func(to string, size int) {
		t.Helper()
		c, err := task.dial("udp", "", to)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = c.Write(make([]byte, size)) // the node may say that it is not let through
	}
	count := far.watched(4789, 51820, 52500, 53819)
	for _, size := range []int{10, 1400, 4000} { // the last one in fragments
		for _, to := range []string{far.at(4789), far.at6(4789), "10.90.0.77:4789", "[2001:db8:90::77]:4789", far.at(51820), far.at(52500), far.at(53819)} {
			send(to, size)
		}
	}
	// What was sent before has come by then, or never will.
	await(t, "the last packet", func() error { _, _, err := task.ask("udp", far.at(5001)); return err })
	await(t, "the last packet, IPv6", func() error { _, _, err := task.ask("udp", far.at6(5001)); return err })
	if got := count(); got != 0 {
		t.Errorf("%d packets for the data path of another node left", got)
	}
	own := []string{n.at(4789), n.at6(4789), "10.90.0.78:4789", n.cfg.Gateway.String() + ":4789", "[" + n.cfg.gateway6().String() + "]:4789", n.at(51820), n.at6(53819)}
	for _, to := range own {
		send(to, 10)
	}
	await(t, "the node drops what is for its own data path", func() error {
		if got := dropped(n, "guard", "tasks send no"); got != len(own) {
			return fmt.Errorf("%d of %d packets", got, len(own))
		}
		return nil
	})
	// What is like it, and is none.
	for _, c := range []space{r.clients[0]} {
		c.serve(51820)
		for _, to := range []string{"198.51.100.7:51820", "[2001:db8:51::7]:51820"} {
			if _, _, err := task.ask("udp", to); err != nil {
				t.Errorf("a host that is no node has that port too: %v", err)
			}
		}
	}
	task.serve(5002)
	n.apply(State{Peers: r.peers(n), Services: both(8081, "echo", task.backend(5002))})
	for _, to := range []string{n.at(8081), n.at6(8081)} {
		from := "10.90.0.2:52000"
		if strings.HasPrefix(to, "[") {
			from = "[2001:db8:90::2]:52000"
		}
		c, err := far.dial("udp", from, to)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := say(c); err != nil {
			t.Errorf("a task cannot answer a node that happens to ask from such a port: %v", err)
		}
		_ = c.Close()
	}
	for _, to := range []string{far.at(8080), far.at6(8080)} {
		if who, _, err := task.ask("udp", to); err != nil || who != "t10" {
			t.Errorf("a published port leads to 4789 of a task: %q %v", who, err)
		}
	}
}

// dropped is how many packets the rules of a chain whose comments begin so have counted.
func dropped(n *node, chain, comment string) (sum int) {
	for line := range strings.Lines(n.do("nft list chain inet skep " + chain)) {
		if i := strings.Index(line, "counter packets"); i >= 0 && strings.Contains(line, `comment "`+comment) {
			var k int
			_, _ = fmt.Sscanf(line[i:], "counter packets %d", &k)
			sum += k
		}
	}
	return sum
}

// TestNobodyEntersTheFabricFromATask: a task that knows all there is to know (addresses, VNI, MACs, which are no secret)
// does not reach a private port of a task on another node.
func TestNobodyEntersTheFabricFromATask(t *testing.T) {
	r := newRig(t)
	r.apply()
	n, far, task := r.nodes[0], r.nodes[1], r.nodes[0].tasks[0]
	far.serve(5001)
	task.do("ip link add vx address 02:53:4b:45:00:01 type vxlan id 4000 local " + task.addr.String() + " dstport 4789 nolearning; ip addr add 100.64.9.9/32 dev vx; ip link set vx mtu 1400 up;" +
		"ip neigh add 100.64.4.0 lladdr 02:53:4b:45:01:02 dev vx nud permanent; bridge fdb add 02:53:4b:45:01:02 dev vx dst " + far.addr.String() + " self permanent; ip route add 100.64.4.0/23 via 100.64.4.0 dev vx onlink src 100.64.9.9")
	through := func() bool {
		c, err := task.dial("udp4", "", "100.64.4.10:80")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("hello\n")) // there is no way back
		_ = c.Close()
		await(t, "what was sent later", func() error { _, _, err := task.ask("udp4", far.at(5001)); return err })
		return strings.Contains(far.do("conntrack -L 2>/dev/null"), "100.64.9.9")
	}
	if through() {
		t.Error("a task entered the fabric")
	}
	// The same without the rule, or the test shows nothing.
	n.do("nft flush chain inet skep isolate")
	if !through() {
		t.Error("the way into the fabric is closed by something else: the test shows nothing")
	}
}

// local makes a task of the rig one that the plane knows, with the link's name and the MAC that tasks have.
func (n *node) local(k task) antispoof.Port {
	n.t.Helper()
	link := "sk" + k.name
	m := macOf(k.addr)
	k.do("ip link set eth0 down; ip link set eth0 address " + m.String() + "; ip link set eth0 up; ip route replace default via " + n.cfg.Gateway.String() +
		"; ip addr replace " + k.addr6().String() + "/119 dev eth0 nodad; ip -6 route replace default via " + n.cfg.gateway6().String())
	n.do("ip link set v-" + k.name + " down; ip link set v-" + k.name + " name " + link + "; ip link set " + link + " up")
	return antispoof.Port{Link: link, Addr: k.addr, Addr6: k.addr6()}
}

// TestTheNodeTakesNobodysWord: a task that says it has another's address gets none of what is for that one, whether
// bridged packets pass iptables or not; and what somebody takes away of that comes back.
func TestTheNodeTakesNobodysWord(t *testing.T) {
	r := newRig(t)
	for _, n := range r.nodes {
		a, b := n.tasks[0], n.tasks[1]
		for _, k := range n.tasks {
			n.plane.Expect(n.local(k))
		}
		r.apply(both(8080, "web", b.backend(80))...)
		n.wantRight()
		right := func(when string) {
			t.Helper()
			for _, nw := range networks {
				reach(t, r.clients[0], nw, n.at(8080), always(netip.MustParseAddr("198.51.100.7")), b.name)
			}
			for _, nw := range networks6 {
				reach(t, r.clients[0], nw, n.at6(8080), always(client6), b.name)
			}
			if _, err := n.plane.Verify(context.Background()); err != nil {
				t.Fatal(when, err)
			}
		}
		right("at first")
		// a takes b's addresses, and its MAC, and tells everybody.
		a.do("ip addr add " + b.addr.String() + "/23 dev eth0; ip addr add " + b.addr6().String() + "/119 dev eth0 nodad")
		for _, mac := range []net.HardwareAddr{macOf(a.addr), macOf(b.addr)} {
			a.do("ip link set eth0 address " + mac.String() + "; ip neigh flush dev eth0; ip route replace default via " + n.cfg.Gateway.String() + " src " + b.addr.String())
			for _, to := range []string{n.cfg.Gateway.String() + ":9", "[" + n.cfg.gateway6().String() + "]:9"} { // so it asks for the gateway in b's name
				if c, err := a.dial("udp", "", to); err == nil {
					_, _ = c.Write([]byte("a"))
					_ = c.Close()
				}
			}
			right("while a says it is b")
		}
		a.do("ip addr del " + b.addr.String() + "/23 dev eth0; ip addr del " + b.addr6().String() + "/119 dev eth0; ip link set eth0 address " + macOf(a.addr).String())
		link := "sk" + b.name
		for _, took := range []string{
			"ip neigh del " + b.addr.String() + " dev skep0",
			"ip -6 neigh replace " + b.addr6().String() + " lladdr 02:42:00:00:00:01 dev skep0 nud permanent",
			"ip neigh add " + n.cfg.Gateway.Next().String() + " lladdr 02:42:00:00:00:01 dev skep0 nud permanent",
			"bridge link set dev " + link + " learning on",
			"bridge link set dev " + link + " flood on",
			"bridge fdb del " + macOf(b.addr).String() + " dev " + link + " master",
			"nft delete table bridge skep_ports",
		} {
			n.do(took)
			if f, err := n.plane.Verify(context.Background()); err != nil || len(f) != 1 {
				t.Errorf("after %s, verify finds %q %v", took, f, err)
			}
			if err := n.plane.Repair(context.Background()); err != nil {
				t.Fatal(err)
			}
			n.wantRight()
		}
		right("mended")
		if err := n.plane.Forget(a.addr); err != nil {
			t.Fatal(err)
		}
		if out := n.do("ip neigh show nud permanent dev skep0; ip -6 neigh show nud permanent dev skep0; nft list table bridge skep_ports"); strings.Contains(out, a.addr.String()+" ") || strings.Contains(out, a.addr6().String()+" ") {
			t.Errorf("a task that is gone is still known:\n%s", out)
		}
		right("without a")
	}
}
