package wgnet

import (
	"net/netip"
	"slices"
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
