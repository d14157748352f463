package dns

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

func TestAnswers(t *testing.T) {
	s, path := newServer(t), newSpace(t)
	if err := s.Open("t1", path, NewTable([]Network{front(), back()}), nil); err != nil {
		t.Fatal(err)
	}
	c := client{t: t, path: path}
	task2 := "My_Web.2." + taskID(2)
	for _, q := range []struct {
		name string
		kind uint16
		want string
	}{
		{"my_web", dns.TypeA, "NOERROR 10.1.200.1"},
		{"MY_WEB", dns.TypeA, "NOERROR 10.1.200.1"},
		{"my_web", dns.TypeAAAA, "NOERROR fd01::200:1"},
		{"db", dns.TypeAAAA, "NOERROR"}, // not NXDOMAIN
		{"my_web", dns.TypeMX, "NOERROR"},
		{"my_web", dns.TypeANY, "NOERROR"},
		{"web", dns.TypeA, "NOERROR 10.1.200.1"},
		{"tasks.web", dns.TypeA, "NOERROR 10.1.0.1 10.1.0.3"},
		{"tasks.Web.Front_net", dns.TypeAAAA, "NOERROR fd01::1"},
		{"db.front_net", dns.TypeA, "NOERROR 10.1.0.4 10.1.0.5"},
		{"none", dns.TypeA, "NOERROR"},
		{task2, dns.TypeA, "NOERROR 10.1.0.2"},
		{"1.200.1.10.in-addr.arpa", dns.TypePTR, "NOERROR My_Web.Front_net."},
		{"2.0.1.10.IN-ADDR.ARPA", dns.TypePTR, "NOERROR " + task2 + ".Front_net."},
		{"2.0.1.10.in-addr.arpa", dns.TypeA, "NOERROR"},
		{"1.0.0.0.0.0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa", dns.TypePTR, "NOERROR My_Web.Front_net."},
		{"2.0.0.0.0.0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa", dns.TypePTR, "NXDOMAIN"},
		{"99.77.1.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{"1.10.in-addr.arpa", dns.TypeNS, "NOERROR"},
		{"nobody", dns.TypeA, "NXDOMAIN"},
		{"tasks.nobody", dns.TypeA, "NXDOMAIN"},
		{"example.com", dns.TypeA, "SERVFAIL"}, // no name server to ask
		{"my_web", dns.TypeAXFR, "REFUSED"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if q.kind == dns.TypeAXFR && network == "tcp" {
				continue // the client library has another way for those
			}
			m := c.ask(network, q.name, q.kind)
			if got := show(m); got != q.want {
				t.Errorf("%s %s %s: %s, not %s", network, q.name, dns.TypeToString[q.kind], got, q.want)
			}
			if !m.RecursionAvailable || !m.RecursionDesired || m.Truncated || m.Question[0].Name != dns.Fqdn(q.name) {
				t.Errorf("%s: %v", q.name, m)
			}
			for _, rr := range m.Answer {
				if h := rr.Header(); h.Name != dns.Fqdn(q.name) || h.Ttl != ttl {
					t.Errorf("%s: %v", q.name, rr)
				}
			}
		}
	}
	if st := s.Stats(); st.Tasks != 1 || st.Queries != st.Local+st.Forwarded+1 || st.Forwarded != 2 || st.Failures != 2 || st.Answered != 0 || st.Refused != 1 {
		t.Errorf("%+v", st)
	}
}

func TestOddQueries(t *testing.T) {
	s, path := newServer(t), newSpace(t)
	if err := s.Open("t1", path, NewTable([]Network{front()}), nil); err != nil {
		t.Fatal(err)
	}
	c := client{t: t, path: path}
	good, _ := new(dns.Msg).SetQuestion("my_web.", dns.TypeA).Pack()
	change := func(f func(m *dns.Msg)) []byte {
		m := new(dns.Msg).SetQuestion("my_web.", dns.TypeA)
		f(m)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, q := range map[string]struct {
		query []byte
		want  int // -1: no answer
	}{
		"two questions": {change(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		"no question":   {change(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		"cut":           {good[:len(good)-3], dns.RcodeFormatError},
		"an answer":     {change(func(m *dns.Msg) { m.Response = true }), -1},
		"short":         {good[:8], -1},
		"empty":         {nil, -1},
		"an update":     {change(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"chaos":         {change(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"a later EDNS":  {change(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		"root":          {change(func(m *dns.Msg) { m.Question[0].Name = "." }), dns.RcodeServerFailure}, // asked of nobody here
		"dots in label": {change(func(m *dns.Msg) { m.Question[0].Name = `my\.web.` }), dns.RcodeServerFailure},
	} {
		conn := c.dial("udp")
		if _, err := conn.Conn.Write(q.query); err != nil {
			t.Fatal(err)
		}
		if q.want == -1 { // what follows is answered first, then
			if _, err := conn.Conn.Write(good); err != nil {
				t.Fatal(err)
			}
		}
		m, err := conn.ReadMsg()
		if err != nil {
			t.Fatal(name, err)
		}
		got := m.Rcode
		if m.Id == good2id(good) && q.want == -1 {
			got = -1
		}
		if got != q.want {
			t.Errorf("%s: %v", name, m)
		}
	}
	m := client{t: t, path: path, edns: 4096}.ask("udp", "my_web", dns.TypeA)
	if o := m.IsEdns0(); o == nil || o.UDPSize() != ednsSize || len(m.Answer) != 1 {
		t.Error("EDNS is not answered with EDNS", m)
	}
}

func good2id(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

func TestManyTasks(t *testing.T) {
	n := Network{Name: "net", Services: []Service{{Name: "web", VIP: addr("10.1.200.1")}}}
	for i := range 100 {
		n.Services[0].Tasks = append(n.Services[0].Tasks, Task{ID: taskID(i), Slot: uint64(i + 1), Addr: netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), Serving: true})
	}
	s, path := newServer(t), newSpace(t)
	if err := s.Open("t1", path, NewTable([]Network{n}), nil); err != nil {
		t.Fatal(err)
	}
	c := client{t: t, path: path}
	m := c.ask("udp", "tasks.web", dns.TypeA)
	// As much as fits, for clients that do not ask again.
	m.Compress = true
	if b, _ := m.Pack(); !m.Truncated || len(m.Answer) < 20 || len(b) > dns.MinMsgSize {
		t.Errorf("%d answers in %d bytes, truncated %v", len(m.Answer), len(b), m.Truncated)
	}
	if m := c.ask("tcp", "tasks.web", dns.TypeA); m.Truncated || len(m.Answer) != 100 {
		t.Error("over TCP", m)
	}
	c.edns = 4096
	m = c.ask("udp", "tasks.web", dns.TypeA)
	if m.Truncated || len(m.Answer) != 100 || m.IsEdns0() == nil {
		t.Error("with EDNS", m)
	}
	first := map[string]bool{}
	for range 20 {
		first[c.ask("udp", "tasks.web", dns.TypeA).Answer[0].String()] = true
	}
	if len(first) < 5 {
		t.Error("answers are not shuffled", first)
	}
}

func TestZoneChangesAreSeenByTheNextQuery(t *testing.T) {
	s, path := newServer(t), newSpace(t)
	n := front()
	c := client{t: t, path: path}
	for i := range 5 {
		n.Services[0].VIP = netip.AddrFrom4([4]byte{10, 1, 200, byte(i)})
		if err := s.Open("t1", path, NewTable([]Network{n}), nil); err != nil {
			t.Fatal(err)
		}
		if got, want := show(c.ask("udp", "web", dns.TypeA)), fmt.Sprintf("NOERROR 10.1.200.%d", i); got != want {
			t.Error(got, want)
		}
	}
	if n := s.Stats().Tasks; n != 1 {
		t.Error(n)
	}
}

func TestEveryTaskHasItsOwnNames(t *testing.T) {
	s := newServer(t)
	a, b := newSpace(t), newSpace(t)
	if err := s.Open("a", a, NewTable([]Network{front()}), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Open("b", b, NewTable([]Network{back()}), nil); err != nil {
		t.Fatal(err)
	}
	ca, cb := client{t: t, path: a}, client{t: t, path: b}
	for range 3 {
		if got := show(ca.ask("udp", "my_web", dns.TypeA)); got != "NOERROR 10.1.200.1" {
			t.Error(got)
		}
		if got := show(cb.ask("udp", "my_web", dns.TypeA)); got != "NXDOMAIN" {
			t.Error(got)
		}
		if got := show(cb.ask("udp", "db", dns.TypeA)); got != "NOERROR 10.2.200.2" {
			t.Error(got)
		}
	}
	// Nothing listens on the host's side.
	if c, err := net.DialTimeout("tcp4", address.String(), time.Second); err == nil {
		c.Close()
		t.Error("the host answers")
	}
}

// sockets are what listens or is connected on the resolver's address.
func sockets(t testing.TB, path string) string {
	t.Helper()
	var out []byte
	err := nsfs.In(path, func() error {
		out, _ = exec.Command("sh", "-c", "cat /proc/thread-self/net/udp /proc/thread-self/net/tcp | grep -i ' 0B00007F:0035 ' | grep -v ' 06 '").Output() // grep fails when it finds none
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(out))
}

func TestCloseFreesTheSocketsAndARestartWorksAtOnce(t *testing.T) {
	path := newSpace(t)
	table := NewTable([]Network{front()})
	c := client{t: t, path: path}
	for i := range 3 {
		s := newServer(t)
		if err := s.Open("t1", path, table, nil); err != nil {
			t.Fatal(i, err)
		}
		conn := c.dial("tcp") // the server closes it first: it lingers in TIME-WAIT on the server's address
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		if m, err := conn.ReadMsg(); err != nil || show(m) != "NOERROR 10.1.200.1" {
			t.Fatal(m, err)
		}
		c.ask("udp", "web", dns.TypeA)
		if i%2 == 0 {
			s.Close("t1")
		} else {
			s.Shutdown()
		}
		s.Close("t1")
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.ReadMsg(); err == nil {
			t.Error("the connection is still open")
		}
		if got := sockets(t, path); got != "" && !strings.Contains(got, " 05 ") && !strings.Contains(got, " 04 ") {
			t.Errorf("left open:\n%s", got)
		}
		if s.Stats().Tasks != 0 {
			t.Error(s.Stats())
		}
	}
}

func TestNamespaceMadeAnew(t *testing.T) {
	s := newServer(t)
	table := NewTable([]Network{front()})
	path := filepath.Join(t.TempDir(), "ns")
	t.Cleanup(func() { _ = nsfs.Remove(path) })
	if err := s.Open("t1", path, table, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
	for i := range 3 {
		ns, h, err := nsfs.Make(path)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := s.Open("t1", path, table, nil); err == nil || !strings.Contains(err.Error(), "loopback") {
				t.Error(err)
			}
		}
		lo, err := h.LinkByName("lo")
		if err == nil {
			err = h.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
		_ = ns.Close()
		if err := s.Open("t1", path, table, nil); err != nil {
			t.Fatal(err)
		}
		if got := show(client{t: t, path: path}.ask("udp", "web", dns.TypeA)); got != "NOERROR 10.1.200.1" {
			t.Error(i, got)
		}
		if err := nsfs.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPortTaken(t *testing.T) {
	s, path := newServer(t), newSpace(t)
	var l net.Listener
	if err := nsfs.In(path, func() (err error) { l, err = net.Listen("tcp4", ":53"); return err }); err != nil {
		t.Fatal(err)
	}
	err := s.Open("t1", path, NewTable(nil), nil)
	if err == nil || !strings.Contains(err.Error(), "port 53") {
		t.Error(err)
	}
	_ = l.Close()
	if err := s.Open("t1", path, NewTable(nil), nil); err != nil {
		t.Error(err)
	}
}

func TestTCPConnections(t *testing.T) {
	s, path := newServer(t), newSpace(t)
	if err := s.Open("t1", path, NewTable([]Network{front()}), nil); err != nil {
		t.Fatal(err)
	}
	c := client{t: t, path: path}
	conn := c.dial("tcp")
	for range 300 { // one after the other, as long as the client likes
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		if m, err := conn.ReadMsg(); err != nil || show(m) != "NOERROR 10.1.200.1" {
			t.Fatal(m, err)
		}
	}
	for range maxConns { // the one above is among them
		_ = c.dial("tcp")
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		over := c.dial("tcp")
		_ = over.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, err := over.ReadMsg()
		if err != nil && !strings.Contains(err.Error(), "timeout") {
			break // closed
		}
		if time.Now().After(deadline) {
			t.Fatal("any number of connections is accepted", err)
		}
	}
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	if m, err := conn.ReadMsg(); err != nil || show(m) != "NOERROR 10.1.200.1" {
		t.Error("one that was there before is not served any more", m, err)
	}
}
