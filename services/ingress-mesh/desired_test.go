package mesh

import (
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/dns"
	"skep.dev/services/ingress-mesh/internal/ingress"
	"skep.dev/services/ingress-mesh/internal/overlay"
	"skep.dev/services/ingress-mesh/internal/picture"
	"skep.dev/services/ingress-mesh/internal/wgnet"
)

// known is a picture of a network with one honest peer, n2, which runs a task of service s.
func known() *picture.Picture {
	p := picture.New()
	endpoint := func(addr, addr6 string) *skepv1.MeshRecord {
		return &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Endpoints{Endpoints: &skepv1.MeshEndpoints{
			Blocks: []string{"10.7.0.16/28"}, WgPublicKey: "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", WgPort: 5000,
			Endpoints: []*skepv1.MeshEndpoint{{TaskId: "t", ServiceId: "s", Slot: 1, Addr: addr, Addr6: addr6, Serving: true}},
		}}}
	}
	for key, rec := range map[[2]string]*skepv1.MeshRecord{
		{keys.ScopeNodes, "n2"}: {Record: &skepv1.MeshRecord_Node{Node: &skepv1.MeshNode{Id: "n2", Number: 2, Subnet: "100.64.4.0/23", Addr: "10.90.0.2"}}},
		{"net", keys.ItemInfo}: {Record: &skepv1.MeshRecord_Network{Network: &skepv1.MeshNetwork{Network: &skepv1.Network{
			Meta: &skepv1.Meta{Id: "net"}, Spec: &skepv1.NetworkSpec{Name: "net", DriverOpts: map[string]string{spec.OptEncrypted: ""}}, Vni: 5000,
			Ipam: []*skepv1.IPAMConfig{{Subnet: "10.7.0.0/16"}, {Subnet: "fd07::/64"}},
		}}}},
		{"net", keys.ServiceItem("s")}: {Record: &skepv1.MeshRecord_Service{Service: &skepv1.MeshService{Id: "s", Name: "svc", Vip: "10.7.240.1"}}},
		{keys.ScopeIngress, keys.ServiceItem("s")}: {Record: &skepv1.MeshRecord_Service{Service: &skepv1.MeshService{
			Id: "s", Ports: []*skepv1.PortConfig{{Protocol: "tcp", PublishedPort: 8080, TargetPort: 80, PublishMode: skepv1.PublishMode_PUBLISH_MODE_INGRESS}},
		}}},
		{"net", "n2"}:             endpoint("10.7.0.17", "fd07::a07:11"),
		{keys.ScopeIngress, "n2"}: endpoint("100.64.4.2", ""),
	} {
		p.Apply(key[0], key[1], 1, rec)
	}
	return p
}

// made is everything that is made of a picture.
type made struct {
	remotes []overlay.Remote
	tunnels wgnet.Network
	ports   []ingress.Service
	peers   []ingress.Peer
	names   []netip.Addr
	vips    int
}

func madeOf(p *picture.Picture) (m made) {
	net, nodes := p.Scope("net"), p.Scope(keys.ScopeNodes).Nodes
	m.remotes = plain(net, nodes, "n1").Remotes
	m.tunnels = tunnel(net, nodes, "n1", 1420)
	m.ports = published(p.Scope(keys.ScopeIngress), nil)
	m.peers = peers(nodes, "n1")
	m.names, _ = dns.NewTable([]dns.Network{names(net, nil)}).A("tasks.svc")
	for _, v := range virtual(net, nil, "n1") {
		if v.VIP.IsValid() {
			m.vips++
		}
	}
	places(net)
	return m
}

// What is lost is another node's, and nobody else's too: a task that has its address is not told off.
func TestLostIsWhatNobodyHas(t *testing.T) {
	p := known()
	put := func(node string, eps ...*skepv1.MeshEndpoint) {
		p.Apply("net", node, 2, &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Endpoints{Endpoints: &skepv1.MeshEndpoints{Endpoints: eps}}})
	}
	put("n2", &skepv1.MeshEndpoint{TaskId: "t", ServiceId: "s", Addr: "10.7.0.17", Addr6: "fd07::a07:11", Lost: true},
		&skepv1.MeshEndpoint{TaskId: "u", ServiceId: "s", Addr: "10.7.0.18", Lost: true}, &skepv1.MeshEndpoint{TaskId: "v", Addr: "x", Lost: true})
	put("n3", &skepv1.MeshEndpoint{TaskId: "w", ServiceId: "s", Addr: "10.7.0.18", Serving: true})
	want := []netip.Addr{netip.MustParseAddr("10.7.0.17"), netip.MustParseAddr("fd07::a07:11")}
	if got := lost(p.Scope("net"), "n1"); !slices.Equal(got, want) {
		t.Errorf("lost are %v, want %v", got, want)
	}
	if got := lost(p.Scope("net"), "n2"); len(got) != 0 {
		t.Errorf("on the node itself, which is back: %v", got)
	}
	if v := virtual(p.Scope("net"), nil, "n1"); len(v) != 2 || !slices.Equal(v[0].Lost, want) || v[1].VIP != netip.MustParseAddr("10.7.240.1") {
		t.Errorf("virtual addresses: %v", v)
	}
}

// Whatever record another node has: what is made of the honest ones stays.
func FuzzMeshRecord(f *testing.F) {
	for _, r := range []*skepv1.MeshRecord{
		{}, {Record: &skepv1.MeshRecord_Endpoints{Endpoints: &skepv1.MeshEndpoints{Blocks: []string{"fd07::/64", "x", "10.7.0.16/28"}, WgPublicKey: "x", WgPort: 1 << 20,
			Endpoints: []*skepv1.MeshEndpoint{{ServiceId: "s", Addr: "fd07::1", Addr6: "10.7.0.1", Serving: true}, {ServiceId: "s", Addr: "10.7.0.17", Serving: true}, {ServiceId: "s", Serving: true}}}}},
		{Record: &skepv1.MeshRecord_Node{Node: &skepv1.MeshNode{Number: 1<<16 + 2, Subnet: "::/0", Addr: "10.90.0.2"}}},
		{Record: &skepv1.MeshRecord_Node{}}, {Record: &skepv1.MeshRecord_Endpoints{}},
	} {
		raw, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		rec := &skepv1.MeshRecord{}
		if proto.Unmarshal(raw, rec) != nil {
			return
		}
		p := known()
		before := madeOf(p)
		for _, scope := range []string{"net", keys.ScopeNodes, keys.ScopeIngress} {
			p.Apply(scope, "w", 1, rec)
		}
		after := madeOf(p)
		if !slices.Contains(after.remotes, before.remotes[0]) {
			t.Errorf("the way to the honest task is gone: %v", after.remotes)
		}
		if !slices.ContainsFunc(after.tunnels.Peers, func(x wgnet.Peer) bool { return x.Node == "n2" && x.Endpoint == before.tunnels.Peers[0].Endpoint }) {
			t.Errorf("the honest peer is gone: %v", after.tunnels.Peers)
		}
		if !slices.Contains(after.peers, before.peers[0]) || len(after.peers) > 2 {
			t.Errorf("peers: %v", after.peers)
		}
		if rec.GetService() == nil {
			if len(after.ports) != 1 || !slices.Contains(after.ports[0].Backends, before.ports[0].Backends[0]) {
				t.Errorf("published: %v", after.ports)
			}
			if !slices.Contains(after.names, netip.MustParseAddr("10.7.0.17")) || after.vips != before.vips {
				t.Errorf("names: %v", after.names)
			}
		}
	})
}
