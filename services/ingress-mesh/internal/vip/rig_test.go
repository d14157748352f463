package vip

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m, nil, "nft", "ip", "ping", "conntrack") }

// host is a namespace with an address on a common bridge: a task.
type host struct {
	t    testing.TB
	path string
	ip   netip.Addr
	ip6  netip.Addr
}

const port = 8080

func v4(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }
func v6(i int) netip.Addr {
	b := netip.MustParseAddr("fd00:1::").As16()
	b[14], b[15] = byte(i>>8), byte(i)
	return netip.AddrFrom16(b)
}

func newSpace(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	ns, h, err := nsfs.Make(path)
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	_ = ns.Close()
	t.Cleanup(func() { _ = nsfs.Remove(path) })
	return path
}

var links int

// newHosts makes n tasks on one bridge; the i-th has addresses v4(i+1) and v6(i+1), and all but the first serve.
func newHosts(t testing.TB, n int) []*host {
	t.Helper()
	sh(t, "ip link add br0 type bridge && ip link set br0 up && ip link set lo up")
	t.Cleanup(func() { sh(t, "ip link del br0") })
	var out []*host
	for i := range n {
		h := &host{t: t, path: newSpace(t), ip: v4(i + 1), ip6: v6(i + 1)}
		links++ // a namespace, and a link in it, may outlive its test for a moment
		link := fmt.Sprintf("p%d", links)
		sh(t, fmt.Sprintf("ip link add %s type veth peer name eth1 && ip link set %s master br0 up", link, link))
		sh(t, "ip link set eth1 netns "+h.path)
		h.sh(fmt.Sprintf("ip link set lo up && ip addr add %s/16 dev eth1 && ip addr add %s/64 dev eth1 nodad && ip link set eth1 up", h.ip, h.ip6))
		if i > 0 {
			h.serve()
		}
		out = append(out, h)
	}
	return out
}

func sh(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// in runs f in the task's namespace.
func (h *host) in(f func() error) {
	h.t.Helper()
	if err := nsfs.In(h.path, f); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) try(script string) (out string, err error) {
	nerr := nsfs.In(h.path, func() error {
		var b []byte
		b, err = exec.Command("sh", "-ec", script).CombinedOutput()
		out = string(b)
		return nil
	})
	if nerr != nil {
		h.t.Fatal(nerr)
	}
	return out, err
}

func (h *host) sh(script string) string {
	h.t.Helper()
	out, err := h.try(script)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// serve answers on TCP and UDP with the task's address and the client's as it sees it, once per line or datagram.
func (h *host) serve() {
	h.t.Helper()
	var l net.Listener
	var pc net.PacketConn
	h.in(func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			pc, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		}
		return err
	})
	h.t.Cleanup(func() { _ = pc.Close() })
	name := h.ip.String()
	nstest.Accept(h.t, l, func(c net.Conn) { // a client that is gone may never have said so
		b := make([]byte, 64)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = fmt.Fprintf(c, "%s %s", name, host)
		}
	})
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			_, _ = pc.WriteTo([]byte(name+" "+host), from)
		}
	}()
}

// dial opens a connection from the task.
func (h *host) dial(network string, to netip.Addr) (c net.Conn, err error) {
	nerr := nsfs.In(h.path, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		c, err = new(net.Dialer).DialContext(ctx, network, netip.AddrPortFrom(to, port).String())
		return nil
	})
	if nerr != nil {
		h.t.Fatal(nerr)
	}
	return c, err
}

// ask gives which task answered on a connection and whom it saw.
func ask(c net.Conn) (task, client string, err error) {
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, "x"); err != nil {
		return "", "", err
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err != nil {
		return "", "", err
	}
	task, client, _ = strings.Cut(string(b[:n]), " ")
	return task, client, nil
}

// get asks once on a new connection.
func (h *host) get(network string, to netip.Addr) (task, client string, err error) {
	c, err := h.dial(network, to)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return ask(c)
}

// getKept is get with a connection that stays open until the test's end: no later one has its port, and every one is
// new to the kernel.
func (h *host) getKept(network string, to netip.Addr) (task, client string, err error) {
	c, err := h.dial(network, to)
	if err != nil {
		return "", "", err
	}
	h.t.Cleanup(func() { _ = c.Close() })
	return ask(c)
}

func (h *host) apply(want ...Service) {
	h.t.Helper()
	if err := Apply(h.path, want); err != nil {
		h.t.Fatal(err)
	}
}

// generation counts the changes of the namespace's ruleset.
func generation(t testing.TB, path string) uint32 {
	t.Helper()
	k, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	g, err := k.generation()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// service has virtual addresses v4(200+i) and v6(200+i).
func service(i int, tasks ...*host) Service {
	s := Service{VIP: v4(200 + i), VIP6: v6(200 + i), Service: fmt.Sprintf("svc%d", i)}
	for _, h := range tasks {
		s.Backends, s.Backends6 = append(s.Backends, h.ip), append(s.Backends6, h.ip6)
	}
	return s
}
