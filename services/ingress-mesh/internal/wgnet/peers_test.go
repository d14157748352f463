package wgnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestPlanPeers(t *testing.T) {
	a, b := wgtypes.Key{1}, wgtypes.Key{2}
	block, other := netip.MustParsePrefix("10.7.0.16/28"), netip.MustParsePrefix("10.7.0.32/28")
	end, moved := netip.MustParseAddrPort("10.90.0.2:5000"), netip.MustParseAddrPort("10.90.0.9:5000")
	want := map[wgtypes.Key]Peer{a: {Endpoint: end, Blocks: []netip.Prefix{block}}}
	has := func(e netip.AddrPort, blocks ...netip.Prefix) []PeerState {
		return []PeerState{{PublicKey: a.String(), Endpoint: e, Blocks: blocks, Keepalive: true}}
	}
	asked := map[string]netip.AddrPort{a.String(): end}
	for _, c := range []struct {
		name  string
		have  []PeerState
		asked map[string]netip.AddrPort
		want  string
	}{
		{"right", has(end, block), asked, ""},
		{"right after a restart", has(end, block), nil, ""},
		{"new", nil, nil, "endpoint=10.90.0.2:5000\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=10.7.0.16/28\n"},
		{"removed by hand", nil, asked, "endpoint=10.90.0.2:5000\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=10.7.0.16/28\n"},
		{"the peer moved", has(moved, block), asked, ""},
		{"the peer was moved", has(moved, block), map[string]netip.AddrPort{a.String(): moved}, "update_only=true\nendpoint=10.90.0.2:5000\n"},
		{"unknown what was asked", has(moved, block), nil, "update_only=true\nendpoint=10.90.0.2:5000\n"},
		{"another block", has(end, other), asked, "update_only=true\nreplace_allowed_ips=true\nallowed_ip=10.7.0.16/28\n"},
		{"a block too many", has(end, block, other), asked, "update_only=true\nreplace_allowed_ips=true\nallowed_ip=10.7.0.16/28\n"},
	} {
		exp := c.want
		if exp != "" {
			exp = "public_key=" + hexOf(a) + "\n" + exp
		}
		if got := uapi(wgtypes.Config{Peers: planPeers(wgtypes.Key{}, want, c.have, c.asked)}); got != exp {
			t.Errorf("%s:\n%s\nwant:\n%s", c.name, got, exp)
		}
	}
	// It is the other's turn: then only a peer that has spoken is spoken to.
	if got := planPeers(wgtypes.Key{9}, want, nil, nil); len(got) != 1 || got[0].PersistentKeepaliveInterval != nil {
		t.Error(got)
	}
	silent := has(end, block)
	silent[0].Keepalive = false
	if got := planPeers(wgtypes.Key{9}, want, silent, asked); len(got) != 0 {
		t.Error(got)
	}
	silent[0].Handshake = time.Unix(1, 0)
	if got := planPeers(wgtypes.Key{9}, want, silent, asked); len(got) != 1 || got[0].PersistentKeepaliveInterval == nil || !got[0].UpdateOnly {
		t.Error(got)
	}
	stranger := append(has(end, block), PeerState{PublicKey: b.String()})
	if got, exp := uapi(wgtypes.Config{Peers: planPeers(wgtypes.Key{}, want, stranger, asked)}), "public_key="+hexOf(b)+"\nremove=true\n"; got != exp {
		t.Errorf("a peer nobody asked for:\n%s\nwant:\n%s", got, exp)
	}
}

func hexOf(k wgtypes.Key) string {
	const digits = "0123456789abcdef"
	var out []byte
	for _, c := range k {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

func TestParseUAPI(t *testing.T) {
	a := wgtypes.Key{1}
	peers, port, err := parseUAPI("private_key=00\nlisten_port=5000\npublic_key=" + hexOf(a) + "\nendpoint=[fd90::2]:7\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\n" +
		"tx_bytes=10\nrx_bytes=20\nallowed_ip=10.7.0.32/28\nallowed_ip=10.7.0.16/28\npublic_key=" + hexOf(wgtypes.Key{2}) + "\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\nerrno=0\n")
	if err != nil || port != 5000 || len(peers) != 2 {
		t.Fatal(peers, port, err)
	}
	p := peers[slices.IndexFunc(peers, func(p PeerState) bool { return p.PublicKey == a.String() })]
	if p.Endpoint.String() != "[fd90::2]:7" || !p.Handshake.Equal(time.Unix(5, 6)) || p.Sent != 10 || p.Received != 20 || p.Blocks[0].String() != "10.7.0.16/28" {
		t.Fatalf("%+v", p)
	}
	for _, bad := range []string{"public_key=zz\n", "listen_port=x\n", "public_key=" + hexOf(a) + "\nendpoint=x\n", "public_key=" + hexOf(a) + "\nallowed_ip=x\n"} {
		if _, _, err := parseUAPI(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// Who has a block, of peers in this order.
func TestBlocksAreApart(t *testing.T) {
	for _, c := range []struct{ peers, want string }{
		{"10.7.0.0/28|10.7.0.16/28", "10.7.0.0/28|10.7.0.16/28"},
		{"10.7.0.0/28|10.7.0.0/28", "10.7.0.0/28|"},
		{"10.7.0.0/28|10.7.0.8/32 10.7.0.16/28", "10.7.0.0/28|10.7.0.16/28"},
		{"10.7.0.8/32|10.7.0.0/28", "10.7.0.8/32|"},
		{"10.7.0.0/24|10.7.0.0/28|10.7.0.16/28", "10.7.0.0/24||"},
		{"10.7.0.16/28|10.7.0.0/24|10.7.0.16/28", "10.7.0.16/28||"},
		{"10.7.0.0/28 10.7.0.0/28|", "10.7.0.0/28|"},
		{"10.7.0.1/28|10.7.0.0/28", "10.7.0.0/28|"},
		{"10.7.0.0/28 fd07::a07:0/124|fd07::a07:1/128", "10.7.0.0/28 fd07::a07:0/124|"},
		{"10.8.0.0/28|fd08::/124|0.0.0.0/0|::/0", "|||"},
	} {
		n := Network{ID: "x", Subnet: netip.MustParsePrefix("10.7.0.0/16"), Subnet6: netip.MustParsePrefix("fd07::/64")}
		for i, text := range strings.Split(c.peers, "|") {
			p := Peer{Node: fmt.Sprint(i), PublicKey: wgtypes.Key{byte(i + 1)}.String()}
			for _, b := range strings.Fields(text) {
				p.Blocks = append(p.Blocks, netip.MustParsePrefix(b))
			}
			n.Peers = append(n.Peers, p)
		}
		got, _ := checkNetwork(n, wgtypes.Key{99})
		var have []string
		for i := range n.Peers {
			var words []string
			for _, b := range got[wgtypes.Key{byte(i + 1)}].Blocks {
				words = append(words, b.String())
			}
			have = append(have, strings.Join(words, " "))
		}
		if strings.Join(have, "|") != c.want {
			t.Errorf("%s gives %s, want %s", c.peers, strings.Join(have, "|"), c.want)
		}
	}
}

// An address that a peer has by itself goes before the block it is in, which stays its node's; of two that have one, or
// this node, the first has it.
func TestSingleAddresses(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	key := func(i byte) wgtypes.Key { return wgtypes.Key{i} }
	n := Network{ID: "x", Subnet: p("10.7.0.0/16"), Subnet6: p("fd07::/64"), Own: []netip.Addr{a("10.7.0.9")}, Peers: []Peer{
		{Node: "a", PublicKey: key(1).String(), Blocks: []netip.Prefix{p("10.7.0.0/28"), p("10.7.1.5/32")}},
		{Node: "b", PublicKey: key(2).String(), Blocks: []netip.Prefix{p("10.7.0.16/28")}, Addresses: []netip.Addr{a("10.7.0.3"), a("10.7.1.5"), a("fd07::15")}},
		{Node: "c", PublicKey: key(3).String(), Addresses: []netip.Addr{a("10.7.0.3"), a("10.7.0.9"), a("10.8.0.1")}},
	}}
	got, problems := checkNetwork(n, key(9))
	for i, want := range map[byte]string{1: "[10.7.0.0/28]", 2: "[10.7.0.3/32 10.7.0.16/28 10.7.1.5/32 fd07::15/128]", 3: "[]"} {
		if have := fmt.Sprint(got[key(i)].Blocks); have != want {
			t.Errorf("peer %d has %s, want %s", i, have, want)
		}
	}
	if len(problems) != 3 {
		t.Errorf("what is left out: %q", problems)
	}
}

// Whatever another node is said to have: the honest peers that come first are as they would be without it.
func FuzzPeers(f *testing.F) {
	f.Add("x", []byte{10, 7, 0, 16}, uint8(28), []byte{10, 90, 0, 2}, uint16(5000))
	f.Add(wgtypes.Key{1}.String(), []byte{10, 7, 0, 0}, uint8(8), []byte{239, 1, 1, 1}, uint16(0))
	f.Fuzz(func(t *testing.T, key string, addr []byte, bits uint8, end []byte, port uint16) {
		n := Network{ID: "x", Subnet: netip.MustParsePrefix("10.7.0.0/16"), Subnet6: netip.MustParsePrefix("fd07::/64")}
		n.Peers = []Peer{{Node: "a", PublicKey: wgtypes.Key{1}.String(), Blocks: []netip.Prefix{netip.MustParsePrefix("10.7.0.16/28"), netip.MustParsePrefix("fd07::a07:10/124")}}}
		want, _ := checkNetwork(n, wgtypes.Key{9})
		a, _ := netip.AddrFromSlice(addr)
		e, _ := netip.AddrFromSlice(end)
		n.Peers = append(n.Peers, Peer{Node: "w", PublicKey: key, Blocks: []netip.Prefix{netip.PrefixFrom(a, int(bits))}, Endpoint: netip.AddrPortFrom(e, port)})
		got, _ := checkNetwork(n, wgtypes.Key{9})
		honest := wgtypes.Key{1}
		if !slices.Equal(got[honest].Blocks, want[honest].Blocks) || got[honest].Node != "a" {
			t.Errorf("the honest peer is %+v", got[honest])
		}
		for k, p := range got {
			for _, b := range p.Blocks {
				if !within(b, n.Subnet) && !within(b, n.Subnet6) || k != honest && slices.ContainsFunc(want[honest].Blocks, b.Overlaps) {
					t.Errorf("peer %s has %s", p.Node, b)
				}
			}
		}
		planPeers(wgtypes.Key{9}, got, nil, nil)
	})
}
