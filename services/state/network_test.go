package state

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

func (r *rig) network(sp *skepv1.NetworkSpec) (*skepv1.NetworkReply, error) {
	return call(r, api.NetworkCreate, &skepv1.CreateNetworkRequest{Spec: sp})
}

func (r *rig) mustNetwork(name string, subnet ...string) *skepv1.Network {
	r.t.Helper()
	sp := &skepv1.NetworkSpec{Name: name}
	for _, s := range subnet {
		sp.Ipam = append(sp.Ipam, &skepv1.IPAMConfig{Subnet: s})
	}
	return must[*skepv1.NetworkReply](r.t)(r.network(sp)).Network
}

func (r *rig) inspectNetwork(ref string) (*skepv1.Network, error) {
	reply, err := call(r, api.NetworkInspect, &skepv1.Ref{Ref: ref})
	return reply.GetNetwork(), err
}

func (r *rig) rmNetwork(ref string) error {
	_, err := call(r, api.NetworkRemove, &skepv1.Ref{Ref: ref})
	return err
}

func (r *rig) rmService(ref string) error {
	_, err := call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: ref})
	return err
}

func (r *rig) listNetworks(filters ...*skepv1.Filter) string {
	r.t.Helper()
	reply := must[*skepv1.ListNetworksReply](r.t)(call(r, api.NetworkList, &skepv1.ListNetworksRequest{Filters: filters}))
	var names []string
	for _, n := range reply.Networks {
		names = append(names, n.Spec.Name)
	}
	return strings.Join(names, " ")
}

// nothingLeft: no index key of networks, addresses or ports remains, and the audit is content.
func (r *rig) nothingLeft() {
	r.t.Helper()
	r.caughtUp()
	for _, prefix := range []string{"idx.network.", "idx.vni.", "idx.wgport.", "idx.subnet.", "idx.vip.", "idx.port.", "idx.service."} {
		if k := r.s.ix.Keys(prefix); len(k) > 0 {
			r.t.Errorf("left behind: %v", k)
		}
	}
	if found := audit(r.s.ix); len(found) > 0 {
		r.t.Errorf("audit: %s", strings.Join(found, "; "))
	}
}

func TestNetworkLifeR1(t *testing.T) { networkLife(t, newRig(t, kvtest.Server(t))) }
func TestNetworkLifeR3(t *testing.T) { networkLife(t, newRig(t, kvtest.Cluster(t, 3))) }

func networkLife(t *testing.T, r *rig) {
	_, err := r.network(&skepv1.NetworkSpec{Name: "early"})
	wantErr(t, err, "there is no cluster yet: run skep init first")
	r.init()

	a := r.mustNetwork("Front_end")
	if a.Vni < spec.FirstVNI || a.Vni > spec.MaxVNI || len(a.Ipam) != 1 || a.Ipam[0].Subnet != "10.0.0.0/20" || a.Ipam[0].Gateway != "10.0.0.1" || a.Spec.Driver != "overlay" || a.Scope != "swarm" || a.Meta.Version == 0 {
		t.Fatalf("created %v", a)
	}
	if k, ok := r.s.ix.Key("idx.subnet.10.0.0.0-20"); !ok || k.Value != a.Meta.Id {
		t.Fatalf("subnet key %v", k)
	}
	b := must[*skepv1.NetworkReply](t)(r.network(&skepv1.NetworkSpec{
		Name: "back", Labels: map[string]string{"tier": "db"}, Ipv6: true, Internal: true, Attachable: true,
		DriverOpts: map[string]string{"com.docker.network.driver.overlay.vxlanid_list": "5000", "com.docker.network.driver.mtu": "1400"},
		Ipam:       []*skepv1.IPAMConfig{{Subnet: "192.168.0.0/16", Gateway: "192.168.5.1", IpRange: "192.168.7.0/24"}},
	})).Network
	if b.Vni != 5000 || len(b.Ipam) != 2 || b.Ipam[0].Gateway != "192.168.5.1" || b.Ipam[0].IpRange != "192.168.7.0/24" {
		t.Fatalf("created %v", b)
	}
	if p, err := netip.ParsePrefix(b.Ipam[1].Subnet); err != nil || p.Bits() != 64 || p != ulaSubnet(b.Meta.Id) || p.Addr().Next().String() != b.Ipam[1].Gateway {
		t.Fatalf("IPv6 %v", b.Ipam[1])
	}
	_, err = r.network(&skepv1.NetworkSpec{Name: "front_END"})
	wantErr(t, err, "network with name front_END already exists")
	if fault.Of(err) != fault.CodeConflict {
		t.Fatalf("code %s", fault.Of(err))
	}
	_, err = r.network(&skepv1.NetworkSpec{Name: "c", DriverOpts: map[string]string{"com.docker.network.driver.overlay.vxlanid_list": "5000"}})
	wantErr(t, err, "VXLAN id 5000 is in use by network back: name another, or none for a free one")

	for _, ref := range []string{a.Meta.Id, "Front_end", "front_end", a.Meta.Id[:6]} {
		if got, err := r.inspectNetwork(ref); err != nil || got.Meta.Id != a.Meta.Id {
			t.Fatalf("inspect %s: %v %v", ref, got, err)
		}
	}
	_, err = r.inspectNetwork("front-end")
	wantErr(t, err, "network front-end not found; did you mean Front_end?")
	for _, word := range []string{"host", "bridge", "none", "ingress"} {
		n, err := r.inspectNetwork(word)
		scope := map[bool]string{true: "swarm", false: "local"}[word == "ingress"]
		if err != nil || n.Meta.Id != word || n.Scope != scope || !n.Meta.CreatedAt.IsValid() {
			t.Fatalf("%s: %v %v", word, n, err)
		}
		wantErr(t, r.rmNetwork(word), word+" is a pre-defined network and cannot be removed")
		_, err = r.network(&skepv1.NetworkSpec{Name: strings.ToUpper(word)})
		wantErr(t, err, word+" is a pre-defined network and cannot be created")
	}

	svc := r.mustOn("web", "front_end")
	if got, _ := r.inspectNetwork("front_end"); got.Services != 1 {
		t.Fatalf("%d services", got.Services)
	}
	filter := func(key string, values ...string) *skepv1.Filter { return &skepv1.Filter{Key: key, Values: values} }
	for want, f := range map[string][]*skepv1.Filter{
		"back bridge Front_end host ingress none": nil,
		"back":                               {filter("label", "tier=db")},
		"bridge host none":                   {filter("scope", "local")},
		"back Front_end":                     {filter("type", "custom")},
		"bridge host ingress none":           {filter("type", "builtin")},
		"back Front_end ingress":             {filter("driver", "overlay")},
		"none":                               {filter("driver", "null")},
		"Front_end":                          {filter("id", a.Meta.Id[:8])},
		"bridge Front_end":                   {filter("name", "fr", "BRID")},
		"bridge Front_end host ingress none": {filter("dangling", "false")},
	} {
		if got := r.listNetworks(f...); got != want {
			t.Errorf("list %v: %s, want %s", f, got, want)
		}
	}
	if got := r.listNetworks(filter("dangling", "true")); got != "back" {
		t.Errorf("dangling: %s", got)
	}
	_, err = call(r, api.NetworkList, &skepv1.ListNetworksRequest{Filters: []*skepv1.Filter{filter("x", "y")}})
	wantErr(t, err, "invalid filter 'x': use dangling, driver, id, label, name, scope, type")
	after, pages := "", ""
	for {
		p := must[*skepv1.ListNetworksReply](t)(call(r, api.NetworkList, &skepv1.ListNetworksRequest{Page: &skepv1.Page{Size: 2, After: after}}))
		for _, n := range p.Networks {
			pages += n.Spec.Name + " "
		}
		if after = p.Next; after == "" {
			break
		}
	}
	if pages != "back bridge Front_end host ingress none " {
		t.Errorf("pages: %s", pages)
	}

	wantErr(t, r.rmNetwork("front_end"), "network Front_end is in use by service web")
	if got, _ := r.inspectNetwork("front_end"); got.Removing {
		t.Error("a refused removal leaves its mark")
	}
	if found := audit(r.s.ix); len(found) > 0 {
		t.Errorf("audit: %v", found)
	}
	if err := r.rmService(svc.Meta.Id); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"front_end", b.Meta.Id} {
		if err := r.rmNetwork(n); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, r.rmNetwork("front_end"), "network front_end not found")
	r.nothingLeft()
	// Name and subnet are free again, over their tombstones.
	if again := r.mustNetwork("Front_end"); again.Meta.Id == a.Meta.Id || again.Ipam[0].Subnet != "10.0.0.0/20" {
		t.Errorf("again %v", again)
	}
	await(t, "events", func() bool {
		l := must[*skepv1.ListEventsReply](t)(call(r, api.EventList, &skepv1.ListEventsRequest{Filters: []*skepv1.Filter{filter("kind", "network")}}))
		var got []string
		for _, e := range l.Events {
			got = append(got, e.Verb+" "+e.Name)
		}
		return strings.Join(got, ", ") == "create Front_end, create back, remove Front_end, remove back, create Front_end"
	})
}

func TestNetworkRefusals(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	for want, sp := range map[string]*skepv1.NetworkSpec{
		"meta: name must be provided":                                                                          {},
		"name must be valid as a DNS name component":                                                           {Name: "a.b"},
		"subnet 10.1.0.0/30 is too small: use a /29 or larger":                                                 {Name: "a", Ipam: []*skepv1.IPAMConfig{{Subnet: "10.1.0.0/30"}}},
		"subnet 100.64.9.0/24 overlaps 100.64.0.0/10, the pool of the nodes' own subnets: use other addresses": {Name: "a", Ipam: []*skepv1.IPAMConfig{{Subnet: "100.64.9.0/24"}}},
	} {
		_, err := r.network(sp)
		wantErr(t, err, want)
		if !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("%s: code %s", want, fault.Of(err))
		}
	}
	_, err := r.network(nil)
	wantErr(t, err, "network spec is missing")
	if got := r.listNetworks(&skepv1.Filter{Key: "type", Values: []string{"custom"}}); got != "" {
		t.Fatalf("stored %s", got)
	}
	r.nothingLeft()
}

// A network made right after another was removed does not get its VXLAN id: nodes may still have that.
func TestVXLANIDIsNotReusedAtOnce(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	had := map[uint32]bool{}
	for range 20 {
		n := r.mustNetwork("a")
		if had[n.Vni] {
			t.Fatalf("VXLAN id %d again", n.Vni)
		}
		had[n.Vni] = true
		if err := r.rmNetwork(n.Meta.Id); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNetworkDryRun(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	reply := must[*skepv1.NetworkReply](t)(call(r, api.NetworkCreate, &skepv1.CreateNetworkRequest{Spec: &skepv1.NetworkSpec{Name: "a"}, DryRun: true}))
	if reply.Network.Vni < spec.FirstVNI || reply.Network.Ipam[0].Subnet != "10.0.0.0/20" {
		t.Fatalf("%v", reply)
	}
	r.nothingLeft()
	n := r.mustNetwork("a")
	sp := on("web", "a")
	svc := must[*skepv1.ServiceReply](t)(call(r, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: sp, DryRun: true, NoResolveImage: true})).Service
	if len(svc.Endpoint.VirtualIps) != 1 || svc.Spec.Task.Networks[0].Target != n.Meta.Id {
		t.Fatalf("%v", svc)
	}
	// A short word may be the beginning of an id: of one network in 36 it is.
	_, err := call(r, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: on("web", "no-such"), DryRun: true, NoResolveImage: true})
	wantErr(t, err, "network no-such not found")
	if err := r.rmNetwork("a"); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft()
}

// A pool that covers the hosts' own network is not picked over it, and user-given subnets are passed over too.
func TestAutomaticSubnets(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	must[*skepv1.ClusterReply](t)(call(r, api.ClusterInit,
		&skepv1.InitClusterRequest{CaDigest: "d", Spec: &skepv1.ClusterSpec{DefaultAddrPools: []string{"10.1.0.0/22", "10.9.0.0/24"}, SubnetSize: 24}}))
	r.admit("m", skepv1.NodeRole_NODE_ROLE_MANAGER) // 10.1.1.1
	r.mustNetwork("given", "10.1.2.128/25")
	var got []string
	for i := range 3 {
		got = append(got, r.mustNetwork(fmt.Sprintf("n%d", i)).Ipam[0].Subnet)
	}
	if s := strings.Join(got, " "); s != "10.1.0.0/24 10.1.3.0/24 10.9.0.0/24" {
		t.Fatalf("picked %s", s)
	}
	_, err := r.network(&skepv1.NetworkSpec{Name: "more"})
	wantErr(t, err, "the default address pool 10.1.0.0/22, 10.9.0.0/24 holds 5 subnets of /24 and each is in use by a network or holds a node's address (4 networks): remove networks, or name a subnet elsewhere")
	if fault.Of(err) != fault.CodeExhausted {
		t.Fatalf("code %s", fault.Of(err))
	}
	// One that is given may overlap: it is said.
	reply := must[*skepv1.NetworkReply](t)(r.network(&skepv1.NetworkSpec{Name: "over", Ipam: []*skepv1.IPAMConfig{{Subnet: "10.1.0.0/23"}}}))
	if w := strings.Join(reply.Warnings, "|"); w != "subnet 10.1.0.0/23 of network over overlaps 10.1.0.0/24 of network n0: no service can be on both|"+
		"subnet 10.1.0.0/23 covers 10.1.1.1, the address of a node: services on network over cannot reach the nodes' own network" {
		t.Fatalf("warnings %s", w)
	}
	if err := r.rmNetwork("n1"); err != nil {
		t.Fatal(err)
	}
	if n := r.mustNetwork("more"); n.Ipam[0].Subnet != "10.1.3.0/24" {
		t.Fatalf("picked %v", n.Ipam)
	}
}

// Automatic subnets avoid what the nodes route elsewhere, as long as the pools have others; a given one is warned about.
func TestSubnetsAndTheNodesRoutes(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	must[*skepv1.ClusterReply](t)(call(r, api.ClusterInit,
		&skepv1.InitClusterRequest{CaDigest: "d", Spec: &skepv1.ClusterSpec{DefaultAddrPools: []string{"10.40.0.0/22"}, SubnetSize: 24}}))
	describe := func(host string, routes ...string) {
		t.Helper()
		nid := r.admit(host, skepv1.NodeRole_NODE_ROLE_WORKER).Meta.Id
		must[*skepv1.DescribeReply](t)(call(r, api.StateDescribe.At(nid), &skepv1.DescribeRequest{NodeId: nid, Description: &skepv1.NodeDescription{Hostname: host, Routes: routes}}))
	}
	describe("w1", "10.40.0.0/23", "172.16.0.0/12", "fd00:7::/48")
	describe("w2", "10.40.2.128/25", "172.16.0.0/12")
	if n := r.mustNetwork("free"); n.Ipam[0].Subnet != "10.40.3.0/24" {
		t.Fatalf("picked %v", n.Ipam)
	}
	// The pools have nothing else: better this than none.
	reply := must[*skepv1.NetworkReply](t)(r.network(&skepv1.NetworkSpec{Name: "under"}))
	if reply.Network.Ipam[0].Subnet != "10.40.0.0/24" {
		t.Fatalf("picked %v", reply.Network.Ipam)
	}
	const rest = ": tasks on network %s do not reach what is behind that route in the subnet; to avoid it give the network a --subnet elsewhere"
	want := "subnet 10.40.0.0/24 overlaps the route 10.40.0.0/23 of node w1" + fmt.Sprintf(rest, "under")
	if got := strings.Join(reply.Warnings, "|"); got != want {
		t.Errorf("warned %q, want %q", got, want)
	}
	reply = must[*skepv1.NetworkReply](t)(r.network(&skepv1.NetworkSpec{Name: "given", Ipv6: true, Ipam: []*skepv1.IPAMConfig{{Subnet: "172.20.0.0/16"}, {Subnet: "fd00:7:0:1::/64"}}}))
	want = "subnet 172.20.0.0/16 overlaps the route 172.16.0.0/12 of node w1 and 1 more" + fmt.Sprintf(rest, "given") +
		"|subnet fd00:7:0:1::/64 overlaps the route fd00:7::/48 of node w1" + fmt.Sprintf(rest, "given")
	if got := strings.Join(reply.Warnings, "|"); got != want {
		t.Errorf("warned %q, want %q", got, want)
	}
}

func TestPickSubnet(t *testing.T) {
	prefixes := func(text string) (out []netip.Prefix) {
		for _, f := range strings.Fields(text) {
			out = append(out, netip.MustParsePrefix(f))
		}
		return out
	}
	for _, x := range []struct{ name, pools, taken, routes, want string }{
		{"nobody routes anything", "10.0.0.0/8", "", "", "10.0.0.0/20"},
		{"a company's network at the beginning", "10.0.0.0/8", "", "10.0.0.0/16", "10.1.0.0/20"},
		{"beside networks and routes", "10.0.0.0/8", "10.1.0.0/20 10.1.16.0/20", "10.0.0.0/16", "10.1.32.0/20"},
		{"a route in the middle of a subnet", "10.0.0.0/8", "", "10.0.7.9/32", "10.0.16.0/20"},
		{"another pool", "10.0.0.0/18 172.16.0.0/16", "", "10.0.0.0/8", "172.16.0.0/20"},
		{"all of the pool is routed", "10.0.0.0/8", "", "10.0.0.0/8", "10.0.0.0/20"},
		{"all of it, and a part besides", "10.0.0.0/8", "", "10.0.0.0/8 10.0.0.0/16", "10.1.0.0/20"},
		{"a VPN that says everything else in pieces", "10.0.0.0/8", "", "1.0.0.0/8 2.0.0.0/7 4.0.0.0/6 8.0.0.0/5 16.0.0.0/4 32.0.0.0/3 64.0.0.0/2 128.0.0.0/2 192.168.0.0/16", "10.0.0.0/20"},
		{"every part of it", "10.0.0.0/18", "10.0.0.0/20", "10.0.0.0/19 10.0.32.0/19", "10.0.16.0/20"},
		{"routes of IPv6 are elsewhere", "10.0.0.0/8", "", "fd00::/8 2000::/5", "10.0.0.0/20"},
		{"nothing is free", "10.0.0.0/20", "10.0.0.0/24", "", "invalid Prefix"},
	} {
		if got := pickSubnet(prefixes(x.pools), 20, prefixes(x.taken), prefixes(x.routes), 0); got.String() != x.want {
			t.Errorf("%s: %s, want %s", x.name, got, x.want)
		}
	}
}

// freeSubnets gives what a look at every subnet gives.
func TestFreeSubnets(t *testing.T) {
	p := netip.MustParsePrefix
	pools := []netip.Prefix{p("10.0.0.0/20"), p("255.255.240.0/20")}
	for seed := range 200 {
		var taken []netip.Prefix
		x := uint32(seed)
		next := func(n uint32) uint32 { x = x*1664525 + 1013904223; return (x >> 8) % n }
		for range next(12) {
			base := []netip.Addr{netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("255.255.240.0")}[next(2)].As4()
			base[2] += byte(next(16))
			base[3] = byte(next(256))
			taken = append(taken, netip.PrefixFrom(netip.AddrFrom4(base), int(18+next(15))).Masked())
		}
		taken = append(taken, p("fd00::/64"))
		bits := int(20 + next(10))
		var want, got []string
		for _, pool := range pools {
			for q := netip.PrefixFrom(pool.Addr(), bits); pool.Overlaps(q); {
				free := true
				for _, o := range taken {
					free = free && !o.Overlaps(q)
				}
				if free {
					want = append(want, q.String())
				}
				end := spanOf(q).last
				if end == 1<<32-1 {
					break
				}
				end++
				q = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(end >> 24), byte(end >> 16), byte(end >> 8), byte(end)}), bits)
			}
		}
		for q := range freeSubnets(pools, bits, taken) {
			got = append(got, q.String())
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("/%d beside %v: %v, want %v", bits, taken, got, want)
		}
	}
}

func TestULAIsTheNetworks(t *testing.T) {
	one := id.New()
	a, again, other := ulaSubnet(one), ulaSubnet(one), ulaSubnet(id.New())
	if a != again || a == other || !netip.MustParsePrefix("fd00::/8").Contains(a.Addr()) || a != a.Masked() {
		t.Fatal(a, again, other)
	}
}

func TestNetworkEncodesWhatItOwns(t *testing.T) {
	n := &skepv1.Network{Meta: &skepv1.Meta{Id: "x", Version: 9}, Spec: &skepv1.NetworkSpec{Name: "n"}, Scope: "swarm", Services: 3}
	body, err := encodeNetwork(n)
	if err != nil {
		t.Fatal(err)
	}
	got := &skepv1.Network{}
	if err := proto.Unmarshal(body, got); err != nil || got.Meta.Version != 0 || got.Scope != "" || got.Services != 0 || n.Services != 3 {
		t.Fatalf("%v %v", got, err)
	}
}

// Every encrypted network has a UDP port of its own on every node, whatever ids others have or are asked for.
func TestEncryptedNetworksShareNoPort(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	create := func(name, vni string, secret bool) (*skepv1.Network, error) {
		s := &skepv1.NetworkSpec{Name: name, DriverOpts: map[string]string{}}
		if vni != "" {
			s.DriverOpts[spec.OptVXLANID] = vni
		}
		if secret {
			s.DriverOpts[spec.OptEncrypted] = ""
		}
		reply, err := r.network(s)
		return reply.GetNetwork(), err
	}
	a := must[*skepv1.Network](t)(create("a", "6097", true)) // 2000 above the first
	// Their ids begin anywhere, so of 80 some would have the port of another, were it not looked for.
	ports := map[uint16]string{spec.EncryptedPort(a.Vni): "a"}
	for i := range 80 {
		n := must[*skepv1.Network](t)(create(fmt.Sprintf("b%d", i), "", true))
		if other := ports[spec.EncryptedPort(n.Vni)]; other != "" {
			t.Errorf("an encrypted network has VXLAN id %d, and the port of %s", n.Vni, other)
		}
		ports[spec.EncryptedPort(n.Vni)] = n.Spec.Name
	}
	_, err := create("d", "8097", true)
	wantErr(t, err, "an encrypted network with VXLAN id 8097 needs 51820/udp of every node, which is in use by network a: name another, or none for a free one")
	must[*skepv1.Network](t)(create("d", "8097", false))
	if found := audit(r.s.ix); len(found) != 0 {
		t.Errorf("the audit finds %q", found)
	}
	if err := r.rmNetwork(a.Meta.Id); err != nil {
		t.Fatal(err)
	}
	if e := must[*skepv1.Network](t)(create("e", "10097", true)); e.Vni != 10097 {
		t.Error("a port is not released with its network")
	}
}
