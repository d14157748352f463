package mesh

import (
	"context"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"skep.dev/libs/attach"
	"skep.dev/libs/id"
	"skep.dev/libs/ipam"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/picture"
	"skep.dev/services/ingress-mesh/internal/wgnet"
)

// gatewaySees is what a listener at the node's gateway address knows of a task that connects to it.
func gatewaySees(t *testing.T, netns string, gateway netip.Addr) string {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(gateway, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	tellClient(t, l)
	saw, err := ask(netns, l.Addr().String())
	if err != nil {
		return err.Error()
	}
	return saw
}

// A task has an IPv6 address that follows from its IPv4 one, over a restart, and none where the host has none.
func TestTaskIPv6(t *testing.T) {
	r := newRig(t)
	gateway := netip.MustParseAddr("100.64.4.1")
	a := r.attach(id.New())
	own := a.Addresses[1].Addr().String()
	if saw := gatewaySees(t, a.Netns, ipam.NodeAddr6(gateway)); saw != own {
		t.Fatalf("the gateway sees %s, the task has %s", saw, own)
	}
	run(t, "ip", "-6", "addr", "flush", "dev", "skep0")
	r.start()
	if saw := gatewaySees(t, a.Netns, ipam.NodeAddr6(gateway)); saw != own {
		t.Fatalf("after a restart the gateway sees %s, the task has %s", saw, own)
	}

	// IPv6 is switched off, as an administrator would: what was published goes on over IPv4, and nobody complains.
	run(t, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	defer run(t, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	r.start()
	four := r.attach(id.New())
	if len(four.Addresses) != 1 || !four.Addresses[0].Addr().Is4() {
		t.Fatalf("%+v", four)
	}
	for _, ns := range []string{a.Netns, four.Netns} {
		if saw := gatewaySees(t, ns, gateway); !strings.HasPrefix(saw, "100.64.4.") {
			t.Fatal(saw)
		}
	}
	for range 3 {
		if err := r.s.repair(); err != nil {
			t.Fatal(err)
		}
		if found, err := r.s.plane.Verify(context.Background()); err != nil || len(found) > 0 {
			t.Fatal(found, err)
		}
	}
	if r.s.ipv6Trouble != "" {
		t.Fatal(r.s.ipv6Trouble)
	}

	// And on again.
	run(t, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	if err := r.s.repair(); err != nil {
		t.Fatal(err)
	}
	if saw := gatewaySees(t, a.Netns, ipam.NodeAddr6(gateway)); saw != own {
		t.Fatalf("with IPv6 again the gateway sees %s, the task has %s", saw, own)
	}
	if again, err := r.s.Attach(context.Background(), attach.Request{TaskID: id.New()}); err != nil || len(again.Addresses) != 2 {
		t.Fatal(again, err)
	}
}

// An encrypted network with IPv6: a node may speak for the addresses that end in those of its blocks, and the bridge
// answers for tasks elsewhere by name.
func TestTunnelOfIPv6(t *testing.T) {
	scope := picture.Scope{
		Info: &skepv1.MeshNetwork{Network: &skepv1.Network{Vni: 4097, Spec: &skepv1.NetworkSpec{Name: "vault", Ipv6: true},
			Ipam: []*skepv1.IPAMConfig{{Subnet: "10.7.0.0/20"}, {Subnet: "fd07::/64"}}}},
		Endpoints: map[string]*skepv1.MeshEndpoints{
			"n1": {WgPublicKey: "mine", Blocks: []string{"10.7.0.0/28"}, Endpoints: []*skepv1.MeshEndpoint{{Addr: "10.7.0.2", Addr6: "fd07::a07:2"}}},
			"n2": {WgPublicKey: "theirs", WgPort: 51820, Blocks: []string{"10.7.0.16/28"}, Endpoints: []*skepv1.MeshEndpoint{{Addr: "10.7.0.17", Addr6: "fd07::a07:11"}}},
		},
	}
	got := tunnel(scope, map[string]*skepv1.MeshNode{"n2": {Addr: "10.0.0.2"}}, "n1", 1420)
	want := wgnet.Network{Name: "vault", MTU: 1420, ListenPort: 51820, Subnet: prefix("10.7.0.0/20"), Subnet6: prefix("fd07::/64"),
		Remotes6: []netip.Addr{address("fd07::a07:11")},
		Peers: []wgnet.Peer{{Node: "n2", PublicKey: "theirs", Endpoint: netip.MustParseAddrPort("10.0.0.2:51820"),
			Blocks: []netip.Prefix{prefix("10.7.0.16/28"), prefix("fd07::a07:10/124")}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}
