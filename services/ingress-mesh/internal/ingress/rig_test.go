package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"skep.dev/libs/ipam"
	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

// Named namespaces and the iptables lock are in /run.
func TestMain(m *testing.M) {
	nstest.Main(m, func() error { return syscall.Mount("none", "/run", "tmpfs", 0, "") }, "iptables", "nft", "ip", "conntrack", "bridge")
}

// space is a network namespace.
type space struct {
	t    testing.TB
	ns   netns.NsHandle
	name string
}

func newSpace(t testing.TB, name string) space {
	t.Helper()
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add %s: %v\n%s", name, err, out)
	}
	ns, err := netns.GetFromName(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ns.Close()
		_ = exec.Command("ip", "netns", "del", name).Run()
	})
	s := space{t, ns, name}
	s.do("ip link set lo up")
	return s
}

func (s space) run(f func() error) error { return nsfs.Inside(s.ns, f) }

// do runs a command line in the namespace.
func (s space) do(line string) string {
	s.t.Helper()
	out, err := s.try(line)
	if err != nil {
		s.t.Fatalf("%s: %s: %v\n%s", s.name, line, err, out)
	}
	return out
}

func (s space) try(line string) (out string, err error) {
	err = s.run(func() error {
		b, err := exec.Command("sh", "-c", line).CombinedOutput()
		out = string(b)
		return err
	})
	return out, err
}

func (s space) sysctl(path, value string) {
	s.t.Helper()
	if err := s.run(func() error { return writeSysctl(sysctl{path, value, false}) }); err != nil {
		s.t.Fatal(err)
	}
}

// dial connects from the namespace. from may be "" or an address to bind to.
func (s space) dial(network, from, to string) (c net.Conn, err error) {
	err = s.run(func() error {
		d := net.Dialer{Timeout: 3 * time.Second}
		if from != "" {
			if strings.HasPrefix(network, "tcp") {
				d.LocalAddr, err = net.ResolveTCPAddr(network, from)
			} else {
				d.LocalAddr, err = net.ResolveUDPAddr(network, from)
			}
			if err != nil {
				return err
			}
			d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
				return errors.Join(raw.Control(func(fd uintptr) {
					err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
				}), err)
			}
		}
		c, err = d.Dial(network, to)
		return err
	})
	return c, err
}

// say sends a line and returns the answer: who answers, and which address it sees.
func say(c net.Conn) (who string, client netip.AddrPort, err error) {
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", client, err
	}
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return "", client, err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", client, err
	}
	f := strings.Fields(line)
	if len(f) != 2 {
		return "", client, fmt.Errorf("answer %q", line)
	}
	client, err = netip.ParseAddrPort(f[1])
	return f[0], client, err
}

func (s space) ask(network, to string) (who string, client netip.Addr, err error) {
	c, err := s.dial(network, "", to)
	if err != nil {
		return "", client, err
	}
	defer func() { _ = c.Close() }()
	who, ap, err := say(c)
	return who, ap.Addr(), err
}

// serve answers every line, or datagram, with the server's name and the client's address.
func (s space) serve(port uint16) {
	s.t.Helper()
	addr := fmt.Sprintf(":%d", port)
	var l net.Listener
	var u net.PacketConn
	if err := s.run(func() (err error) {
		if l, err = net.Listen("tcp", addr); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp", addr)
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	nstest.Accept(s.t, l, func(c net.Conn) {
		for r := bufio.NewReader(c); ; {
			if _, err := r.ReadString('\n'); err != nil {
				return
			}
			if _, err := fmt.Fprintf(c, "%s %s\n", s.name, c.RemoteAddr()); err != nil {
				return
			}
		}
	})
	s.t.Cleanup(func() { _ = u.Close() })
	go func() {
		for b := make([]byte, 2048); ; {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(fmt.Appendf(nil, "%s %s\n", s.name, from), from)
		}
	}()
}

// node is one host of the rig with two tasks that serve ports 80 and 81.
type node struct {
	space
	cfg   Config
	addr  netip.Addr
	addr6 netip.Addr
	tasks []task
	plane *Plane
}

type task struct {
	space
	addr netip.Addr
}

func (k task) addr6() netip.Addr { return ipam.NodeAddr6(k.addr) }

func backend(a netip.Addr, port uint16, task string) Backend {
	return Backend{a, ipam.NodeAddr6(a), port, task}
}

func (k task) backend(port uint16) Backend { return backend(k.addr, port, k.name) }

// rig is three nodes on one underlay, a router, and two clients beyond it: 198.51.100.7 and .8, 2001:db8:51::7 and ::8.
type rig struct {
	t       testing.TB
	fab     space
	nodes   []*node
	clients []space
}

// The numbers need both bytes, so that their order matters.
var numbers = []uint16{1, 258, 8192}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, fab: newSpace(t, "fab")}
	r.fab.do("ip link add br0 type bridge; ip link set br0 up; ip addr add 10.90.0.254/24 dev br0; ip addr add 198.51.100.1/24 dev br0")
	r.fab.do("ip addr add 2001:db8:90::fe/64 dev br0 nodad; ip addr add 2001:db8:51::1/64 dev br0 nodad")
	r.fab.sysctl("net/ipv6/conf/all/forwarding", "1")
	r.fab.sysctl("net/ipv4/ip_forward", "1")
	r.fab.sysctl("net/ipv4/conf/all/send_redirects", "0")
	r.fab.sysctl("net/ipv4/conf/br0/send_redirects", "0")
	for i := range 2 {
		c := newSpace(t, fmt.Sprintf("client%d", i))
		r.wire(c, fmt.Sprintf("198.51.100.%d/24", 7+i), "198.51.100.1")
		r.wire6(c, fmt.Sprintf("2001:db8:51::%d/64", 7+i), "2001:db8:51::1")
		r.clients = append(r.clients, c)
	}
	for i, number := range numbers {
		r.nodes = append(r.nodes, r.newNode(i, number))
	}
	return r
}

func (r *rig) wire(s space, addr, gateway string) {
	r.t.Helper()
	r.fab.do(fmt.Sprintf("ip link add p-%s type veth peer name eth0 netns %s && ip link set p-%s master br0 up", s.name, s.name, s.name))
	s.do("ip link set eth0 up; ip addr add " + addr + " dev eth0; ip route add default via " + gateway)
}

func (r *rig) wire6(s space, addr, gateway string) {
	r.t.Helper()
	s.do("ip addr add " + addr + " dev eth0 nodad; ip route add default via " + gateway)
}

func (r *rig) newNode(i int, number uint16) *node {
	r.t.Helper()
	n := &node{space: newSpace(r.t, fmt.Sprintf("n%d", i)), addr: netip.AddrFrom4([4]byte{10, 90, 0, byte(i + 1)})}
	r.wire(n.space, n.addr.String()+"/24", "10.90.0.254")
	n.addr6 = netip.MustParseAddr(fmt.Sprintf("2001:db8:90::%d", i+1))
	r.wire6(n.space, n.addr6.String()+"/64", "2001:db8:90::fe")
	// The hosts differ in how strict they are.
	n.sysctl("net/ipv4/conf/all/rp_filter", fmt.Sprint(i))
	n.sysctl("net/ipv4/conf/default/rp_filter", "1")
	n.do("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
	n.sysctl("net/bridge/bridge-nf-call-iptables", []string{"1", "1", "0"}[i])
	n.sysctl("net/bridge/bridge-nf-call-ip6tables", []string{"1", "0", "0"}[i])
	subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(2*i + 2), 0}), 23)
	gw := subnet.Addr().Next()
	n.do(fmt.Sprintf("ip link add skep0 type bridge; ip addr add %s/23 dev skep0; ip link set skep0 up", gw))
	n.do(fmt.Sprintf("ip addr add %s/%d dev skep0 nodad", ipam.NodeAddr6(gw), ipam.NodeSubnet6(subnet).Bits()))
	n.cfg = Config{
		Log: zap.NewNop(), Bridge: "skep0", Number: number, Subnet: subnet, Gateway: gw,
		Underlay: n.addr, Port: 4789, UnderlayMTU: func() int { return 1500 },
	}
	if t, ok := r.t.(*testing.T); ok && testing.Verbose() {
		n.cfg.Log = zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel)).With(zap.String("node", n.name))
	}
	for k := range 2 {
		t := task{newSpace(r.t, fmt.Sprintf("t%d%d", i, k)), netip.AddrFrom4([4]byte{100, 64, byte(2*i + 2), byte(10 + k)})}
		n.do(fmt.Sprintf("ip link add v-%s type veth peer name eth0 netns %s && ip link set v-%s master skep0 up", t.name, t.name, t.name))
		t.do(fmt.Sprintf("ip link set eth0 up; ip addr add %s/23 dev eth0; ip route add default via %s", t.addr, gw))
		t.do(fmt.Sprintf("ip addr add %s/%d dev eth0 nodad; ip route add default via %s", t.addr6(), ipam.NodeSubnet6(subnet).Bits(), ipam.NodeAddr6(gw)))
		t.serve(80)
		t.serve(81)
		n.tasks = append(n.tasks, t)
	}
	n.start()
	return n
}

// start makes a Plane; a second call is a restart of the process.
func (n *node) start() {
	n.t.Helper()
	if n.plane != nil {
		if err := n.plane.Close(); err != nil {
			n.t.Fatal(err)
		}
	}
	var p *Plane
	if err := n.run(func() (err error) { p, err = New(n.cfg); return err }); err != nil {
		n.t.Fatal(err)
	}
	n.plane = p
}

func (r *rig) peers(of *node) (out []Peer) {
	for _, n := range r.nodes {
		if n != of {
			out = append(out, Peer{n.name, n.cfg.Number, n.cfg.Subnet, n.cfg.Underlay})
		}
	}
	return out
}

func (r *rig) all(port uint16) (out []Backend) {
	for _, n := range r.nodes {
		for _, k := range n.tasks {
			out = append(out, k.backend(port))
		}
	}
	return out
}

func (n *node) apply(st State) {
	n.t.Helper()
	if err := n.plane.Apply(context.Background(), st); err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
}

// apply gives all nodes the services.
func (r *rig) apply(services ...Service) {
	r.t.Helper()
	for _, n := range r.nodes {
		n.apply(State{Peers: r.peers(n), Services: services})
	}
}

func both(port uint16, id string, backends ...Backend) []Service {
	return []Service{{"tcp", port, id, backends}, {"udp", port, id, backends}}
}

func (n *node) at(port uint16) string { return netip.AddrPortFrom(n.addr, port).String() }

func (n *node) at6(port uint16) string { return netip.AddrPortFrom(n.addr6, port).String() }

// findings fails the test if Verify has any.
func (n *node) wantRight() {
	n.t.Helper()
	f, err := n.plane.Verify(context.Background())
	if err != nil || len(f) > 0 {
		n.t.Fatalf("%s: verify: %q %v", n.name, f, err)
	}
}

func await(t testing.TB, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// hostState is everything a Plane could leave behind. Link-local addresses come by themselves, once the kernel has found
// that nobody else has them.
func (n *node) hostState() string {
	n.t.Helper()
	links := strings.Split(n.do("ip -o link"), "\n")
	for i, l := range links { // without index and counters
		if f := strings.Fields(l); len(f) > 1 {
			links[i] = f[1]
		}
	}
	sort.Strings(links)
	return strings.Join(links, " ") + "\n" + n.do("ip rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all | grep -vE '^anycast|fe80' | sort; ip neigh show nud permanent; nft list tables; iptables-save | grep -v '^#' | sed 's/\\[.*//'; ip6tables-save | grep -v '^#' | sed 's/\\[.*//'; bridge fdb | grep skin0; sysctl -a 2>/dev/null | grep -E 'route_localnet|\\.rp_filter' | grep -v skin0; conntrack -L 2>/dev/null | grep -E '^(tcp|udp).*(mark=6|src=100\\.64)' | cat; conntrack -L -f ipv6 2>/dev/null | grep -E '^(tcp|udp).*(mark=6|src=fd94)' | cat")
}
