package wgnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"skep.dev/libs/fault"
	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
	"skep.dev/services/ingress-mesh/internal/overlay"
)

func TestMain(m *testing.M) { nstest.Main(m, nil) }

func must(t testing.TB, err error) { t.Helper(); nstest.Must(t, err) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// rig is hosts on one wire with an encrypted network; host i has the addresses 10.7.0.(16i) to 10.7.0.(16i+15).
type rig struct {
	*nstest.Fabric
	t     testing.TB
	hosts []*host
	six   bool
}

type host struct {
	*nstest.Host
	r       *rig
	i       int
	overlay *overlay.Plane
	plane   *Plane
	mtu     atomic.Int64
	key     string
	port    uint16
	tasks   []netip.Addr
	single  []netip.Addr // that it has by themselves
}

func newRig(t testing.TB, hosts int, six, six6 bool) *rig {
	t.Helper()
	r := &rig{Fabric: nstest.NewFabric(t, hosts, six6), t: t, six: six}
	for i, nh := range r.Hosts {
		h := &host{Host: nh, r: r, i: i + 1}
		h.mtu.Store(1500)
		h.In(t, func() error {
			h.overlay = overlay.New(overlay.Config{Dir: h.Dir + "/overlays", Underlay: h.Addr, UnderlayMTU: func() int { return int(h.mtu.Load()) }})
			return nil
		})
		h.restart()
		t.Cleanup(func() {
			if err := errors.Join(h.plane.Close(), h.overlay.Cleanup(), h.overlay.Close()); err != nil {
				t.Error(err)
			}
		})
		r.hosts = append(r.hosts, h)
	}
	return r
}

func (h *host) restart() {
	h.r.t.Helper()
	if h.plane != nil {
		must(h.r.t, h.plane.Close())
	}
	log := zaptest.NewLogger(h.r.t)
	if _, ok := h.r.t.(*testing.B); ok {
		log = nil
	}
	h.In(h.r.t, func() error {
		h.plane = New(Config{Log: log, Dir: h.Dir + "/keys", Namespaces: h.Dir + "/overlays", UnderlayMTU: func() int { return int(h.mtu.Load()) }})
		return nil
	})
}

func (h *host) blocks() []netip.Prefix {
	b := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 7, 0, byte(16 * h.i)}), 28)}
	if h.r.six {
		b = append(b, netip.PrefixFrom(six(b[0].Addr()), 124))
	}
	return b
}

func six(a netip.Addr) netip.Addr {
	b := netip.MustParseAddr("fd07::").As16()
	v4 := a.As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b)
}

func (r *rig) network(h *host) Network {
	n := Network{ID: "secret", Subnet: netip.MustParsePrefix("10.7.0.0/24")}
	if r.six {
		n.Subnet6 = netip.MustParsePrefix("fd07::/64")
	}
	n.Own = h.single
	for _, o := range r.hosts {
		if o == h || o.key == "" {
			continue
		}
		n.Peers = append(n.Peers, Peer{PublicKey: o.key, Endpoint: netip.AddrPortFrom(o.Addr, o.port), Blocks: o.blocks(), Addresses: o.single})
		if r.six {
			for _, a := range o.tasks {
				n.Remotes6 = append(n.Remotes6, six(a))
			}
		}
	}
	return n
}

// ensure brings one host to what is known of the others, and tells its own key.
func (h *host) ensure() {
	t := h.r.t
	t.Helper()
	n := h.r.network(h)
	must(t, h.overlay.Ensure(t.Context(), overlay.Network{ID: n.ID, Subnet: n.Subnet, Subnet6: n.Subnet6, MTU: h.plane.MTU()}))
	var err error
	h.key, h.port, err = h.plane.Ensure(t.Context(), n)
	must(t, err)
}

func (r *rig) converge() {
	r.t.Helper()
	for range 2 { // the first round tells the keys
		for _, h := range r.hosts {
			h.ensure()
		}
	}
}

func (h *host) task(name string, k byte) (*nstest.NS, netip.Addr) {
	h.r.t.Helper()
	return h.taskAt(name, netip.AddrFrom4([4]byte{10, 7, 0, byte(16*h.i) + k}))
}

func (h *host) taskAt(name string, a netip.Addr) (*nstest.NS, netip.Addr) {
	t := h.r.t
	t.Helper()
	x := nstest.New(t, h.Dir+"/tasks/"+name)
	at := overlay.Attachment{Task: name, Netns: x.Path, Device: "eth1", Addr: netip.PrefixFrom(a, 24)}
	if h.r.six {
		at.Addr6 = netip.PrefixFrom(six(a), 64)
	}
	must(t, h.overlay.Attach(t.Context(), "secret", at))
	h.tasks = append(h.tasks, a)
	x.Serve(t, a, name)
	if h.r.six {
		x.Serve(t, six(a), name)
	}
	return x, a
}

func TestTasksReachOneAnotherAndNobodyReadsIt(t *testing.T) {
	r := newRig(t, 3, true, false)
	r.converge()
	var spaces []*nstest.NS
	var addrs []netip.Addr
	for i, h := range r.hosts {
		for k := range byte(2) {
			x, a := h.task(fmt.Sprintf("t%d%d", i, k), k+1)
			spaces, addrs = append(spaces, x), append(addrs, a)
		}
	}
	r.converge()
	wire := r.Capture(t, r.hosts[1].port, "attack at dawn")
	for _, x := range spaces {
		for j, a := range addrs {
			want := fmt.Sprintf("t%d%d", j/2, j%2)
			x.Hears(t, a, want)
			x.Hears(t, six(a), want)
		}
	}
	spaces[0].Stream(t, addrs[2], "t10").Echo("attack at dawn ", 4<<20)
	wire.End()
	if wire.Marked.Load() != 0 || wire.UDP(r.hosts[1].port) < 100 || wire.Parts.Load() != 0 {
		t.Fatalf("%d frames can be read, %d went encrypted, %d fragments", wire.Marked.Load(), wire.UDP(r.hosts[1].port), wire.Parts.Load())
	}
	// The capture does see what is not encrypted.
	for _, h := range r.hosts {
		must(t, h.overlay.Ensure(t.Context(), overlay.Network{ID: "plain", VNI: 7, Remotes: []overlay.Remote{
			{Addr: addr("10.8.0.1"), Node: r.hosts[0].Addr}, {Addr: addr("10.8.0.2"), Node: r.hosts[1].Addr}}[2-min(h.i, 2) : min(3-min(h.i, 2), 2)]}))
	}
	a, b := nstest.New(t, r.Dir+"/pa"), nstest.New(t, r.Dir+"/pb")
	must(t, r.hosts[0].overlay.Attach(t.Context(), "plain", overlay.Attachment{Task: "pa", Netns: a.Path, Device: "eth1", Addr: netip.MustParsePrefix("10.8.0.1/24")}))
	must(t, r.hosts[1].overlay.Attach(t.Context(), "plain", overlay.Attachment{Task: "pb", Netns: b.Path, Device: "eth1", Addr: netip.MustParsePrefix("10.8.0.2/24")}))
	b.Serve(t, addr("10.8.0.2"), "pb")
	wire = r.Capture(t, 4789, "attack at dawn")
	a.Stream(t, addr("10.8.0.2"), "pb").Echo("attack at dawn ", 1<<20)
	if wire.End().Marked.Load() == 0 {
		t.Fatal("the capture sees nothing")
	}
	st, err := r.hosts[0].plane.State("secret")
	if err != nil || len(st.Peers) != 2 || st.PublicKey != r.hosts[0].key || st.Port != r.hosts[0].port {
		t.Fatal(st, err)
	}
	for _, p := range st.Peers {
		if p.Handshake.IsZero() || p.Sent == 0 || p.Received == 0 || !p.Endpoint.IsValid() {
			t.Fatalf("%+v", p)
		}
	}
}

// An address of one host's block is a task's on another, which goes to a third one and comes back to the first.
func TestAnAddressThatGoesAbout(t *testing.T) {
	r := newRig(t, 3, true, false)
	r.converge()
	var spaces []*nstest.NS
	for i, h := range r.hosts {
		x, _ := h.task(fmt.Sprintf("t%d", i), 1)
		spaces = append(spaces, x)
	}
	at := addr("10.7.0.23") // of the first one's block
	for step, i := range []int{1, 2, 0} {
		h, name := r.hosts[i], fmt.Sprintf("there%d", step)
		if i != 0 {
			h.single = []netip.Addr{at, six(at)}
		}
		x, _ := h.taskAt(name, at)
		r.converge()
		r.converge()
		for _, from := range spaces {
			from.Hears(t, at, name)
			from.Hears(t, six(at), name)
		}
		for k, to := range r.hosts { // and answers are not all it can do
			x.Hears(t, to.tasks[0], fmt.Sprintf("t%d", k))
		}
		must(t, h.overlay.Detach(t.Context(), "secret", name))
		h.tasks, h.single = h.tasks[:1], nil
		spaces[i].In(t, func() error { return exec.Command("ip", "neigh", "flush", "dev", "eth1").Run() }) // as the mesh makes its tasks
	}
}

func TestTheNetworkIsForItselfAlone(t *testing.T) {
	r := newRig(t, 2, false, false)
	r.converge()
	x, _ := r.hosts[0].task("a", 1)
	r.hosts[1].task("b", 1)
	r.converge()
	x.Hears(t, addr("10.7.0.33"), "b")
	// Neither an address nobody has, nor the hosts, nor a block that was taken from a peer can be reached.
	for _, to := range []string{"10.7.0.34", "10.7.0.99", "10.90.0.1", "10.90.0.2"} {
		if who, err := x.Ask(addr(to), 500*time.Millisecond); err == nil {
			t.Fatalf("%s is %q", to, who)
		}
	}
	n := r.network(r.hosts[0])
	n.Peers[0].Blocks = []netip.Prefix{netip.MustParsePrefix("10.7.0.48/28")}
	_, _, err := r.hosts[0].plane.Ensure(t.Context(), n)
	must(t, err)
	if who, err := x.Ask(addr("10.7.0.33"), 500*time.Millisecond); err == nil {
		t.Fatalf("heard %q over a block the peer does not have", who)
	}
	ns := nstest.Open(t, r.hosts[0].Dir+"/overlays/secret")
	routes, err := ns.Handle.RouteList(ns.Link(t, deviceName), netlink.FAMILY_V4)
	if err != nil || len(routes) != 1 || routes[0].Dst.String() != "10.7.0.48/28" {
		t.Fatal(routes, err)
	}
	r.converge()
	x.Hears(t, addr("10.7.0.33"), "b")
	n.Peers = nil
	_, _, err = r.hosts[0].plane.Ensure(t.Context(), n)
	must(t, err)
	if st, err := r.hosts[0].plane.State("secret"); err != nil || len(st.Peers) != 0 {
		t.Fatal(st, err)
	}
	if who, err := x.Ask(addr("10.7.0.33"), 500*time.Millisecond); err == nil {
		t.Fatalf("heard %q of nobody's", who)
	}
}

func TestRestartRotateAndRepair(t *testing.T) {
	r := newRig(t, 2, true, false)
	r.converge()
	h := r.hosts[0]
	x, _ := h.task("a", 1)
	r.hosts[1].task("b", 1)
	r.converge()
	b := addr("10.7.0.33")
	s := x.Stream(t, b, "b")
	s.Echo("skep", 1<<16)
	key, port := h.key, h.port
	for range 2 {
		h.restart()
		h.ensure()
		if h.key != key || h.port != port {
			t.Fatal("another key or port after a restart")
		}
		s.Echo("skep", 1<<16)
	}
	fi, err := os.Stat(keyPath(h.Dir+"/keys", "secret"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatal(fi, err)
	}
	ns := nstest.Open(t, h.Dir+"/overlays/secret")
	index := ns.Index(t, deviceName)
	h.ensure()
	if ns.Index(t, deviceName) != index {
		t.Fatal("Ensure made the device anew")
	}
	for name, harm := range map[string]func() error{
		"device": func() error { return ns.Handle.LinkDel(ns.Link(t, deviceName)) },
		"down":   func() error { return ns.Handle.LinkSetDown(ns.Link(t, deviceName)) },
		"bridge": func() error { return ns.Handle.LinkDel(ns.Link(t, bridgeName)) },
		"settings": func() error {
			return nsfs.Inside(ns.FD, func() error { return nsfs.Setting("net/ipv4/ip_forward", "0") })
		},
		"routes": func() error {
			routes, err := ns.Handle.RouteList(ns.Link(t, deviceName), netlink.FAMILY_V4)
			return errors.Join(err, ns.Handle.RouteDel(&routes[0]))
		},
	} {
		must(t, harm())
		h.ensure()
		if who, err := x.Ask(b, 5*time.Second); err != nil || who != "b" {
			t.Fatalf("%s: %q %v", name, who, err)
		}
		x.Hears(t, six(b), "b")
		s.Echo("skep", 1<<16)
	}
	rotated, err := h.plane.Rotate(t.Context(), "secret")
	must(t, err)
	if rotated == key {
		t.Fatal("the key is the same")
	}
	h.key = rotated
	r.hosts[1].ensure()
	x.Hears(t, b, "b")
	s.Echo("skep", 1<<16)
	h.restart()
	h.ensure()
	if h.key != rotated {
		t.Fatal("the new key was forgotten")
	}
	x.Hears(t, b, "b")
	for _, h := range r.hosts {
		h.mtu.Store(1400)
		h.ensure()
	}
	if got := []int{ns.MTU(t, deviceName), ns.MTU(t, bridgeName), x.MTU(t, "eth1")}; !slices.Equal(got, []int{1320, 1320, 1320}) {
		t.Fatal(got)
	}
	s.Echo("skep", 1<<18)
	for range 2 {
		must(t, h.plane.Remove(t.Context(), "secret"))
	}
	if _, err := ns.Handle.LinkByName(deviceName); !gone(err) {
		t.Fatal("the device is still there:", err)
	}
	if left, err := os.ReadDir(h.Dir + "/keys"); err != nil || len(left) != 0 {
		t.Fatal(left, err)
	}
	if _, err := h.plane.State("secret"); !fault.Is(err, fault.CodeNotFound) {
		t.Fatal(err)
	}
}

func TestIPv6Underlay(t *testing.T) {
	r := newRig(t, 2, true, true)
	r.converge()
	x, _ := r.hosts[0].task("a", 1)
	r.hosts[1].task("b", 1)
	r.converge()
	x.Hears(t, addr("10.7.0.33"), "b")
	x.Stream(t, six(addr("10.7.0.33")), "b").Echo("skep", 1<<20)
}

func TestRefusals(t *testing.T) {
	r := newRig(t, 1, false, false)
	h := r.hosts[0]
	ok := Network{ID: "secret", Subnet: netip.MustParsePrefix("10.7.0.0/24")}
	if _, _, err := h.plane.Ensure(t.Context(), ok); !fault.Is(err, fault.CodeUnavailable) {
		t.Fatal("without a namespace:", err)
	}
	h.ensure()
	for name, change := range map[string]func(*Network){
		"id":     func(n *Network) { n.ID = "../x" },
		"subnet": func(n *Network) { n.Subnet = netip.Prefix{} },
		"mtu":    func(n *Network) { n.MTU = 1000; n.Subnet6 = netip.MustParsePrefix("fd07::/64") },
	} {
		n := ok
		change(&n)
		if _, _, err := h.plane.Ensure(t.Context(), n); !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Peers that cannot be keep neither the good one away nor the network.
	block := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	peer := wgtypes.Key{1}
	n := ok
	n.Peers = []Peer{
		{Node: "a", PublicKey: "x"}, {Node: "b", PublicKey: wgtypes.Key{}.String()}, {Node: "c", PublicKey: h.key},
		{Node: "d", PublicKey: peer.String(), Blocks: block("10.7.0.16/28"), Endpoint: netip.MustParseAddrPort("239.1.1.1:5000")},
		{Node: "e", PublicKey: wgtypes.Key{2}.String(), Blocks: block("10.7.0.16/30")}, {Node: "f", PublicKey: wgtypes.Key{3}.String(), Blocks: block("0.0.0.0/0")},
		{Node: "g", PublicKey: peer.String(), Blocks: block("10.7.0.32/28")}, {Node: "h", PublicKey: wgtypes.Key{4}.String(), Blocks: block("10.9.0.0/28")},
	}
	_, _, err := h.plane.Ensure(t.Context(), n)
	must(t, err)
	st, err := h.plane.State("secret")
	if err != nil || len(st.Peers) != 4 || len(st.Problems) != 8 {
		t.Fatal(st, err)
	}
	for _, p := range st.Peers {
		if p.PublicKey == peer.String() != (len(p.Blocks) == 1 && p.Blocks[0] == block("10.7.0.16/28")[0]) || p.Endpoint.IsValid() {
			t.Errorf("%+v", p)
		}
	}
	if _, _, err = h.plane.Ensure(t.Context(), ok); err != nil {
		t.Fatal(err)
	}
	if st, err = h.plane.State("secret"); err != nil || len(st.Peers)+len(st.Problems) != 0 {
		t.Fatal(st, err)
	}
	// The port of last time is another program's: another one will do, unless it was asked for.
	was := h.port
	must(t, h.plane.Close())
	h.plane = nil
	var c net.PacketConn
	h.In(t, func() (err error) { c, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", was)); return err })
	defer c.Close()
	h.restart()
	n = ok
	n.ListenPort = was
	if _, _, err := h.plane.Ensure(t.Context(), n); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), fmt.Sprint(was)) {
		t.Fatal(err)
	}
	h.ensure()
	if h.port == was || h.port == 0 {
		t.Fatal(h.port)
	}
	must(t, os.WriteFile(keyPath(h.Dir+"/keys", "secret"), []byte("x"), 0o600))
	if _, _, err := h.plane.Ensure(t.Context(), ok); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatal(err)
	}
}

// BenchmarkStream is one TCP connection between two hosts, plain over VXLAN and encrypted.
func BenchmarkStream(b *testing.B) {
	const size = 32 << 20
	for _, kind := range []string{"plain", "encrypted"} {
		b.Run(kind, func(b *testing.B) {
			r := newRig(b, 2, false, false)
			var x, y *nstest.NS
			if kind == "encrypted" {
				r.converge()
				x, _ = r.hosts[0].task("a", 1)
				y, _ = r.hosts[1].task("b", 1)
				r.converge()
			} else {
				for i, h := range r.hosts {
					o := r.hosts[1-i]
					must(b, h.overlay.Ensure(b.Context(), overlay.Network{ID: "secret", VNI: 7, Remotes: []overlay.Remote{{Addr: netip.AddrFrom4([4]byte{10, 7, 0, byte(16*o.i + 1)}), Node: o.Addr}}}))
				}
				x, _ = r.hosts[0].task("a", 1)
				y, _ = r.hosts[1].task("b", 1)
			}
			var l net.Listener
			y.In(b, func() (err error) { l, err = net.Listen("tcp4", "10.7.0.33:81"); return err })
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				for { // one byte for each size
					if _, err := io.CopyN(io.Discard, struct{ io.Reader }{c}, size); err != nil {
						return
					}
					_, _ = c.Write([]byte{1})
				}
			}()
			var c net.Conn
			x.In(b, func() (err error) { c, err = net.Dial("tcp4", l.Addr().String()); return err })
			defer c.Close()
			chunk := make([]byte, 1<<17)
			b.SetBytes(size)
			for b.Loop() {
				for range size / len(chunk) {
					_, err := c.Write(chunk)
					must(b, err)
				}
				_, err := io.ReadFull(c, chunk[:1])
				must(b, err)
			}
		})
	}
}
