package overlay

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

// TestATaskIsItselfOnANetwork: a task that takes another's address, or MAC, is heard by nobody on the network, here or
// on another node; and it is heard again with its own. Both families, and with the process that attached it or a new one.
func TestATaskIsItselfOnANetwork(t *testing.T) {
	f := newFabric(t, 2, false)
	n := f.network("front", 5001, true)
	a, b, c := n.task(f.hosts[0], "a", 2), n.task(f.hosts[1], "b", 3), n.task(f.hosts[0], "c", 4)
	n.converge()
	for _, x := range []*task{b, c} {
		x.Serve(t, x.a.Addr.Addr(), x.a.Task)
		x.Serve(t, x.a.Addr6.Addr(), x.a.Task)
	}
	honest := func() {
		t.Helper()
		for _, x := range []*task{b, c} {
			a.Hears(t, x.a.Addr.Addr(), x.a.Task)
			a.Hears(t, x.a.Addr6.Addr(), x.a.Task)
		}
	}
	honest()
	// The answer would not come to a liar in any case: whether the question left is what counts.
	heard := func(x *task, as string) bool {
		wire := x.Capture(t, 9, "as "+as)
		for _, to := range []netip.Addr{x.a.Addr.Addr(), x.a.Addr6.Addr()} {
			_ = nsfs.Inside(a.FD, func() error {
				from := netip.MustParseAddr(as)
				if from.Is4() != to.Is4() {
					return nil
				}
				// The way to the other is known, so that it is not asked for in the liar's name.
				out, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
				if err != nil {
					t.Errorf("bind %s: %v", as, err)
					return nil
				}
				defer out.Close()
				_, err = out.Write([]byte("as " + as))
				return err
			})
		}
		wire.End()
		return wire.Marked.Load() > 0
	}
	eth1 := a.Link(t, "eth1")
	for _, lie := range []string{"10.7.0.3/24", "10.7.0.4/24", "10.7.0.99/24", "fd07::3/64", "fd07::99/64"} {
		p := netip.MustParsePrefix(lie)
		extra := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: unix.IFA_F_NODAD}
		must(t, a.Handle.AddrAdd(eth1, extra))
		for _, x := range []*task{b, c} {
			if x.a.Addr.Addr() == p.Addr() || x.a.Addr6.Addr() == p.Addr() {
				continue // it would speak to itself
			}
			if heard(x, p.Addr().String()) {
				t.Errorf("task %s hears task a as %s", x.a.Task, p.Addr())
			}
		}
		must(t, a.Handle.AddrDel(eth1, extra))
	}
	honest()
	if !heard(b, "10.7.0.2") || !heard(c, "fd07::2") {
		t.Error("task a is not heard as itself: the test shows nothing")
	}
	for range 2 {
		must(t, a.Handle.LinkSetHardwareAddr(eth1, net.HardwareAddr{2, 0x42, 10, 7, 0, 4}))
		if who, err := a.Ask(b.a.Addr.Addr(), 300e6); err == nil {
			t.Errorf("with another task's MAC, task a hears %s", who)
		}
		must(t, a.Handle.LinkSetHardwareAddr(eth1, macOf(a.a.Addr.Addr()).hw()))
		honest()
		f.hosts[0].restart()
		must(t, f.hosts[0].plane.Ensure(t.Context(), n.at(f.hosts[0])))
		a.Hears(t, c.a.Addr.Addr(), "c") // before the new process has attached anybody
		for _, x := range []*task{a, c} {
			must(t, f.hosts[0].plane.Attach(t.Context(), "front", x.a))
		}
	}
}

// TestNobodyAnswersFromOutside: a host that can send VXLAN packets in a node's name cannot tell tasks who has an address.
func TestNobodyAnswersFromOutside(t *testing.T) {
	f := newFabric(t, 2, false)
	n := f.network("front", 5001, true)
	a, b := n.task(f.hosts[0], "a", 2), n.task(f.hosts[1], "b", 3)
	n.converge()
	b.Serve(t, b.a.Addr.Addr(), "b")
	a.Hears(t, b.a.Addr.Addr(), "b")
	// The other node's own network becomes the liar: its bridge says what it likes.
	out := f.hosts[1].overlay("front")
	must(t, nsfs.Inside(out.FD, func() error { return exec.Command("nft", "delete", "table", "bridge", "skep_ports").Run() }))
	var fd int
	out.In(t, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	defer unix.Close(fd)
	me, liar := macOf(a.a.Addr.Addr()), mac{2, 0x42, 10, 7, 0, 66}
	answer := append(append(append([]byte{}, me[:]...), liar[:]...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2)
	answer = append(append(append(answer, liar[:]...), 10, 7, 0, 3), append(me[:], 10, 7, 0, 2)...)
	// Straight into the device, with the way to task a as that node has it.
	wire := a.Capture(t, 9, string(liar[:]))
	must(t, unix.Sendto(fd, answer, 0, &unix.SockaddrLinklayer{Ifindex: out.Index(t, vxlanName), Halen: 6}))
	last := append(append(append([]byte{}, me[:]...), liar[:]...), 0x88, 0xb5, 's', 'k', 'e', 'p')
	must(t, unix.Sendto(fd, last, 0, &unix.SockaddrLinklayer{Ifindex: out.Index(t, vxlanName), Halen: 6}))
	nstest.Await(t, "what comes after the lie", func() bool { return wire.Marked.Load() > 0 })
	wire.End()
	list, err := a.Handle.NeighList(a.Index(t, "eth1"), netlink.FAMILY_V4)
	must(t, err)
	for _, e := range list {
		if strings.HasSuffix(e.HardwareAddr.String(), ":42") {
			t.Errorf("task a believes that %s is at %s", e.IP, e.HardwareAddr)
		}
	}
	if got := wire.Marked.Load(); got != 1 {
		t.Errorf("%d frames of the liar reached task a, want the one that is no answer", got)
	}
	a.Hears(t, b.a.Addr.Addr(), "b")
}
