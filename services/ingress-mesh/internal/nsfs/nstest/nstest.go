// Package nstest is for tests of the data plane: hosts and tasks as network namespaces, a wire between the hosts that
// can be listened to, and connections between them.
//
// It owns what it makes and removes it when the test ends. It refuses to run in the machine's own namespaces: Main
// moves the tests into namespaces of their own first, so that a test that is killed leaves nothing either.
package nstest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"skep.dev/libs/leaktest"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

const inside = "SKEP_NSTEST_INSIDE"

// Main is for TestMain: it runs the tests again as a child in network and mount namespaces of its own, so that nothing
// they do reaches the host, and everything goes away with the child. In there, before prepares what they need; nil is
// nothing. It refuses to begin without root or without one of the programs that the tests call.
func Main(m *testing.M, before func() error, programs ...string) {
	if os.Getenv(inside) != "" {
		err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
		if err == nil && before != nil {
			err = before()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "make namespaces of the tests' own:", err)
			os.Exit(1)
		}
		leaktest.Main(m)
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make network namespaces: run them as root")
		os.Exit(1)
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			fmt.Fprintf(os.Stderr, "these tests call %s (Debian: nftables, iptables, iproute2, conntrack, iputils-ping): %v\n", p, err)
			os.Exit(1)
		}
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about this thread
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Must ends the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Await waits until something is so.
func Await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// NS is a namespace of a test: a host, a task, or the wire between hosts.
type NS struct {
	Path   string
	FD     netns.NsHandle
	Handle *netlink.Handle
}

// New makes a namespace that goes with the test.
func New(t testing.TB, path string) *NS {
	t.Helper()
	Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	fd, h, err := nsfs.Make(path)
	Must(t, err)
	n := &NS{path, fd, h}
	t.Cleanup(func() {
		n.close()
		if err := nsfs.Remove(path); err != nil {
			t.Error(err)
		}
	})
	lo, err := h.LinkByName("lo")
	Must(t, err)
	Must(t, h.LinkSetUp(lo))
	return n
}

// Open looks into a namespace that somebody else keeps.
func Open(t testing.TB, path string) *NS {
	t.Helper()
	fd, h, err := nsfs.Open(path)
	Must(t, err)
	n := &NS{path, fd, h}
	t.Cleanup(n.close)
	return n
}

func (n *NS) close() {
	n.Handle.Close()
	_ = n.FD.Close()
}

// In runs f with its thread in the namespace and ends the test on an error.
func (n *NS) In(t testing.TB, f func() error) {
	t.Helper()
	Must(t, nsfs.Inside(n.FD, f))
}

// Index is that of the device with a name.
func (n *NS) Index(t testing.TB, name string) int { t.Helper(); return n.Link(t, name).Attrs().Index }

// MTU is that of the device with a name.
func (n *NS) MTU(t testing.TB, name string) int { t.Helper(); return n.Link(t, name).Attrs().MTU }

// Link is the device with a name.
func (n *NS) Link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := n.Handle.LinkByName(name)
	if err != nil {
		t.Fatalf("%s in %s: %v", name, n.Path, err)
	}
	return l
}

// Fabric is hosts on one wire.
type Fabric struct {
	Dir   string
	Wire  *NS // with the bridge br0 and a port p<i> for each host
	Hosts []*Host
}

// Host is a namespace with eth0 on the wire.
type Host struct {
	*NS
	Dir  string
	Addr netip.Addr
}

// NewFabric makes hosts 10.90.0.<i>, or fd90::<i>, counted from 1.
func NewFabric(t testing.TB, hosts int, six bool) *Fabric {
	t.Helper()
	f := &Fabric{Dir: t.TempDir()}
	f.Wire = New(t, f.Dir+"/wire")
	a := netlink.NewLinkAttrs()
	a.Name, a.Flags = "br0", net.FlagUp
	Must(t, f.Wire.Handle.LinkAdd(&netlink.Bridge{LinkAttrs: a}))
	for i := 1; i <= hosts; i++ {
		dir := fmt.Sprintf("%s/h%d", f.Dir, i)
		h := &Host{NS: New(t, dir+"/ns"), Dir: dir}
		a := netlink.NewLinkAttrs()
		a.Name, a.MTU, a.Flags, a.MasterIndex = fmt.Sprintf("p%d", i), 1500, net.FlagUp, f.Wire.Index(t, "br0")
		Must(t, f.Wire.Handle.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(h.FD)), PeerMTU: 1500, PeerTxQLen: -1}))
		h.Addr = netip.AddrFrom4([4]byte{10, 90, 0, byte(i)})
		bits := 24
		if six {
			h.Addr, bits = netip.MustParseAddr(fmt.Sprintf("fd90::%d", i)), 64
			h.In(t, func() error { return nsfs.Setting("net/ipv6/conf/eth0/disable_ipv6", "0") })
		}
		eth0 := h.Link(t, "eth0")
		Must(t, h.Handle.LinkSetUp(eth0))
		Must(t, h.Handle.AddrAdd(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: h.Addr.AsSlice(), Mask: net.CIDRMask(bits, h.Addr.BitLen())}, Flags: unix.IFA_F_NODAD}))
		f.Hosts = append(f.Hosts, h)
	}
	return f
}
