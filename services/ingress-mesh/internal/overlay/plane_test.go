package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep.dev/libs/fault"
	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

func TestTasksOfTwoHostsReachOneAnother(t *testing.T) {
	f := newFabric(t, 2, false)
	n := f.network("front", 5001, true)
	a, b := n.task(f.hosts[0], "a", 2), n.task(f.hosts[1], "b", 3)
	c := n.task(f.hosts[0], "c", 4)
	n.converge()
	for _, x := range n.tasks {
		x.Serve(t, x.a.Addr.Addr(), x.a.Task)
		x.Serve(t, x.a.Addr6.Addr(), x.a.Task+"6")
	}
	for _, from := range n.tasks {
		for _, to := range n.tasks {
			from.Hears(t, to.a.Addr.Addr(), to.a.Task)
			from.Hears(t, to.a.Addr6.Addr(), to.a.Task+"6")
		}
	}
	want := State{VNI: 5001, MTU: 1450, Local: 2, Remote: 1, Up: true}
	if got, err := f.hosts[0].plane.State("front"); err != nil || got != want {
		t.Fatalf("%+v %v", got, err)
	}
	if got, err := f.hosts[0].plane.Tasks("front"); err != nil || !slices.Equal(got, []string{"a", "c"}) {
		t.Fatal(got, err)
	}
	for to, node := range map[string]netip.Addr{"10.7.0.3": f.hosts[1].Addr, "fd07::3": f.hosts[1].Addr, "10.7.0.4": {}, "10.7.0.9": {}} {
		if got, err := f.hosts[0].plane.Way("front", addr(to)); err != nil || got != node {
			t.Fatal(to, got, err)
		}
	}
	for _, x := range []*task{a, b, c} {
		l, err := x.Handle.LinkByName("eth1")
		must(t, err)
		if got := l.Attrs().HardwareAddr.String(); got != macOf(x.a.Addr.Addr()).String() || l.Attrs().MTU != 1450 {
			t.Fatal(got, l.Attrs().MTU)
		}
	}
	// Attached again: nothing is made anew.
	was := a.Index(t, "eth1")
	must(t, f.hosts[0].plane.Attach(t.Context(), "front", a.a))
	if a.Index(t, "eth1") != was {
		t.Fatal("the link was made anew")
	}
}

func TestFullPacketsAreNotFragmented(t *testing.T) {
	f := newFabric(t, 2, false)
	n := f.network("front", 5001, false)
	a, b := n.task(f.hosts[0], "a", 2), n.task(f.hosts[1], "b", 3)
	n.converge()
	b.Serve(t, addr("10.7.0.3"), "b")
	a.Hears(t, addr("10.7.0.3"), "b") // devices that only just came up lose packets
	wire := f.Capture(t, defaultPort, "")
	var in, out *net.UDPConn
	must(t, nsfs.Inside(b.FD, func() (err error) { in, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 9}); return err }))
	defer in.Close()
	must(t, nsfs.Inside(a.FD, func() (err error) {
		out, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 7, 0, 3), Port: 9})
		return err
	}))
	defer out.Close()
	raw, err := out.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}))
	must(t, err)
	if _, err := out.Write(make([]byte, 1450-28+1)); !errors.Is(err, unix.EMSGSIZE) {
		t.Fatal("a packet of 1451 bytes was sent:", err)
	}
	_, err = out.Write(make([]byte, 1450-28))
	must(t, err)
	_ = in.SetReadDeadline(time.Now().Add(5 * time.Second))
	got, _, err := in.ReadFrom(make([]byte, 2000))
	if err != nil || got != 1450-28 {
		t.Fatal(got, err)
	}
	nstest.Await(t, "the packet on the wire", func() bool { return wire.Big.Load() >= 1450 })
	if got := wire.Big.Load(); got != 1514 {
		t.Fatalf("a full packet is a frame of %d bytes on the wire", got)
	}
	a.Stream(t, addr("10.7.0.3"), "b").Echo("skep", 8<<20)
	wire.End()
	if wire.UDP(defaultPort) < 10 || wire.Parts.Load() != 0 {
		t.Fatalf("%d frames of VXLAN, %d fragments", wire.UDP(defaultPort), wire.Parts.Load())
	}
}

func TestNetworksWithOneSubnetNeverMeet(t *testing.T) {
	f := newFabric(t, 2, false)
	red, blue := f.network("red", 5001, true), f.network("blue", 5002, true)
	// The same addresses on both, crosswise on the hosts; and one that only the other network has.
	ra, rb := red.task(f.hosts[0], "ra", 2), red.task(f.hosts[1], "rb", 3)
	bb, ba := blue.task(f.hosts[0], "bb", 3), blue.task(f.hosts[1], "ba", 2)
	only1, only2 := blue.task(f.hosts[0], "only1", 20), blue.task(f.hosts[1], "only2", 21)
	red.converge()
	blue.converge()
	for _, x := range []*task{ra, rb, ba, bb, only1, only2} {
		x.Serve(t, x.a.Addr.Addr(), x.a.Task)
		x.Serve(t, x.a.Addr6.Addr(), x.a.Task)
	}
	ra.Hears(t, addr("10.7.0.3"), "rb")
	rb.Hears(t, addr("10.7.0.2"), "ra")
	ba.Hears(t, addr("10.7.0.3"), "bb")
	bb.Hears(t, addr("10.7.0.2"), "ba")
	bb.Hears(t, addr("fd07::21"), "only2")
	ba.Hears(t, addr("10.7.0.20"), "only1")
	var mu sync.Mutex
	var reached []string
	var wg sync.WaitGroup
	for i := range 40 {
		for _, to := range []netip.Addr{netip.AddrFrom4([4]byte{10, 7, 0, byte(i)}), addr(fmt.Sprintf("fd07::%d", i)), netip.AddrFrom4([4]byte{10, 90, 0, byte(i)})} {
			wg.Go(func() {
				if who, err := ra.Ask(to, time.Second); err == nil {
					mu.Lock()
					reached = append(reached, who)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	slices.Sort(reached)
	if !slices.Equal(reached, []string{"ra", "ra", "rb", "rb"}) {
		t.Fatalf("a scanner on one network reached %q", reached)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	devices := func(n *nstest.NS) (out []string) {
		links, err := n.Handle.LinkList()
		must(t, err)
		for _, l := range links {
			out = append(out, l.Attrs().Name)
		}
		slices.Sort(out)
		return out
	}
	before := devices(h.NS)
	n := f.network("front", 5001, true)
	a := n.task(h, "a", 2)
	c := n.task(h, "c", 3)
	for range 2 {
		must(t, h.plane.Detach(t.Context(), "front", "a"))
	}
	if got := devices(a.NS); slices.Contains(got, "eth1") {
		t.Fatal(got)
	}
	must(t, h.plane.Ensure(t.Context(), n.at(h)))
	if got, err := h.plane.Tasks("front"); err != nil || !slices.Equal(got, []string{"c"}) {
		t.Fatal(got, err, "a detached task came back")
	}
	for range 2 {
		must(t, h.plane.Remove(t.Context(), "front"))
	}
	if got := devices(c.NS); slices.Contains(got, "eth1") {
		t.Fatal(got)
	}
	// The VNI is free at once.
	m := f.network("back", 5001, false)
	m.task(h, "d", 2)
	// An unmounted network is removed with what is in it.
	must(t, nsfs.Remove(h.plane.path("back")))
	must(t, h.plane.Remove(t.Context(), "back"))
	must(t, h.plane.Ensure(t.Context(), m.at(h)))
	for range 2 {
		must(t, h.plane.Cleanup())
	}
	if got := devices(h.NS); !slices.Equal(got, before) {
		t.Fatalf("left %q", got)
	}
	if _, err := os.Stat(h.plane.cfg.Dir); err == nil {
		t.Fatal("the directory is still there")
	}
	if len(h.plane.spaces) != 0 {
		t.Fatal("handles are kept of what is gone")
	}
	if got, err := h.plane.List(); err != nil || len(got) != 0 {
		t.Fatal(got, err)
	}
	if err := h.plane.Detach(t.Context(), "front", "a"); err != nil {
		t.Fatal(err)
	}
}

func TestNothingIsFlooded(t *testing.T) {
	f := newFabric(t, 2, false)
	n := f.network("front", 5001, true)
	a, b := n.task(f.hosts[0], "a", 2), n.task(f.hosts[1], "b", 3)
	idle := n.task(f.hosts[0], "idle", 4)
	n.converge()
	b.Serve(t, addr("10.7.0.3"), "b")
	a.Hears(t, addr("10.7.0.3"), "b")
	wire, neighbour := f.Capture(t, defaultPort, ""), idle.Capture(t, 9, "not for you")
	// A MAC nobody has, so that the packet goes out without asking; then what asks, and what goes to all.
	eth1 := a.Index(t, "eth1")
	must(t, a.Handle.NeighSet(&netlink.Neigh{LinkIndex: eth1, State: unix.NUD_PERMANENT, IP: net.IPv4(10, 7, 0, 99), HardwareAddr: macOf(addr("10.7.0.99")).hw()}))
	must(t, nsfs.Inside(a.FD, func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{})
		if err != nil {
			return err
		}
		defer c.Close()
		for range 20 {
			if _, err := c.WriteTo([]byte("not for you"), &net.UDPAddr{IP: net.IPv4(10, 7, 0, 99), Port: 9}); err != nil {
				return err
			}
		}
		return nil
	}))
	for _, to := range []string{"10.7.0.98", "fd07::98"} {
		if _, err := a.Ask(addr(to), 300*time.Millisecond); err == nil {
			t.Fatal("somebody answered")
		}
	}
	must(t, nsfs.Inside(a.FD, func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{})
		if err != nil {
			return err
		}
		defer c.Close()
		for _, to := range []net.IP{net.IPv4(10, 7, 0, 255), net.IPv4(224, 0, 0, 251)} {
			if _, err := c.WriteTo([]byte("x"), &net.UDPAddr{IP: to, Port: 9}); err != nil && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENETUNREACH) {
				return err
			}
		}
		return nil
	}))
	for _, m := range wire.End().Inner() { // the end of the connection before may still be on its way
		if m != macOf(addr("10.7.0.2")).String() && m != macOf(addr("10.7.0.3")).String() {
			t.Errorf("a packet to %s, which nobody has, crossed the wire", m)
		}
	}
	if got := neighbour.End().Marked.Load(); got != 0 {
		t.Fatalf("another task saw %d packets that were not for it", got)
	}
}

func TestMTUFollows(t *testing.T) {
	f := newFabric(t, 2, false)
	n := f.network("front", 5001, false)
	h := f.hosts[0]
	a, b := n.task(h, "a", 2), n.task(f.hosts[1], "b", 3)
	n.converge()
	b.Serve(t, addr("10.7.0.3"), "b")
	s := a.Stream(t, addr("10.7.0.3"), "b")
	was := a.Index(t, "eth1")
	check := func(want int) {
		t.Helper()
		ov := h.overlay("front")
		for _, got := range []int{ov.MTU(t, bridgeName), ov.MTU(t, vxlanName), ov.MTU(t, hostEnd("a")), a.MTU(t, "eth1")} {
			if got != want {
				t.Fatal(got, want)
			}
		}
		n.verify(h)
		s.Echo("skep", 1<<18)
	}
	check(1450)
	h.mtu.Store(1400)
	n.verify(h, "the bridge has MTU 1450, not 1350", "the VXLAN device has MTU 1450, not 1350", "the link of task a has MTU 1450, not 1350")
	must(t, h.plane.Ensure(t.Context(), n.at(h)))
	check(1350)
	n.n.MTU = 1280
	h.restart() // has not attached the task: its end follows with Attach
	must(t, h.plane.Ensure(t.Context(), n.at(h)))
	must(t, h.plane.Attach(t.Context(), "front", a.a))
	check(1280)
	n.n.MTU = 0
	h.mtu.Store(0) // not known yet
	must(t, h.plane.Ensure(t.Context(), n.at(h)))
	check(1450)
	if a.Index(t, "eth1") != was {
		t.Fatal("the link was made anew")
	}
}

func TestIPv6Underlay(t *testing.T) {
	f := newFabric(t, 2, true)
	n := f.network("front", 5001, true)
	a, b := n.task(f.hosts[0], "a", 2), n.task(f.hosts[1], "b", 3)
	n.converge()
	b.Serve(t, addr("10.7.0.3"), "b")
	b.Serve(t, addr("fd07::3"), "b")
	a.Hears(t, addr("10.7.0.3"), "b")
	a.Hears(t, addr("fd07::3"), "b")
	a.Stream(t, addr("fd07::3"), "b").Echo("skep", 1<<20)
	if got := a.MTU(t, "eth1"); got != 1430 {
		t.Fatal(got)
	}
	n.converge()
	n.tasks[1].host = &host{Host: &nstest.Host{Addr: addr("10.90.0.2")}}
	must(t, f.hosts[0].plane.Ensure(t.Context(), n.at(f.hosts[0])))
	if got, err := f.hosts[0].plane.Verify(t.Context(), n.at(f.hosts[0])); err != nil || len(got) != 1 || !strings.Contains(got[0], "address family") {
		t.Fatal(got, err)
	}
}

func remotes(n int) (out []Remote) {
	for i := range n {
		out = append(out, Remote{Addr: netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)}), Node: netip.AddrFrom4([4]byte{10, 90, 1, byte(i % 50)})})
	}
	return out
}

// More neighbours than the kernel's limit for those it learns, and only differences are written.
func TestThousandsOfRemotes(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	n := Network{ID: "big", VNI: 5001, Subnet: netip.MustParsePrefix("10.7.0.0/16"), Subnet6: netip.MustParsePrefix("fd07::/64"), Remotes: remotes(5000)}
	steps := func() int {
		t.Helper()
		w, _, err := h.plane.want(n)
		must(t, err)
		s, unlock := h.plane.lock("big")
		defer unlock()
		must(t, s.enter(h.plane.path("big"), false))
		k, err := s.observe(h.plane)
		must(t, err)
		return len(plan(w, k))
	}
	t0 := time.Now()
	must(t, h.plane.Ensure(t.Context(), n))
	t.Logf("5000 remotes written in %v", time.Since(t0))
	if st, err := h.plane.State("big"); err != nil || st.Remote != 5000 || steps() != 0 {
		t.Fatal(st, err, steps())
	}
	n.Remotes = append(n.Remotes, Remote{Addr: addr("10.7.200.1"), Node: addr("10.90.1.1")})
	if got := steps(); got != 2 {
		t.Fatalf("%d writes for one remote more", got)
	}
	n.Remotes = n.Remotes[:4999]
	if got := steps(); got != 2 {
		t.Fatalf("%d writes for one remote less", got)
	}
	n.Remotes[7].Node = addr("10.90.1.99") // moved
	n.Remotes[8].Addr6 = addr("fd07::8")   // 1 write and IPv6 allowed
	if got := steps(); got != 5 {
		t.Fatalf("%d writes for one remote less, one moved, one with IPv6", got)
	}
	must(t, h.plane.Ensure(t.Context(), n))
	if steps() != 0 {
		t.Fatal("not settled")
	}
}

func TestManyAtOnce(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	var wg sync.WaitGroup
	for i := range 8 {
		n := Network{ID: fmt.Sprintf("net%d", i), VNI: uint32(6000 + i), Subnet: netip.MustParsePrefix("10.7.0.0/16"), Remotes: remotes(50)}
		x := nstest.New(t, fmt.Sprintf("%s/tasks/%d", f.Dir, i))
		for range 3 {
			wg.Go(func() {
				a := Attachment{Task: "t", Netns: x.Path, Device: "eth1", Addr: netip.MustParsePrefix("10.7.9.9/16")}
				if err := errors.Join(h.plane.Ensure(t.Context(), n), h.plane.Attach(t.Context(), n.ID, a)); err != nil {
					t.Error(err)
				}
				if got, err := h.plane.Verify(t.Context(), n); err != nil || len(got) != 0 {
					t.Error(got, err)
				}
				if _, err := h.plane.State(n.ID); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if got, err := h.plane.List(); err != nil || len(got) != 8 {
		t.Fatal(got, err)
	}
}

func TestRefusals(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	ok := Network{ID: "a", VNI: 5001, Subnet: netip.MustParsePrefix("10.7.0.0/24")}
	for name, change := range map[string]func(*Network){
		"id":   func(n *Network) { n.ID = "../a" },
		"vni":  func(n *Network) { n.VNI = 1 << 24 },
		"mtu":  func(n *Network) { n.MTU = 10 },
		"mtu6": func(n *Network) { n.MTU = 1000; n.Subnet6 = netip.MustParsePrefix("fd00::/64") },
	} {
		n := ok
		change(&n)
		if err := h.plane.Ensure(t.Context(), n); !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Entries that make no sense keep neither the others away nor the network, and are told.
	n := ok
	good := Remote{Addr: addr("10.7.0.5"), Node: addr("10.90.0.2")}
	bad := []Remote{
		{Addr: addr("fd00::1"), Node: addr("10.90.0.2")}, {Addr: addr("10.7.0.6"), Node: h.Addr}, {Addr: addr("10.7.0.7")}, {Addr: addr("10.8.0.7"), Node: addr("10.90.0.2")}, {Node: addr("10.90.0.2")},
		{Addr: addr("10.7.0.8"), Node: addr("0.0.0.0")}, {Addr: addr("10.7.0.9"), Node: addr("239.1.1.1")}, {Addr: addr("10.7.0.10"), Node: addr("255.255.255.255")}, {Addr: addr("10.7.0.11"), Node: addr("fd90::2")},
	}
	n.Remotes = append(slices.Clone(bad), good)
	must(t, h.plane.Ensure(t.Context(), n))
	if st, err := h.plane.State("a"); err != nil || st.Remote != 1 || !st.Up {
		t.Fatal(st, err)
	}
	if got, err := h.plane.Verify(t.Context(), n); err != nil || len(got) != len(bad) {
		t.Fatal(got, err)
	}
	// Of one whose IPv6 address is not the network's, the rest is good.
	n.Subnet6 = netip.MustParsePrefix("fd07::/64")
	n.Remotes = nil
	for i, six := range []string{"fd07::5", "fd08::5", "ff02::1", "10.7.0.5", "fd07::6%x", "::"} {
		n.Remotes = append(n.Remotes, Remote{Addr: netip.AddrFrom4([4]byte{10, 7, 0, byte(5 + i)}), Addr6: addr(six), Node: addr("10.90.0.2")})
	}
	must(t, h.plane.Ensure(t.Context(), n))
	if st, err := h.plane.State("a"); err != nil || st.Remote != 6 {
		t.Fatal(st, err)
	}
	if got, err := h.plane.Verify(t.Context(), n); err != nil || len(got) != 5 {
		t.Fatal(got, err)
	}
	n.Subnet6 = netip.Prefix{}
	// Two nodes claim an address: the choice is the same whatever the order.
	x, y := Remote{Addr: addr("10.7.0.5"), Node: addr("10.90.0.3")}, Remote{Addr: addr("10.7.0.5"), Node: addr("10.90.0.2")}
	n.Remotes = []Remote{x, y}
	must(t, h.plane.Ensure(t.Context(), n))
	n.Remotes = []Remote{y, x}
	if got, err := h.plane.Verify(t.Context(), n); err != nil || len(got) != 0 {
		t.Fatal(got, err)
	}
	// The VNI is another network's, or the port another program's: both say whose.
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := h.plane.Ensure(short, Network{ID: "b", VNI: 5001})
	if !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "network a") {
		t.Fatal(err)
	}
	must(t, h.plane.Cleanup())
	var c net.PacketConn
	must(t, nsfs.Inside(h.FD, func() (err error) { c, err = net.ListenPacket("udp4", ":4789"); return err }))
	if err := h.plane.Ensure(t.Context(), ok); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "UDP port 4789") {
		t.Fatal(err)
	}
	_ = c.Close()
	must(t, h.plane.Ensure(t.Context(), ok))
	for name, a := range map[string]Attachment{
		"task":   {Task: "..", Netns: "/x", Device: "eth1", Addr: netip.MustParsePrefix("10.7.0.2/24")},
		"device": {Task: "a", Netns: "/x", Device: "eth12345678901234", Addr: netip.MustParsePrefix("10.7.0.2/24")},
		"addr":   {Task: "a", Netns: "/x", Device: "eth1", Addr: netip.MustParsePrefix("fd00::2/64")},
		"addr6":  {Task: "a", Netns: "/x", Device: "eth1", Addr: netip.MustParsePrefix("10.7.0.2/24"), Addr6: netip.MustParsePrefix("10.7.0.2/24")},
	} {
		if err := h.plane.Attach(t.Context(), "a", a); !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.plane.Attach(t.Context(), "a", Attachment{Task: "a", Netns: f.Dir + "/none", Device: "eth1", Addr: netip.MustParsePrefix("10.7.0.2/24")}); err == nil {
		t.Error("attached a task without a namespace")
	}
}

func BenchmarkEnsureUnchanged(b *testing.B) {
	f := newFabric(b, 1, false)
	n := Network{ID: "big", VNI: 5001, Remotes: remotes(1000)}
	must(b, f.hosts[0].plane.Ensure(b.Context(), n))
	for b.Loop() {
		must(b, f.hosts[0].plane.Ensure(b.Context(), n))
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	f := newFabric(b, 1, false)
	h := f.hosts[0]
	must(b, h.plane.Ensure(b.Context(), Network{ID: "big", VNI: 5001, Remotes: remotes(1000)}))
	x := nstest.New(b, f.Dir+"/task")
	a := Attachment{Task: "t", Netns: x.Path, Device: "eth1", Addr: netip.MustParsePrefix("10.7.9.9/16"), Addr6: netip.MustParsePrefix("fd07::9/64")}
	for b.Loop() {
		must(b, h.plane.Attach(b.Context(), "big", a))
		b.StopTimer()
		must(b, h.plane.Detach(b.Context(), "big", "t"))
		b.StartTimer()
	}
}
