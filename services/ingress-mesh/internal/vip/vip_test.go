package vip

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var both = []struct {
	name string
	of   func(s Service) netip.Addr
	self func(h *host) netip.Addr
}{
	{"4", func(s Service) netip.Addr { return s.VIP }, func(h *host) netip.Addr { return h.ip }},
	{"6", func(s Service) netip.Addr { return s.VIP6 }, func(h *host) netip.Addr { return h.ip6 }},
}

func TestConnectionsReachEveryTask(t *testing.T) {
	hs := newHosts(t, 4)
	a, web := hs[0], service(0, hs[1:]...)
	other := service(1, hs[3])
	a.apply(web, other)
	for _, f := range both {
		for _, network := range []string{"tcp", "udp"} {
			hit := map[string]int{}
			for range 60 {
				task, client, err := a.getKept(network, f.of(web))
				if err != nil {
					t.Fatalf("%s%s: %v\n%s", network, f.name, err, a.sh("nft list ruleset"))
				}
				if client != f.self(a).String() {
					t.Fatalf("the task saw %s, not the client's own address", client)
				}
				hit[task]++
			}
			if len(hit) != 3 {
				t.Errorf("%s%s: answers came from %v", network, f.name, hit)
			}
			if task, _, err := a.get(network, f.of(other)); err != nil || task != hs[3].ip.String() {
				t.Errorf("other service: %s %v", task, err)
			}
		}
		a.sh("ping -n -c1 -W2 " + f.of(web).String())
	}
	got, err := Read(a.path)
	if err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	if g := got[0]; g.Service.Service != "svc0" || g.VIP != web.VIP || g.VIP6 != web.VIP6 || len(g.Backends) != 3 || len(g.Backends6) != 3 ||
		g.Connections != 242 || g.Refused != 0 { // 60 each over TCP and UDP, and one ping, twice
		t.Errorf("%+v", g)
	}
	if out := a.sh("nft list table inet " + tableName); !strings.Contains(out, `comment "svc0" : jump pick-3`) {
		t.Error(out)
	}
}

func TestHairpin(t *testing.T) {
	hs := newHosts(t, 2)
	b := hs[1]
	b.apply(service(0, b))
	for _, f := range both {
		for _, network := range []string{"tcp", "udp"} {
			task, client, err := b.get(network, f.of(service(0)))
			if err != nil || task != b.ip.String() || client != f.self(b).String() {
				t.Errorf("%s%s: %s saw %s: %v", network, f.name, task, client, err)
			}
		}
		b.sh("ping -n -c1 -W2 " + f.of(service(0)).String())
	}
}

func TestWithoutTasksIsRefusedAtOnce(t *testing.T) {
	hs := newHosts(t, 2)
	a := hs[0]
	a.apply(service(0), service(1, hs[1]))
	began := time.Now()
	for _, f := range both {
		for _, network := range []string{"tcp", "udp"} {
			// A datagram that is refused on its way out fails the very call that sent it.
			if _, _, err := a.get(network, f.of(service(0))); !errors.Is(err, syscall.ECONNREFUSED) && !(network == "udp" && errors.Is(err, syscall.EPERM)) {
				t.Errorf("%s%s: %v", network, f.name, err)
			}
		}
		if out, err := a.try("ping -n -c1 -W2 " + f.of(service(0)).String()); err == nil || !strings.Contains(strings.ToLower(out), "unreachable") {
			t.Errorf("ping: %v\n%s", err, out)
		}
	}
	if d := time.Since(began); d > 1500*time.Millisecond {
		t.Errorf("took %v", d)
	}
	if got, err := Read(a.path); err != nil || got[0].Refused != 6 || got[0].Connections != 0 {
		t.Error(got, err)
	}
	// The first task makes it answer, also for a client that asked before.
	a.apply(service(0, hs[1]), service(1, hs[1]))
	if _, _, err := a.get("udp", v4(200)); err != nil {
		t.Error(err)
	}
	// A service with IPv4 tasks alone is refused over IPv6, so that clients take the other address.
	only := service(0, hs[1])
	only.Backends6 = nil
	a.apply(only)
	if _, _, err := a.get("tcp", only.VIP6); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
	// Removed: an address like any other, of nobody.
	a.apply()
	if got, err := Read(a.path); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
}

func TestFlowsWhenATaskLeaves(t *testing.T) {
	hs := newHosts(t, 3)
	a := hs[0]
	for _, f := range both {
		a.apply(service(0, hs[1]))
		tcp, err := a.dial("tcp", f.of(service(0)))
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		udp, err := a.dial("udp", f.of(service(0)))
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		direct, err := a.dial("udp", f.self(hs[1]))
		if err != nil {
			t.Fatal(err)
		}
		defer direct.Close()
		both := func(want string) {
			t.Helper()
			if got, _, err := ask(udp); err != nil || got != want {
				t.Errorf("UDP: %s, not %s: %v", got, want, err)
			}
			if got, _, err := ask(tcp); err != nil || got != hs[1].ip.String() {
				t.Errorf("TCP: %s: %v", got, err)
			}
			if got, _, err := ask(direct); err != nil || got != hs[1].ip.String() {
				t.Errorf("not a virtual address: %s: %v", got, err)
			}
		}
		both(hs[1].ip.String())
		a.apply(service(0, hs[2]))
		both(hs[1].ip.String())
		if err := Clear(a.path, []netip.Addr{f.self(hs[1])}, nil); err != nil {
			t.Fatal(err)
		}
		both(hs[2].ip.String())
		// The connection lives through everything else, too.
		a.apply(service(1, hs[2]))
		a.sh("nft flush ruleset")
		a.apply(service(0, hs[2]))
		both(hs[2].ip.String())
	}
	if err := Clear(a.path, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestFlowThatBeganBeforeItsAddressWasKnown(t *testing.T) {
	hs := newHosts(t, 2)
	a := hs[0]
	a.apply(service(1, hs[1])) // connections are tracked from now on
	// So that the packets leave: else the flow does not come to be.
	a.sh("ip neigh add 10.1.0.200 lladdr 02:00:00:00:00:01 dev eth1")
	c, err := a.dial("udp", v4(200))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if out := a.sh("conntrack -L -p udp 2>/dev/null"); !strings.Contains(out, "dst=10.1.0.200") {
		t.Fatal("no flow:", out)
	}
	a.apply(service(0, hs[1]), service(1, hs[1]))
	if task, _, err := ask(c); err != nil || task != hs[1].ip.String() {
		t.Error(task, err)
	}
}

// A client that hammers a service sees none of its changes.
func TestNoConnectionFailsWhileTasksChange(t *testing.T) {
	hs := newHosts(t, 4)
	a := hs[0]
	a.apply(service(0, hs[1]))
	var failed, done atomic.Int64
	var first atomic.Value
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, _, err := a.get("tcp", v4(200)); err != nil {
				failed.Add(1)
				first.CompareAndSwap(nil, err.Error())
			}
			done.Add(1)
		}
	}()
	c := new(Cache)
	for i := 0; i < 60 || done.Load() < 200; i++ {
		want := []Service{service(0, hs[1:2+i%3]...), service(1)}
		if i%2 == 0 {
			want[1] = service(2, hs[1])
		}
		if err := c.Apply(a.path, want); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-ended
	if failed.Load() > 0 {
		t.Errorf("%d of %d connections failed, the first: %v", failed.Load(), done.Load(), first.Load())
	}
}
