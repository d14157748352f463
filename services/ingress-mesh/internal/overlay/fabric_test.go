package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"go.uber.org/zap/zaptest"

	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m, nil) }

func must(t testing.TB, err error) { t.Helper(); nstest.Must(t, err) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// fabric is hosts on one wire, with a Plane each.
type fabric struct {
	*nstest.Fabric
	t     testing.TB
	hosts []*host
}

type host struct {
	*nstest.Host
	t     testing.TB
	mtu   atomic.Int64 // of the underlay
	plane *Plane
}

func newFabric(t testing.TB, hosts int, six bool) *fabric {
	t.Helper()
	f := &fabric{Fabric: nstest.NewFabric(t, hosts, six), t: t}
	for _, nh := range f.Hosts {
		h := &host{Host: nh, t: t}
		h.mtu.Store(1500)
		h.restart()
		t.Cleanup(func() {
			if err := errors.Join(h.plane.Cleanup(), h.plane.Close()); err != nil {
				t.Error(err)
			}
		})
		f.hosts = append(f.hosts, h)
	}
	return f
}

// restart is a new process over what the kernel has.
func (h *host) restart() {
	h.t.Helper()
	if h.plane != nil {
		must(h.t, h.plane.Close())
	}
	log := zaptest.NewLogger(h.t)
	if _, ok := h.t.(*testing.B); ok {
		log = nil
	}
	h.In(h.t, func() error {
		h.plane = New(Config{Log: log, Dir: h.Dir + "/overlays", Underlay: h.Addr, UnderlayMTU: func() int { return int(h.mtu.Load()) }})
		return nil
	})
}

// overlay looks into a network's namespace from outside the Plane.
func (h *host) overlay(network string) *nstest.NS {
	h.t.Helper()
	return nstest.Open(h.t, h.plane.path(network))
}

// testNet is a network and its tasks on all hosts.
type testNet struct {
	f     *fabric
	n     Network
	tasks []*task
}

type task struct {
	*nstest.NS
	host *host
	a    Attachment
}

func (f *fabric) network(id string, vni uint32, six bool) *testNet {
	n := Network{ID: id, Name: id, VNI: vni, Subnet: netip.MustParsePrefix("10.7.0.0/24")}
	if six {
		n.Subnet6 = netip.MustParsePrefix("fd07::/64")
	}
	return &testNet{f: f, n: n}
}

// task makes a task's namespace and attaches it, with the address 10.7.0.<last>.
func (tn *testNet) task(h *host, name string, last byte) *task {
	t := tn.f.t
	t.Helper()
	x := &task{NS: nstest.New(t, h.Dir+"/tasks/"+tn.n.ID+name), host: h}
	x.a = Attachment{Task: name, Netns: x.Path, Device: "eth1", Addr: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 7, 0, last}), 24)}
	if tn.n.Subnet6.IsValid() {
		x.a.Addr6 = netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd07::%d", last)), 64)
	}
	tn.tasks = append(tn.tasks, x)
	must(t, h.plane.Ensure(t.Context(), tn.at(h)))
	must(t, h.plane.Attach(t.Context(), tn.n.ID, x.a))
	return x
}

// at is the network as one host is to have it.
func (tn *testNet) at(h *host) Network {
	n := tn.n
	for _, x := range tn.tasks {
		if x.host != h {
			n.Remotes = append(n.Remotes, Remote{Addr: x.a.Addr.Addr(), Addr6: x.a.Addr6.Addr(), Node: x.host.Addr})
		}
	}
	return n
}

// converge brings every host up to date and finds nothing wrong then.
func (tn *testNet) converge() {
	tn.f.t.Helper()
	for _, h := range tn.f.hosts {
		must(tn.f.t, h.plane.Ensure(tn.f.t.Context(), tn.at(h)))
		tn.verify(h)
	}
}

func (tn *testNet) verify(h *host, want ...string) {
	tn.f.t.Helper()
	got, err := h.plane.Verify(tn.f.t.Context(), tn.at(h))
	must(tn.f.t, err)
	if !slices.Equal(got, want) {
		tn.f.t.Fatalf("findings %q, want %q", got, want)
	}
}
