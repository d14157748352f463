package overlay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep.dev/libs/fault"
	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

func TestWhatIsTakenAwayComesBack(t *testing.T) {
	f := newFabric(t, 2, false)
	n := f.network("front", 5001, true)
	h := f.hosts[0]
	a, b := n.task(h, "a", 2), n.task(f.hosts[1], "b", 3)
	n.converge()
	b.Serve(t, addr("10.7.0.3"), "b")
	b.Serve(t, addr("fd07::3"), "b")
	a.Serve(t, addr("10.7.0.2"), "a")
	ov := h.overlay("front")
	m := macOf(addr("10.7.0.3"))
	sp, unlock := h.plane.lock("front")
	unlock()
	hd := &hand{ctx: t.Context(), p: h.plane, s: sp} // an administrator's, with the means at hand
	port := hostEnd("a")
	vx := func() int { return ov.Index(t, vxlanName) }
	for _, c := range []struct {
		name string
		harm func() error
		want []string
	}{
		{"a forwarding entry", func() error { hd.vxlan = vx(); return hd.delForward(m) },
			[]string{"the forwarding entry for 02:42:0a:07:00:03 to node 10.90.0.2 is missing"}},
		{"a wrong node", func() error { hd.vxlan = vx(); return hd.setForward(m, addr("10.90.0.9")) },
			[]string{"the forwarding entry for 02:42:0a:07:00:03 points to node 10.90.0.9, not 10.90.0.2"}},
		{"strays", func() error {
			hd.vxlan = vx()
			// Who has no entry of his own would be sent there.
			all := &netlink.Neigh{LinkIndex: vx(), Family: unix.AF_BRIDGE, Flags: unix.NTF_SELF, State: unix.NUD_PERMANENT, IP: net.IPv4(10, 90, 0, 9), HardwareAddr: make([]byte, 6)}
			return errors.Join(ov.Handle.NeighAppend(all), hd.setForward(mac{2, 1}, addr("10.90.0.9")), hd.setNeighbour(addr("10.7.0.77"), m), hd.setNeighbour(addr("fd07::77"), m))
		}, nil},
		{"neighbours", func() error {
			hd.vxlan = vx()
			return errors.Join(hd.delNeighbour(addr("10.7.0.3")), hd.setNeighbour(addr("fd07::3"), mac{2, 1}))
		}, []string{"the neighbour fd07::3 is 02:01:00:00:00:00, not permanently 02:42:0a:07:00:03", "the neighbour 10.7.0.3 (02:42:0a:07:00:03) is missing"}},
		{"IPv6 of the device", func() error {
			return nsfs.Inside(ov.FD, func() error { return nsfs.Setting("net/ipv6/conf/vx0/disable_ipv6", "1") })
		}, []string{"the neighbour fd07::3 (02:42:0a:07:00:03) is missing"}},
		{"the VXLAN device down", func() error { return ov.Handle.LinkSetDown(at(vx())) }, nil},
		{"the VXLAN device", func() error { return ov.Handle.LinkDel(at(vx())) }, []string{"its VXLAN device is missing"}},
		{"another VXLAN device", func() error {
			return errors.Join(ov.Handle.LinkDel(at(vx())), h.Handle.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: vxlanName, TxQLen: -1, Namespace: netlink.NsFd(int(ov.FD))}, VxlanId: 77, Port: 4790, Learning: true}))
		}, nil},
		{"a VXLAN device of its own", func() error {
			return errors.Join(ov.Handle.LinkDel(at(vx())), ov.Handle.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: vxlanName, TxQLen: -1}, VxlanId: 5001, Port: 4789, Proxy: true, SrcAddr: h.Addr.AsSlice()}))
		}, []string{"its VXLAN device does not send through the host's namespace"}},
		{"a device of another type", func() error {
			return errors.Join(ov.Handle.LinkDel(at(vx())), ov.Handle.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: vxlanName, TxQLen: -1}}))
		}, []string{"device vx0 is of a wrong type", "its VXLAN device is missing"}},
		{"the bridge", func() error { return ov.Handle.LinkDel(at(ov.Index(t, bridgeName))) }, []string{"its bridge is missing"}},
		{"the bridge down", func() error { return ov.Handle.LinkSetDown(at(ov.Index(t, bridgeName))) }, []string{"the bridge is down"}},
		{"the link off the bridge", func() error { return ov.Handle.LinkSetNoMaster(at(ov.Index(t, port))) }, []string{"the link of task a is not on the bridge", "the bridge does not know task a"}},
		{"the link down", func() error { return ov.Handle.LinkSetDown(at(ov.Index(t, port))) }, []string{"the link of task a is down"}},
		{"the bridge's learning", func() error {
			return errors.Join(ov.Handle.LinkSetLearning(at(ov.Index(t, port)), true), ov.Handle.LinkSetFlood(at(vx()), false))
		}, []string{"the VXLAN device learns or floods", "the link of task a learns or floods"}},
		{"the link", func() error { return ov.Handle.LinkDel(at(ov.Index(t, port))) }, []string{"task a has no link"}},
		{"MTUs", func() error {
			return errors.Join(ov.Handle.LinkSetMTU(at(vx()), 1400), ov.Handle.LinkSetMTU(at(ov.Index(t, port)), 1300))
		}, nil},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			nstest.Await(t, "a network that is known to be right", func() bool { must(t, h.plane.Ensure(t.Context(), n.at(h))); return sp.settled != nil })
			must(t, c.harm())
			got, err := h.plane.Verify(t.Context(), n.at(h))
			must(t, err)
			if len(got) == 0 || c.want != nil && !slices.Equal(got, c.want) {
				t.Fatalf("findings %q, want %q", got, c.want)
			}
			must(t, h.plane.Ensure(t.Context(), n.at(h)))
			n.verify(h)
			a.Hears(t, addr("10.7.0.3"), "b")
			a.Hears(t, addr("fd07::3"), "b")
			b.Hears(t, addr("10.7.0.2"), "a")
		})
	}
}

// A restart, and an administrator who unmounts the namespace, cost no packet.
func TestRestartLosesNothing(t *testing.T) {
	f := newFabric(t, 2, false)
	n := f.network("front", 5001, true)
	h := f.hosts[0]
	a, b := n.task(h, "a", 2), n.task(f.hosts[1], "b", 3)
	n.converge()
	b.Serve(t, addr("10.7.0.3"), "b")
	s := a.Stream(t, addr("10.7.0.3"), "b")
	s.Echo("skep", 1<<16)
	ov := h.overlay("front")
	indexes := func() string {
		return fmt.Sprint(ov.Index(t, bridgeName), ov.Index(t, vxlanName), ov.Index(t, hostEnd("a")), a.Index(t, "eth1"))
	}
	was := indexes()
	stop, lost := nstest.PingPong(t, a.NS, b.NS, addr("10.7.0.3"))
	for range 5 {
		h.restart()
		must(t, h.plane.Ensure(t.Context(), n.at(h)))
		must(t, h.plane.Attach(t.Context(), "front", a.a))
		s.Echo("skep", 1<<16)
	}
	must(t, nsfs.Remove(h.plane.path("front")))
	if got, err := h.plane.Verify(t.Context(), n.at(h)); err != nil || len(got) != 1 || got[0] != "its namespace is missing" {
		t.Fatal(got, err)
	}
	must(t, h.plane.Ensure(t.Context(), n.at(h)))
	n.verify(h)
	s.Echo("skep", 1<<16)
	if rounds := stop(); rounds < 10 || lost.Load() != 0 {
		t.Fatalf("%d of %d packets were lost", lost.Load(), rounds)
	}
	if got := indexes(); got != was {
		t.Fatalf("devices %s, before %s", got, was)
	}
}

// While no process ran, the namespace was unmounted: the next one makes it anew, with the links of those it knows.
func TestNamespaceGone(t *testing.T) {
	f := newFabric(t, 2, false)
	n := f.network("front", 5001, false)
	h := f.hosts[0]
	a, b := n.task(h, "a", 2), n.task(f.hosts[1], "b", 3)
	n.converge()
	b.Serve(t, addr("10.7.0.3"), "b")
	must(t, h.plane.Close())
	must(t, nsfs.Remove(h.plane.path("front")))
	h.plane = nil
	h.restart()
	if _, err := h.plane.State("front"); !fault.Is(err, fault.CodeNotFound) {
		t.Fatal(err)
	}
	if err := h.plane.Attach(t.Context(), "front", a.a); !errors.Is(err, errAbsent) {
		t.Fatal(err)
	}
	must(t, h.plane.Ensure(t.Context(), n.at(h)))
	must(t, h.plane.Attach(t.Context(), "front", a.a))
	a.Hears(t, addr("10.7.0.3"), "b")
	// Another one is in its place.
	must(t, nsfs.Remove(h.plane.path("front")))
	other := nstest.New(t, f.Dir+"/other")
	must(t, nsfs.Keep(other.FD, h.plane.path("front")))
	must(t, h.plane.Ensure(t.Context(), n.at(h)))
	n.verify(h)
	a.Hears(t, addr("10.7.0.3"), "b")
	// A reboot, or a crash between file and mount, leaves the file alone.
	must(t, nsfs.Remove(h.plane.path("front")))
	must(t, os.WriteFile(h.plane.path("front"), nil, 0o400))
	must(t, os.WriteFile(h.plane.path("stray"), nil, 0o400))
	must(t, h.plane.Ensure(t.Context(), n.at(h)))
	a.Hears(t, addr("10.7.0.3"), "b")
	if got, err := h.plane.List(); err != nil || !slices.Equal(got, []string{"front", "stray"}) {
		t.Fatal(got, err)
	}
	must(t, h.plane.Remove(t.Context(), "stray"))
}

// A crash may come between any two steps: whatever subset of the devices is there, the next call completes it.
func TestHalfMade(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	n := f.network("front", 5001, true)
	w, _, err := h.plane.want(n.n)
	must(t, err)
	for steps := range 2 {
		s, unlock := h.plane.lock("front")
		must(t, os.MkdirAll(h.plane.cfg.Dir, 0o755))
		must(t, s.enter(h.plane.path("front"), true))
		have, err := s.observe(h.plane)
		must(t, err)
		if errs := h.plane.apply(t.Context(), s, w, have, plan(w, have)[:steps]); len(errs) > 0 {
			t.Fatal(errs)
		}
		unlock()
		h.restart()
		must(t, h.plane.Ensure(t.Context(), n.at(h)))
		n.verify(h)
		must(t, h.plane.Remove(t.Context(), "front"))
	}
	// A link of which one end went elsewhere, and a device of the task's own in its place.
	x := n.task(h, "a", 2)
	must(t, x.Handle.LinkSetNsFd(at(x.Index(t, "eth1")), int(f.Wire.FD)))
	must(t, h.plane.Attach(t.Context(), "front", x.a))
	if _, err := f.Wire.Handle.LinkByName("eth1"); err == nil {
		t.Fatal("the broken link's end is still there")
	}
	must(t, x.Handle.LinkDel(at(x.Index(t, "eth1"))))
	must(t, x.Handle.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1", TxQLen: -1}, PeerName: "eth9"}))
	must(t, h.plane.Attach(t.Context(), "front", x.a))
	n.verify(h)
	must(t, x.Handle.LinkDel(at(x.Index(t, "eth1"))))
	must(t, x.Handle.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth1", TxQLen: -1}}))
	if err := h.plane.Attach(t.Context(), "front", x.a); !fault.Is(err, fault.CodeConflict) {
		t.Fatal(err)
	}
}

// Where nothing happened nothing is read; what is missed by hearing is found by looking, in time.
func TestQuietNetworksAreNotRead(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	n := f.network("front", 5001, true)
	a := n.task(h, "a", 2)
	s, unlock := h.plane.lock("front")
	unlock()
	ensure := func() { t.Helper(); must(t, h.plane.Ensure(t.Context(), n.at(h))) }
	for range 3 {
		ensure() // the first two hear of what was made before
	}
	was := s.settled
	if was == nil {
		t.Fatal("a network that is right is not known to be")
	}
	if ensure(); s.settled != was {
		t.Error("a quiet network was read")
	}
	// More than the socket's buffer holds.
	ov := h.overlay("front")
	for i := range 300 {
		must(t, ov.Handle.LinkSetAlias(at(ov.Index(t, vxlanName)), fmt.Sprint("noise ", i)))
	}
	if ensure(); s.settled == was {
		t.Error("a network of which too much was heard was not read")
	}
	// A task that is on the network of another process' making, or of none.
	ensure()
	must(t, h.plane.Attach(t.Context(), "front", a.a))
	if ensure(); s.settled == nil {
		t.Error("an attachment that changes nothing unsettles the network")
	}
	s.settled.at = s.settled.at.Add(-lookAfter)
	was = s.settled
	if ensure(); s.settled == was {
		t.Error("it was never looked at again")
	}
}
