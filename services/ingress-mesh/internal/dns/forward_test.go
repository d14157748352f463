package dns

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// deaf is a port nobody listens on.
func deaf(t testing.TB) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

func rcode(code int) func(q *dns.Msg, _ bool) *dns.Msg {
	return func(q *dns.Msg, _ bool) *dns.Msg { return new(dns.Msg).SetRcode(q, code) }
}

func silent(*dns.Msg, bool) *dns.Msg { return nil }

func TestForward(t *testing.T) {
	long := func(q *dns.Msg, tcp bool) *dns.Msg {
		m := records(q, 200)
		if !tcp {
			m.Truncate(dns.MinMsgSize)
		}
		return m
	}
	good, failing, refusing, slow := newUpstream(t, plain), newUpstream(t, rcode(dns.RcodeServerFailure)), newUpstream(t, rcode(dns.RcodeRefused)), newUpstream(t, silent)
	cutting := newUpstream(t, long)
	onlyUDP := newUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		if tcp {
			return nil
		}
		return long(q, tcp)
	})
	liar := newUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
		m := records(q, 1)
		m.Question[0].Name = "example.org."
		return m
	})
	nx, weird := newUpstream(t, rcode(dns.RcodeNameError)), newUpstream(t, rcode(dns.RcodeNotImplemented))
	for _, c := range []struct {
		name    string
		servers []netip.AddrPort
		network string
		edns    uint16
		want    string
		answers int
		cut     bool
	}{
		{"the host's", nil, "udp", 0, "NOERROR", 1, false},
		{"over TCP", nil, "tcp", 0, "NOERROR", 1, false},
		{"the task's own", []netip.AddrPort{nx.addr, good.addr}, "udp", 0, "NXDOMAIN", 0, false},
		{"what a server does not know it says", []netip.AddrPort{weird.addr, good.addr}, "udp", 0, "NOTIMP", 0, false},
		{"the next one", []netip.AddrPort{failing.addr, refusing.addr, good.addr}, "udp", 0, "NOERROR", 1, false},
		{"nobody there", []netip.AddrPort{deaf(t), good.addr}, "udp", 0, "NOERROR", 1, false},
		{"slow ones", []netip.AddrPort{slow.addr, liar.addr, good.addr}, "udp", 0, "NOERROR", 1, false},
		{"three, and no more", []netip.AddrPort{deaf(t), deaf(t), deaf(t), good.addr}, "udp", 0, "SERVFAIL", 0, false},
		{"all fail", []netip.AddrPort{failing.addr, slow.addr, deaf(t)}, "udp", 0, "SERVFAIL", 0, false},
		{"long, over UDP", []netip.AddrPort{cutting.addr}, "udp", 0, "NOERROR", 30, true},
		{"long, EDNS", []netip.AddrPort{cutting.addr}, "udp", 8192, "NOERROR", 200, false},
		{"long, over TCP", []netip.AddrPort{cutting.addr}, "tcp", 0, "NOERROR", 200, false},
		{"long, and TCP fails", []netip.AddrPort{onlyUDP.addr}, "tcp", 0, "NOERROR", -1, true},
	} {
		s, path := newServer(t, good.addr), newSpace(t)
		if err := s.Open("t1", path, NewTable([]Network{front()}), c.servers); err != nil {
			t.Fatal(err)
		}
		m := client{t: t, path: path, edns: c.edns}.ask(c.network, "example.COM", dns.TypeA)
		n := len(m.Answer)
		if code := dns.RcodeToString[m.Rcode]; code != c.want || m.Truncated != c.cut || c.answers >= 0 && (n < c.answers || c.answers != 30 && n != c.answers) || n > 0 && m.Answer[0].Header().Name != "example.COM." {
			t.Errorf("%s: %s, %d answers, truncated %v", c.name, code, n, m.Truncated)
		}
	}
	if got := cutting.seen(); !slices.Contains(got, "tcp example.COM.") {
		t.Error("not asked over TCP:", got)
	}
}

func TestEDNSPasses(t *testing.T) {
	var size, option atomic.Uint32
	u := newUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
		o := q.IsEdns0()
		size.Store(uint32(o.UDPSize()))
		option.Store(uint32(o.Option[0].Option()))
		m := records(q, 1)
		m.SetEdns0(1400, true)
		return m
	})
	s, path := newServer(t, u.addr), newSpace(t)
	if err := s.Open("t1", path, NewTable(nil), nil); err != nil {
		t.Fatal(err)
	}
	c := client{t: t, path: path}
	q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	q.SetEdns0(1500, true)
	q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
	m, _, err := (&dns.Client{}).ExchangeWithConn(q, c.dial("udp"))
	if err != nil || m.IsEdns0() == nil || m.IsEdns0().UDPSize() != 1400 || size.Load() != 1500 || option.Load() != dns.EDNS0COOKIE {
		t.Error(m, err, size.Load(), option.Load())
	}
}

func TestNoLeak(t *testing.T) {
	u := newUpstream(t, plain)
	s, path := newServer(t, u.addr), newSpace(t)
	if err := s.Open("t1", path, NewTable([]Network{front(), back()}), []netip.AddrPort{u.addr}); err != nil {
		t.Fatal(err)
	}
	c := client{t: t, path: path}
	for _, name := range []string{
		"my_web", "nobody", "NOBODY", "com", "tasks.nobody", "Tasks.Nobody", "tasks.nobody.dev", "nobody.front_net", "gone.3." + taskID(9), "gone.3." + taskID(9) + ".dev",
		"99.77.1.10.in-addr.arpa", "1.1.10.in-addr.arpa", "1.0.0.0.0.0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa", "1.200.2.10.in-addr.arpa",
	} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeSRV, dns.TypeANY} {
			for _, network := range []string{"udp", "tcp"} {
				if m := c.ask(network, name, kind); m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
					t.Error(name, m)
				}
			}
		}
	}
	if got := u.seen(); len(got) != 0 {
		t.Error("a name server was told of", got)
	}
	for _, name := range []string{"example.com", "1.3.3.10.in-addr.arpa", "my_web.example.com", "tasks.google.com", "."} {
		c.ask("udp", name, dns.TypePTR)
	}
	if got := u.seen(); len(got) != 5 {
		t.Error("not forwarded:", got)
	}
}

// A task that waits for a slow name server is not kept from the cluster's names, nor are others kept from anything.
func TestForwardsAreBounded(t *testing.T) {
	block := make(chan struct{})
	slow := newUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg { <-block; return records(q, 1) })
	good := newUpstream(t, plain)
	t.Cleanup(sync.OnceFunc(func() { close(block) }))
	s := New(Config{Timeout: 30 * time.Second})
	t.Cleanup(s.Shutdown)
	a, b := newSpace(t), newSpace(t)
	for path, u := range map[string]netip.AddrPort{a: slow.addr, b: good.addr} {
		if err := s.Open(path, path, NewTable([]Network{front()}), []netip.AddrPort{u}); err != nil {
			t.Fatal(err)
		}
	}
	ca, cb := client{t: t, path: a}, client{t: t, path: b}
	conn := ca.dial("udp")
	q, _ := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).Pack()
	for range maxTaskForwards {
		if _, err := conn.Conn.Write(q); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for s.Stats().Forwarded < maxTaskForwards {
		if time.Now().After(deadline) {
			t.Fatal(s.Stats())
		}
		time.Sleep(time.Millisecond)
	}
	if m := ca.ask("udp", "example.com", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Error("one more:", m)
	}
	if got := show(ca.ask("udp", "web", dns.TypeA)); got != "NOERROR 10.1.200.1" {
		t.Error(got)
	}
	if got := show(cb.ask("udp", "example.com", dns.TypeA)); got != "NOERROR 192.0.0.0" {
		t.Error("another task:", got)
	}
	if st := s.Stats(); st.Overloads != 1 || st.Failures != 1 {
		t.Errorf("%+v", st)
	}
	began := time.Now()
	s.Close(a)
	if d := time.Since(began); d > 5*time.Second {
		t.Error("Close waits for name servers:", d)
	}
}
