package dns

import (
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/zap/zaptest"

	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

func TestMain(m *testing.M) {
	nstest.Main(m, func() error { return exec.Command("ip", "link", "set", "lo", "up").Run() }, "ip")
}

// newSpace makes a namespace with its loopback up.
func newSpace(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	ns, h, err := nsfs.Make(path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	defer ns.Close()
	t.Cleanup(func() { _ = nsfs.Remove(path) })
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func newServer(t testing.TB, upstreams ...netip.AddrPort) *Server {
	cfg := Config{Log: zaptest.NewLogger(t), Timeout: 300 * time.Millisecond, Upstreams: func() []netip.AddrPort { return upstreams }}
	if _, ok := t.(*testing.B); ok {
		cfg.Log = nil
	}
	s := New(cfg)
	t.Cleanup(s.Shutdown)
	return s
}

// client asks inside a namespace.
type client struct {
	t    testing.TB
	path string
	edns uint16
}

func (c client) dial(network string) *dns.Conn {
	c.t.Helper()
	var conn net.Conn
	err := nsfs.In(c.path, func() (err error) {
		conn, err = net.DialTimeout(network, address.String(), time.Second)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize}
}

func (c client) try(network, name string, kind uint16) (*dns.Msg, error) {
	c.t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	if c.edns > 0 {
		m.SetEdns0(c.edns, false)
	}
	conn := c.dial(network)
	defer conn.Close()
	r, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).ExchangeWithConn(m, conn)
	return r, err
}

func (c client) ask(network, name string, kind uint16) *dns.Msg {
	c.t.Helper()
	r, err := c.try(network, name, kind)
	if err != nil {
		c.t.Fatalf("%s %s %s: %v", network, name, dns.TypeToString[kind], err)
	}
	return r
}

// show writes an answer as one line: the code and the data, sorted.
func show(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		out = append(out, strings.Fields(rr.String())[4])
	}
	slices.Sort(out)
	return strings.TrimSpace(dns.RcodeToString[m.Rcode] + " " + strings.Join(out, " "))
}

// upstream is somebody else's name server, on the host's loopback.
type upstream struct {
	addr netip.AddrPort
	mu   sync.Mutex
	saw  []string // transport and name
}

// newUpstream answers by f; nil says nothing.
func newUpstream(t testing.TB, f func(q *dns.Msg, tcp bool) *dns.Msg) *upstream {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: netip.MustParseAddrPort(pc.LocalAddr().String())}
	handler := func(tcp bool) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			u.mu.Lock()
			u.saw = append(u.saw, w.LocalAddr().Network()+" "+q.Question[0].Name)
			u.mu.Unlock()
			if m := f(q, tcp); m != nil {
				_ = w.WriteMsg(m)
			}
		}
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler(false), UDPSize: dns.MaxMsgSize}, {Listener: l, Handler: handler(true)}} {
		started, ended := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(ended); _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown(); <-ended })
	}
	return u
}

func (u *upstream) seen() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.saw)
}

// records answers with n addresses.
func records(q *dns.Msg, n int) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	for i := range n {
		m.Answer = append(m.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, byte(i>>8), byte(i)),
		})
	}
	return m
}

func plain(q *dns.Msg, _ bool) *dns.Msg { return records(q, 1) }
