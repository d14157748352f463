package antispoof

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep.dev/libs/ipam"
	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m, nil, "nft") }

// rig is a bridge with the links of tasks a and b, one of nobody's, and one to other nodes.
type rig struct {
	*nstest.NS
	t     testing.TB
	table *Table
	ends  map[string]*end
}

// end is what is at the other side of a port: a raw socket there.
type end struct {
	Port
	ns  *nstest.NS
	mac [6]byte
	fd  int
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{NS: nstest.New(t, dir+"/bridge"), t: t, ends: map[string]*end{}}
	r.In(t, func() error { return nsfs.Setting("net/ipv6/conf/default/disable_ipv6", "1") }) // it says nothing by itself
	br, off := netlink.NewLinkAttrs(), false
	br.Name, br.Flags = "br0", net.FlagUp
	nstest.Must(t, r.Handle.LinkAdd(&netlink.Bridge{LinkAttrs: br, MulticastSnooping: &off}))
	for i, name := range []string{"ska", "skb", "other", "vx0"} {
		task := nstest.New(t, dir+"/"+name)
		task.In(t, func() error { return nsfs.Setting("net/ipv6/conf/default/disable_ipv6", "1") })
		e := &end{ns: task, Port: Port{Link: name, Addr: netip.AddrFrom4([4]byte{10, 7, 0, byte(2 + i)}), Addr6: netip.MustParseAddr(fmt.Sprintf("fd07::%d", 2+i))}}
		e.mac = ipam.MAC(e.Addr)
		a := netlink.NewLinkAttrs()
		a.Name, a.Flags, a.MasterIndex = name, net.FlagUp, r.Index(t, "br0")
		nstest.Must(t, r.Handle.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "eth1", PeerNamespace: netlink.NsFd(int(task.FD)), PeerHardwareAddr: e.mac[:], PeerTxQLen: -1}))
		nstest.Must(t, r.Handle.LinkSetLearning(r.Link(t, name), false)) // or a lie changes where the next frame goes
		nstest.Must(t, task.Handle.LinkSetUp(task.Link(t, "eth1")))
		task.In(t, func() (err error) {
			all := uint16(unix.ETH_P_ALL)
			if e.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all<<8|all>>8)); err != nil {
				return err
			}
			return errors.Join(unix.Bind(e.fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: task.Index(t, "eth1")}),
				unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
		})
		t.Cleanup(func() { _ = unix.Close(e.fd) })
		r.ends[name] = e
	}
	for name := range r.ends { // a port that is just up drops
		nstest.Await(t, "port "+name, func() bool {
			l, err := r.Handle.LinkByName(name)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		})
	}
	r.table = New(r.FD, "vx0")
	t.Cleanup(r.table.Close)
	return r
}

func (r *rig) apply(names ...string) string {
	r.t.Helper()
	found, err := r.table.Apply(r.ports(names...))
	nstest.Must(r.t, err)
	return found
}

func (r *rig) ports(names ...string) (out []Port) {
	for _, n := range names {
		out = append(out, r.ends[n].Port)
	}
	return out
}

// arrives reports whether a frame that enters by one port leaves by another. After it goes one that is let through in
// any case, so that a frame which does not come is not waited for.
func (r *rig) arrives(from, to string, frame []byte) bool {
	r.t.Helper()
	f, x := r.ends[from], r.ends[to]
	last := f.ip4(x, f.mac, f.Addr, []byte("the last one"))
	for _, b := range [][]byte{frame, last} {
		if _, err := unix.Write(f.fd, b); err != nil {
			r.t.Fatalf("send by %s: %v", from, err)
		}
	}
	got, b := false, make([]byte, 4096)
	for {
		n, from, err := unix.Recvfrom(x.fd, b, 0)
		if err != nil {
			r.t.Fatalf("what is always let through did not come to %s: %v\n%s", to, err, r.nft("nft list ruleset"))
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if bytes.Equal(b[:n], last) {
			return got
		}
		// The kernel takes a tag off before this socket has the frame.
		got = got || bytes.Equal(b[:n], frame) || len(frame) > 18 && bytes.Equal(b[12:n], frame[16:])
	}
}

func ether(to, from [6]byte, kind uint16, body []byte) []byte {
	out := append(append(bytes.Clone(to[:]), from[:]...), byte(kind>>8), byte(kind))
	return append(out, body...) // not filled up: bridged packets may pass iptables, which cuts what is behind them off
}

func ip4(from, to netip.Addr, fragment uint16, body []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
	binary.BigEndian.PutUint16(h[6:], fragment)
	copy(h[12:], from.AsSlice())
	copy(h[16:], to.AsSlice())
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum>>16+sum)) // bridged packets may pass iptables, which drops wrong ones
	return append(h, body...)
}

func ip6(from, to netip.Addr, next byte, body []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, next, 255
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	copy(h[8:], from.AsSlice())
	copy(h[24:], to.AsSlice())
	return append(h, body...)
}

func (e *end) ip4(to *end, mac [6]byte, from netip.Addr, body []byte) []byte {
	return ether(to.mac, mac, unix.ETH_P_IP, ip4(from, to.Addr, 0, append([]byte{0x13, 0x88, 0, 9, 0, 40, 0, 0}, body...)))
}

func arp(op byte, mac [6]byte, sender netip.Addr, target netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac[:]...)
	b = append(append(b, sender.AsSlice()...), make([]byte, 6)...)
	return append(b, target.AsSlice()...)
}

// nd is a message of neighbour discovery about target.
func nd(kind byte, target netip.Addr) []byte {
	return append(append([]byte{kind, 0, 0, 0, 0x20, 0, 0, 0}, target.AsSlice()...), 2, 1, 2, 0x42, 10, 7, 0, 2)
}

// TestATaskSendsAsItselfAlone is every kind of frame a task with CAP_NET_RAW could lie by.
func TestATaskSendsAsItselfAlone(t *testing.T) {
	r := newRig(t)
	a, b := r.ends["ska"], r.ends["skb"]
	gateway, none, none6 := netip.MustParseAddr("10.7.0.1"), netip.IPv4Unspecified(), netip.IPv6Unspecified()
	mine6, all6 := linkLocal(a.mac), netip.MustParseAddr("ff02::1")
	broadcast, odd := [6]byte{255, 255, 255, 255, 255, 255}, [6]byte{2, 0x43, 10, 7, 0, 2}
	tagged := func(tag uint16, frame []byte) []byte {
		return append(append(bytes.Clone(frame[:12]), byte(tag>>8), byte(tag), 0, 7), frame[12:]...)
	}
	frames := map[string]struct {
		frame []byte
		right bool
	}{
		"its own packet":                     {a.ip4(b, a.mac, a.Addr, nil), true},
		"another task's address":             {a.ip4(b, a.mac, b.Addr, nil), false},
		"the gateway's address":              {a.ip4(b, a.mac, gateway, nil), false},
		"an address of the world":            {a.ip4(b, a.mac, netip.MustParseAddr("192.0.2.1"), nil), false},
		"another task's MAC":                 {a.ip4(b, b.mac, a.Addr, nil), false},
		"another task's MAC and address":     {a.ip4(b, b.mac, b.Addr, nil), false},
		"a MAC of no task":                   {a.ip4(b, odd, a.Addr, nil), false},
		"no address: a request for one":      {ether(broadcast, a.mac, unix.ETH_P_IP, ip4(none, netip.MustParseAddr("255.255.255.255"), 0, make([]byte, 40))), false},
		"its own fragment":                   {ether(b.mac, a.mac, unix.ETH_P_IP, ip4(a.Addr, b.Addr, 0x2000, make([]byte, 40))), true},
		"a forged later fragment":            {ether(b.mac, a.mac, unix.ETH_P_IP, ip4(gateway, b.Addr, 0x0005, make([]byte, 40))), false},
		"a question for an address":          {ether(broadcast, a.mac, unix.ETH_P_ARP, arp(1, a.mac, a.Addr, b.Addr)), true},
		"its own answer":                     {ether(b.mac, a.mac, unix.ETH_P_ARP, arp(2, a.mac, a.Addr, b.Addr)), true},
		"an answer for another's address":    {ether(b.mac, a.mac, unix.ETH_P_ARP, arp(2, a.mac, gateway, b.Addr)), false},
		"an answer with another's MAC":       {ether(b.mac, a.mac, unix.ETH_P_ARP, arp(2, b.mac, a.Addr, b.Addr)), false},
		"an answer from another's MAC":       {ether(b.mac, b.mac, unix.ETH_P_ARP, arp(2, a.mac, a.Addr, b.Addr)), false},
		"a question that tells a lie":        {ether(broadcast, a.mac, unix.ETH_P_ARP, arp(1, a.mac, gateway, gateway)), false},
		"a question by nobody":               {ether(broadcast, a.mac, unix.ETH_P_ARP, arp(1, a.mac, none, b.Addr)), false},
		"ARP of another hardware":            {ether(b.mac, a.mac, unix.ETH_P_ARP, append([]byte{0, 6}, arp(2, a.mac, a.Addr, b.Addr)[2:]...)), false},
		"ARP of another length":              {ether(b.mac, a.mac, unix.ETH_P_ARP, append([]byte{0, 1, 8, 0, 8, 4}, arp(2, a.mac, a.Addr, b.Addr)[6:]...)), false},
		"a short ARP":                        {ether(b.mac, a.mac, unix.ETH_P_ARP, make([]byte, 10)), false},
		"reverse ARP":                        {ether(broadcast, a.mac, 0x8035, arp(3, a.mac, a.Addr, b.Addr)), false},
		"its own packet, IPv6":               {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(a.Addr6, b.Addr6, unix.IPPROTO_UDP, make([]byte, 20))), true},
		"its own packet, link-local":         {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(mine6, b.Addr6, unix.IPPROTO_UDP, make([]byte, 20))), true},
		"another task's address, IPv6":       {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(b.Addr6, b.Addr6, unix.IPPROTO_UDP, make([]byte, 20))), false},
		"another task's address, link-local": {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(linkLocal(b.mac), b.Addr6, unix.IPPROTO_UDP, make([]byte, 20))), false},
		"another task's MAC, IPv6":           {ether(b.mac, b.mac, unix.ETH_P_IPV6, ip6(a.Addr6, b.Addr6, unix.IPPROTO_UDP, make([]byte, 20))), false},
		"no address, IPv6":                   {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(none6, all6, unix.IPPROTO_ICMPV6, nd(135, b.Addr6))), false},
		"a forged later fragment, IPv6":      {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(b.Addr6, b.Addr6, 44, append([]byte{17, 0, 0, 8, 0, 0, 0, 1}, make([]byte, 16)...))), false},
		"its own advertisement":              {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(a.Addr6, b.Addr6, unix.IPPROTO_ICMPV6, nd(136, a.Addr6))), true},
		"a solicitation":                     {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(a.Addr6, b.Addr6, unix.IPPROTO_ICMPV6, nd(135, b.Addr6))), true},
		"an advertisement for another's":     {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(a.Addr6, all6, unix.IPPROTO_ICMPV6, nd(136, b.Addr6))), false},
		"one behind a hop-by-hop header":     {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(a.Addr6, all6, 0, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, nd(136, b.Addr6)...))), false},
		"a router advertisement":             {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(mine6, all6, unix.IPPROTO_ICMPV6, nd(134, a.Addr6))), false},
		"a redirect":                         {ether(b.mac, a.mac, unix.ETH_P_IPV6, ip6(mine6, b.Addr6, unix.IPPROTO_ICMPV6, nd(137, a.Addr6))), false},
		"a VLAN tag":                         {tagged(0x8100, a.ip4(b, a.mac, a.Addr, nil)), false},
		"a VLAN tag before a lie":            {tagged(0x8100, a.ip4(b, a.mac, gateway, nil)), false},
		"two VLAN tags":                      {tagged(0x88a8, tagged(0x8100, a.ip4(b, a.mac, gateway, nil))), false},
		"another protocol":                   {ether(b.mac, a.mac, 0x88b5, []byte("skep")), false},
		"spanning tree":                      {ether([6]byte{1, 0x80, 0xc2}, a.mac, 38, []byte{0x42, 0x42, 3}), false},
	}
	for name, c := range frames {
		if !r.arrives("ska", "skb", c.frame) {
			t.Errorf("%s: does not arrive on an open bridge: this shows nothing", name)
		}
	}
	r.apply("ska", "skb")
	for name, c := range frames {
		if got := r.arrives("ska", "skb", c.frame); got != c.right {
			t.Errorf("%s: arrives %v", name, got)
		}
	}
	// A link that is in no set sends nothing; one that is no task's is none of ours.
	r.apply("skb")
	b.reads(t, a.ip4(b, a.mac, a.Addr, nil), r.ends["other"], a)
}

// reads: what lost sends does not come, and what fine sends does.
func (e *end) reads(t *testing.T, lost []byte, fine, from *end) {
	t.Helper()
	last := fine.ip4(e, fine.mac, netip.MustParseAddr("192.0.2.1"), []byte("no task"))
	_, err := unix.Write(from.fd, lost)
	nstest.Must(t, err)
	_, err = unix.Write(fine.fd, last)
	nstest.Must(t, err)
	for b := make([]byte, 4096); ; {
		n, err := unix.Read(e.fd, b)
		nstest.Must(t, err)
		if bytes.Equal(b[:n], lost) {
			t.Fatal("a link that is in no set could send")
		}
		if bytes.Equal(b[:n], last) {
			return
		}
	}
}

// TestOtherNodesNameNobody: what comes by the port to other nodes is packets, and never who has an address.
func TestOtherNodesNameNobody(t *testing.T) {
	r := newRig(t)
	r.apply("ska", "skb")
	x, b := r.ends["vx0"], r.ends["skb"]
	for name, c := range map[string]struct {
		frame []byte
		right bool
	}{
		"a packet":                  {x.ip4(b, x.mac, x.Addr, nil), true},
		"a packet, IPv6":            {ether(b.mac, x.mac, unix.ETH_P_IPV6, ip6(x.Addr6, b.Addr6, unix.IPPROTO_UDP, make([]byte, 20))), true},
		"an echo request, IPv6":     {ether(b.mac, x.mac, unix.ETH_P_IPV6, ip6(x.Addr6, b.Addr6, unix.IPPROTO_ICMPV6, nd(128, x.Addr6))), true},
		"an answer":                 {ether(b.mac, x.mac, unix.ETH_P_ARP, arp(2, x.mac, r.ends["ska"].Addr, b.Addr)), false},
		"a question that tells":     {ether(b.mac, x.mac, unix.ETH_P_ARP, arp(1, x.mac, r.ends["ska"].Addr, b.Addr)), false},
		"a neighbour advertisement": {ether(b.mac, x.mac, unix.ETH_P_IPV6, ip6(x.Addr6, b.Addr6, unix.IPPROTO_ICMPV6, nd(136, x.Addr6))), false},
		"a solicitation that tells": {ether(b.mac, x.mac, unix.ETH_P_IPV6, ip6(x.Addr6, b.Addr6, unix.IPPROTO_ICMPV6, nd(135, b.Addr6))), false},
		"a router advertisement":    {ether(b.mac, x.mac, unix.ETH_P_IPV6, ip6(x.Addr6, b.Addr6, unix.IPPROTO_ICMPV6, nd(134, x.Addr6))), false},
	} {
		if got := r.arrives("vx0", "skb", c.frame); got != c.right {
			t.Errorf("%s: arrives %v", name, got)
		}
	}
}

func (r *rig) nft(line string) string {
	r.t.Helper()
	var out []byte
	err := nsfs.Inside(r.FD, func() (err error) {
		out, err = exec.Command("sh", "-c", line).CombinedOutput()
		return err
	})
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// TestApplyPutsBack: whatever somebody else does to the table is said and undone, and what is right costs no write.
func TestApplyPutsBack(t *testing.T) {
	r := newRig(t)
	r.apply("ska", "skb")
	want := r.nft("nft list table bridge skep_ports")
	for _, did := range []string{
		"nft flush ruleset",
		"nft flush chain bridge skep_ports ports",
		"nft insert rule bridge skep_ports ports accept",
		"nft add table bridge skep_ports '{ flags dormant; }'",
		"nft 'add chain bridge skep_ports ports { policy drop; }'",
		"nft delete table bridge skep_ports; nft add table bridge skep_ports",
		"nft flush set bridge skep_ports own",
		"nft 'add element bridge skep_ports own6 { \"skx\" . 02:42:0a:07:00:09 . fd07::9 }'",
	} {
		r.nft(did)
		if findings, err := r.table.Verify(r.ports("ska", "skb")); err != nil || len(findings) != 1 {
			t.Errorf("%s: verify found %q %v", did, findings, err)
		}
		r.apply("ska", "skb")
		if is := r.nft("nft list table bridge skep_ports"); is != want {
			t.Errorf("after %s:\n%s\nand not\n%s", did, is, want)
		}
		if findings, err := r.table.Verify(r.ports("ska", "skb")); err != nil || len(findings) != 0 {
			t.Errorf("%s: verify found %q %v once it was mended", did, findings, err)
		}
	}
	for range 3 {
		before := r.table.Writes()
		if found := r.apply("ska", "skb"); found != "" || r.table.Writes() != before {
			t.Errorf("what is right was written again: %q", found)
		}
		r.table.Close() // as a new process
	}
	var many []Port
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{10, 8, byte(i >> 8), byte(i)})
		many = append(many, Port{Link: fmt.Sprintf("sk%d", i), Addr: a, Addr6: ipam.NodeAddr6(a)})
	}
	_, err := r.table.Apply(many)
	nstest.Must(t, err)
	if n := strings.Count(r.nft("nft list set bridge skep_ports own"), "02:42:0a:08"); n != 1000 {
		t.Errorf("%d of 1000 links are in the set", n)
	}
	nstest.Must(t, r.table.Remove())
	nstest.Must(t, r.table.Remove())
	if is := r.nft("nft list ruleset"); is != "" {
		t.Errorf("left behind:\n%s", is)
	}
}
