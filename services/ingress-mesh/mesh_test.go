package mesh

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"skep.dev/libs/attach"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/ipam"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

func TestTwentyTasksReachTheGatewayAndTheWorld(t *testing.T) {
	out := outside(t)
	r := newRig(t)
	l, err := net.Listen("tcp4", "100.64.4.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tellClient(t, l)
	ids := make([]string, 20)
	got := make([]attach.Attachment, len(ids))
	var wg sync.WaitGroup
	for i := range ids {
		ids[i] = id.New()
		wg.Go(func() {
			a, err := r.s.Attach(context.Background(), attach.Request{TaskID: ids[i]})
			if err != nil {
				t.Error(err)
			}
			got[i] = a
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	seen := map[netip.Prefix]bool{}
	for i, a := range got {
		if len(a.Addresses) != 2 || seen[a.Addresses[0]] || a.Addresses[0].Bits() != 23 || a.Gateway.String() != "100.64.4.1" ||
			a.Addresses[1] != netip.PrefixFrom(ipam.NodeAddr6(a.Addresses[0].Addr()), 119) {
			t.Fatalf("attachment %+v", a)
		}
		seen[a.Addresses[0]] = true
		own := a.Addresses[0].Addr().String()
		if s, err := ask(a.Netns, l.Addr().String()); err != nil || s != own {
			t.Fatalf("gateway sees %q, task is %s: %v", s, own, err)
		}
		if s, err := ask(a.Netns, out); err != nil || s != "198.51.100.1" {
			t.Fatalf("outside sees %q: %v", s, err)
		}
		if again := r.attach(ids[i]); again.Addresses[0] != a.Addresses[0] || again.Netns != a.Netns {
			t.Fatalf("attached again: %+v, before %+v", again, a)
		}
	}
	var mac string
	if err := in(got[0].Netns, func() error {
		l, err := net.InterfaceByName("eth0")
		if err == nil {
			mac = l.HardwareAddr.String()
		}
		return err
	}); err != nil || mac != macOf(got[0].Addresses[0].Addr()).String() {
		t.Fatal(mac, err)
	}
	list, err := r.s.List(context.Background())
	sort.Strings(ids)
	if err != nil || strings.Join(list, " ") != strings.Join(ids, " ") {
		t.Fatal(list, err)
	}
	for range 2 {
		if err := r.s.Detach(context.Background(), ids[0]); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.s.Sweep(context.Background(), map[string]bool{ids[1]: true}); err != nil {
		t.Fatal(err)
	}
	if list, _ := r.s.List(context.Background()); len(list) != 1 || list[0] != ids[1] {
		t.Fatal(list)
	}
	if n := strings.Count(run(t, "ip", "-o", "link"), "skep task"); n > 1 {
		t.Fatalf("%d links left", n)
	}
}

func TestForwardPolicyDrop(t *testing.T) {
	out := outside(t)
	r := newRig(t)
	run(t, "iptables", "-P", "FORWARD", "DROP")
	run(t, "iptables", "-N", "DOCKER-USER")
	run(t, "iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
	t.Cleanup(func() {
		run(t, "iptables", "-D", "FORWARD", "-j", "DOCKER-USER")
		run(t, "iptables", "-X", "DOCKER-USER")
		run(t, "iptables", "-P", "FORWARD", "ACCEPT")
	})
	a := r.attach(id.New())
	if s, err := ask(a.Netns, out); err != nil || s != "198.51.100.1" {
		t.Fatalf("%q %v", s, err)
	}
	// A firewall that reloads takes our rules; the repair brings them back, once.
	r.stop()
	run(t, "iptables", "-F", "FORWARD")
	run(t, "iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
	run(t, "nft", "delete", "table", "inet", "skep")
	if _, err := ask(a.Netns, out); err == nil {
		t.Fatal("the test's own firewall does not hold")
	}
	r.stop = nil
	r.start()
	for range 2 {
		if err := r.s.repair(); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := ask(a.Netns, out); err != nil || s != "198.51.100.1" {
		t.Fatalf("%q %v", s, err)
	}
	if n := strings.Count(run(t, "iptables", "-S"), "SKEP-FORWARD"); n < 4 {
		t.Fatalf("%d lines name our chain:\n%s", n, run(t, "iptables", "-S"))
	}
}

func TestRestartKeepsConnections(t *testing.T) {
	r := newRig(t)
	task, other := id.New(), id.New()
	a := r.attach(task)
	r.attach(other)
	l, err := net.Listen("tcp4", "100.64.4.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	var c net.Conn
	if err := in(a.Netns, func() (err error) { c, err = net.Dial("tcp4", l.Addr().String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echo := func(when string) {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 5)
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	echo("at first")
	index := func() int { l, _ := r.s.nl.LinkByName(vethName(task)); return l.Attrs().Index }
	was := index()
	for range 3 {
		r.start()
		echo("after a restart")
	}
	if index() != was {
		t.Fatal("the restart made the link anew")
	}
	if again := r.attach(task); again.Addresses[0] != a.Addresses[0] {
		t.Fatal(again)
	}
	if b := r.attach(id.New()); b.Addresses[0].Addr().Compare(a.Addresses[0].Addr().Next()) <= 0 {
		t.Fatalf("%s was given out although it is in use or the counter went back", b.Addresses[0])
	}
	// The bridge is removed by somebody: the same connection works after the repair.
	run(t, "ip", "link", "del", Bridge)
	if err := r.s.repair(); err != nil {
		t.Fatal(err)
	}
	echo("after the bridge was made anew")
}

func TestRecoverySweepsLeftovers(t *testing.T) {
	r := newRig(t)
	rebooted, torn, kept := id.New(), id.New(), id.New()
	r.attach(rebooted)
	r.attach(torn)
	want := r.attach(kept)
	r.stop()
	// As after a reboot: record there, namespace gone.
	if err := nsfs.Remove(r.s.nsPath(rebooted)); err != nil {
		t.Fatal(err)
	}
	// As after a crash within attach or a power failure: namespace and link there, record unreadable.
	if err := os.WriteFile(r.s.records.path(torn), []byte(`{"task":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.s.nsPath("stray"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "link", "add", "skother", "type", "bridge") // not ours, though named alike
	t.Cleanup(func() { run(t, "ip", "link", "del", "skother") })
	r.start()
	list, err := r.s.List(context.Background())
	if err != nil || len(list) != 1 || list[0] != kept {
		t.Fatal(list, err)
	}
	for _, task := range []string{rebooted, torn, "stray"} {
		if _, err := os.Stat(r.s.nsPath(task)); err == nil {
			t.Errorf("the namespace of %s is still there", task)
		}
		if _, err := r.s.nl.LinkByName(vethName(task)); err == nil {
			t.Errorf("the link of %s is still there", task)
		}
	}
	if a := r.attach(kept); a.Addresses[0] != want.Addresses[0] {
		t.Fatal(a)
	}
	run(t, "ip", "link", "show", "skother")
}

// A namespace lost its link, or its mount: attaching again makes it whole with the same address.
func TestAttachRepairs(t *testing.T) {
	r := newRig(t)
	task := id.New()
	a := r.attach(task)
	run(t, "ip", "link", "del", vethName(task))
	if b := r.attach(task); b.Addresses[0] != a.Addresses[0] {
		t.Fatal(b)
	}
	if err := nsfs.Remove(a.Netns); err != nil {
		t.Fatal(err)
	}
	b := r.attach(task)
	if b.Addresses[0] != a.Addresses[0] {
		t.Fatal(b)
	}
	l, err := net.Listen("tcp4", "100.64.4.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tellClient(t, l)
	if s, err := ask(b.Netns, l.Addr().String()); err != nil || s != b.Addresses[0].Addr().String() {
		t.Fatal(s, err)
	}
}

func TestSubnetOverlap(t *testing.T) {
	r := newRig(t)
	r.stop()
	run(t, "ip", "link", "add", "corp", "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "del", "corp") })
	run(t, "ip", "link", "set", "corp", "up")
	run(t, "ip", "route", "add", "100.64.0.0/16", "dev", "corp")
	s, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), "100.64.0.0/16 dev corp") || !strings.Contains(err.Error(), "--node-subnet-pool") {
		t.Fatal(err)
	}
}

func TestMTUFollowsTheUnderlay(t *testing.T) {
	outside(t)
	run(t, "ip", "link", "set", "up0", "mtu", "1400")
	run(t, "ip", "route", "add", "default", "via", "198.51.100.2")
	r := newRigOn(t, "198.51.100.1")
	a := r.attach(id.New())
	var mtu int
	if err := in(a.Netns, func() error {
		l, err := net.InterfaceByName("eth0")
		if err == nil {
			mtu = l.MTU
		}
		return err
	}); err != nil || mtu != 1400 {
		t.Fatal(mtu, err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, subnet := range []string{"", "x", "10.0.0.0/30", "fd00::/64", "10.0.0.0/4"} {
		if _, err := New(Config{DataDir: "d", RunDir: "r", Subnet: subnet}); err == nil {
			t.Errorf("%q was taken", subnet)
		}
	}
}

func TestBadTaskIDs(t *testing.T) {
	r := newRig(t)
	for _, task := range []string{"", "..", "a/b", "a.b", strings.Repeat("x", 65)} {
		if _, err := r.s.Attach(context.Background(), attach.Request{TaskID: task}); err == nil {
			t.Errorf("%q was taken", task)
		}
	}
	if a, err := r.s.Attach(context.Background(), attach.Request{TaskID: "t", HostNetwork: true}); err != nil || a.Netns != "" {
		t.Error(a, err)
	}
}

func TestPool(t *testing.T) {
	now := time.Unix(0, 0)
	p := newPool(netip.MustParsePrefix("10.0.0.0/29"), netip.MustParseAddr("10.0.0.1"))
	p.now = func() time.Time { return now }
	take := func(task, want string) {
		t.Helper()
		a, err := p.take(task)
		if err != nil || a.String() != want {
			t.Fatalf("%s %v, want %s", a, err, want)
		}
	}
	rel := func(task, a string) { p.release(netip.MustParseAddr(a), task) }
	take("a", "10.0.0.2")
	rel("a", "10.0.0.2")
	take("b", "10.0.0.3") // .2 rests
	take("c", "10.0.0.4")
	take("d", "10.0.0.5")
	take("e", "10.0.0.6")
	now = now.Add(time.Second)
	rel("c", "10.0.0.4")
	rel("x", "10.0.0.3")  // not its
	take("f", "10.0.0.2") // all rest: the one that rested longest
	take("g", "10.0.0.4")
	if _, err := p.take("h"); err == nil || !strings.Contains(err.Error(), "10.0.0.0/29") {
		t.Fatal(err)
	}
	now = now.Add(2 * quarantine)
	rel("d", "10.0.0.5")
	now = now.Add(2 * quarantine)
	take("i", "10.0.0.5")
	if p.claim(netip.MustParseAddr("10.0.0.7"), "z") || p.claim(netip.MustParseAddr("10.0.0.1"), "z") || p.claim(netip.MustParseAddr("10.0.0.5"), "z") {
		t.Fatal("claimed what cannot be")
	}
}

func TestCleanupTwice(t *testing.T) {
	r := newRig(t)
	r.attach(id.New())
	if err := r.s.Cleanup(); err != nil { // as the node leaves, under the running service
		t.Fatal(err)
	}
	if err := r.s.repair(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.s.nl.LinkByName(Bridge); err == nil {
		t.Fatal("the repair brought the bridge back")
	}
	if _, err := r.s.Attach(context.Background(), attach.Request{TaskID: id.New()}); !fault.Is(err, fault.CodeUnavailable) {
		t.Fatal(err)
	}
	r.stop()
	for range 2 {
		s, err := New(r.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Cleanup(); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	r := newRig(b)
	var attaching time.Duration
	for b.Loop() {
		task := id.New()
		t0 := time.Now()
		r.attach(task)
		attaching += time.Since(t0)
		if err := r.s.Detach(context.Background(), task); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(attaching.Microseconds())/float64(b.N)/1000, "attach-ms")
}
