package state

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

// on is a service on networks.
func on(name string, networks ...string) *skepv1.ServiceSpec {
	s := webSpec(name, 1)
	for _, n := range networks {
		s.Task.Networks = append(s.Task.Networks, &skepv1.NetworkAttachment{Target: n})
	}
	return s
}

func (r *rig) mustOn(name string, networks ...string) *skepv1.Service {
	r.t.Helper()
	return must[*skepv1.ServiceReply](r.t)(r.create(on(name, networks...))).Service
}

func (r *rig) update(ref string, sp *skepv1.ServiceSpec) (*skepv1.Service, error) {
	reply, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: ref, Spec: sp, NoResolveImage: true})
	return reply.GetService(), err
}

func (r *rig) mustUpdate(ref string, sp *skepv1.ServiceSpec) *skepv1.Service {
	r.t.Helper()
	return must[*skepv1.Service](r.t)(r.update(ref, sp))
}

// vipOf is a service's IPv4 virtual address on a network.
func vipOf(svc *skepv1.Service, network string) string {
	for _, v := range svc.GetEndpoint().GetVirtualIps() {
		if p, err := netip.ParsePrefix(v.Addr); err == nil && v.NetworkId == network && p.Addr().Is4() {
			return v.Addr
		}
	}
	return ""
}

func TestServicesOnNetworks(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	a, b := r.mustNetwork("alpha"), r.mustNetwork("beta", "10.0.128.0/24")
	six := must[*skepv1.NetworkReply](t)(r.network(&skepv1.NetworkSpec{Name: "six", Ipv6: true})).Network

	web := r.mustOn("web", "ALPHA", b.Meta.Id[:7], "six")
	if n := web.Spec.Task.Networks; n[0].Target != a.Meta.Id || n[1].Target != b.Meta.Id || n[2].Target != six.Meta.Id {
		t.Fatalf("networks %v", n)
	}
	if len(web.Endpoint.VirtualIps) != 4 {
		t.Fatalf("virtual addresses %v", web.Endpoint.VirtualIps)
	}
	va, vb := vipOf(web, a.Meta.Id), vipOf(web, b.Meta.Id)
	if !strings.HasSuffix(va, "/20") || !netip.MustParsePrefix("10.0.12.0/22").Contains(netip.MustParsePrefix(va).Addr()) {
		t.Errorf("%s is not in the last quarter of %v", va, a.Ipam)
	}
	if !strings.HasSuffix(vb, "/24") || !netip.MustParsePrefix("10.0.128.192/26").Contains(netip.MustParsePrefix(vb).Addr()) {
		t.Errorf("%s is not in the last quarter of %v", vb, b.Ipam)
	}
	v4, v6 := netip.MustParsePrefix(vipOf(web, six.Meta.Id)), netip.MustParsePrefix(web.Endpoint.VirtualIps[3].Addr)
	low := v6.Addr().As16()
	if v6.Bits() != 64 || v6.Masked().String() != six.Ipam[1].Subnet || netip.AddrFrom4([4]byte(low[12:])) != v4.Addr() {
		t.Errorf("IPv6 %s beside %s", v6, v4)
	}

	// Networks come and go; the addresses on the others stay.
	sp := proto.CloneOf(web.Spec)
	sp.Task.Networks = []*skepv1.NetworkAttachment{{Target: "beta"}, {Target: six.Meta.Id}}
	got := r.mustUpdate("web", sp)
	if vipOf(got, a.Meta.Id) != "" || vipOf(got, b.Meta.Id) != vb || vipOf(got, six.Meta.Id) != v4.String() {
		t.Errorf("without alpha: %v", got.Endpoint.VirtualIps)
	}
	if k := r.s.ix.Keys("idx.vip." + a.Meta.Id); len(k) != 0 {
		t.Errorf("address kept on a network that was left: %v", k)
	}
	sp.Task.Networks = []*skepv1.NetworkAttachment{{Target: "six"}, {Target: a.Meta.Id, Aliases: []string{"www"}}, {Target: "beta"}}
	got = r.mustUpdate("web", sp)
	if vipOf(got, a.Meta.Id) == "" || vipOf(got, b.Meta.Id) != vb || vipOf(got, six.Meta.Id) != v4.String() {
		t.Errorf("with alpha again: %v", got.Endpoint.VirtualIps)
	}
	revs := must[*skepv1.ListRevisionsReply](t)(call(r, api.ServiceRevisions, &skepv1.ListRevisionsRequest{Ref: "web"}))
	if revs.Revisions[0].Summary != "networks +alpha:www" || revs.Revisions[1].Summary != "networks -alpha" {
		t.Errorf("summaries %q %q", revs.Revisions[0].Summary, revs.Revisions[1].Summary)
	}
	scaled := must[*skepv1.ServiceReply](t)(call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "web", Replicas: 4})).Service
	if !proto.Equal(scaled.Endpoint, got.Endpoint) {
		t.Errorf("scaling moves addresses: %v", scaled.Endpoint)
	}
	// dnsrr gives them up, vip brings new ones.
	sp = proto.CloneOf(scaled.Spec)
	sp.Endpoint.Mode = skepv1.EndpointSpec_MODE_DNSRR
	if got = r.mustUpdate("web", sp); len(got.Endpoint.VirtualIps) != 0 || len(r.s.ix.Keys(keys.VIP.Prefix())) != 0 {
		t.Errorf("dnsrr keeps %v", got.Endpoint.VirtualIps)
	}
	sp.Endpoint.Mode = skepv1.EndpointSpec_MODE_VIP
	if got = r.mustUpdate("web", sp); len(got.Endpoint.VirtualIps) != 4 {
		t.Errorf("vip again: %v", got.Endpoint.VirtualIps)
	}
	if found := audit(r.s.ix); len(found) > 0 {
		t.Errorf("audit: %v", found)
	}
	// A rollback to networks that are gone is refused.
	sp.Task.Networks = []*skepv1.NetworkAttachment{{Target: "six"}}
	r.mustUpdate("web", sp)
	if err := r.rmNetwork("beta"); err != nil {
		t.Fatal(err)
	}
	_, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Rollback: true})
	wantErr(t, err, "revision 5 needs network beta, which is gone: create it again, or go back to another revision")

	if err := r.rmService("web"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"alpha", "six"} {
		if err := r.rmNetwork(n); err != nil {
			t.Fatal(err)
		}
	}
	r.nothingLeft()
}

func TestServiceNetworkRefusals(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	a := r.mustNetwork("a", "10.5.0.0/24")
	r.mustNetwork("b", "10.5.0.0/25")
	for want, sp := range map[string]*skepv1.ServiceSpec{
		"network nope not found": on("x", "a", "nope"),
		"Service cannot be explicitly attached to the ingress network":                                 on("x", "ingress"),
		"service is already attached to network A":                                                     on("x", a.Meta.Id, "A"),
		"service is already attached to network a":                                                     on("x", "a", "a"),
		"networks a and b overlap (10.5.0.0/24 and 10.5.0.0/25): a service can be on one of them only": on("x", "a", "b"),
		"network host cannot be combined with other networks: leave out host or the others":            on("x", "host", "a"),
		"network none cannot be combined with other networks: leave out none or the others":            on("x", "a", "None"),
		"EndpointSpec: port published with ingress mode can't be used with dnsrr mode": func() *skepv1.ServiceSpec {
			s := on("x", "a")
			s.Endpoint = &skepv1.EndpointSpec{Mode: skepv1.EndpointSpec_MODE_DNSRR, Ports: []*skepv1.PortConfig{{TargetPort: 80}}}
			return s
		}(),
	} {
		_, err := r.create(sp)
		wantErr(t, err, want)
		if c := fault.Of(err); c != fault.CodeInvalid && c != fault.CodeNotFound {
			t.Errorf("%s: code %s", want, c)
		}
	}
	if r.s.ix.ServiceCount() != 0 || len(r.s.ix.Keys(keys.VIP.Prefix())) != 0 {
		t.Error("something was stored")
	}
	// The words are kept, whatever their case, and take up nothing.
	for _, word := range []string{"host", "none", "bridge"} {
		svc := r.mustOn("on-"+word, strings.ToUpper(word))
		if svc.Spec.Task.Networks[0].Target != word || len(svc.Endpoint.VirtualIps) != 0 {
			t.Errorf("%s: %v", word, svc)
		}
		if n, err := r.inspectNetwork(word); err != nil || n.Services != 1 {
			t.Errorf("%s: %v %v", word, n, err)
		}
	}
	if svc := r.mustOn("both", "bridge", "a"); len(svc.Endpoint.VirtualIps) != 1 {
		t.Errorf("bridge beside a network: %v", svc)
	}
	many := on("many")
	for i := range maxNetworks + 1 {
		n := r.mustNetwork(fmt.Sprintf("n%d", i))
		many.Task.Networks = append(many.Task.Networks, &skepv1.NetworkAttachment{Target: n.Meta.Id})
	}
	_, err := r.create(proto.CloneOf(many))
	wantErr(t, err, "service many would be on 41 networks: at most 40 for one service")
	// As many of everything as one service may have fit into a batch, both to create and to replace.
	many.Task.Networks = many.Task.Networks[1:]
	many.Endpoint = &skepv1.EndpointSpec{}
	for i := range maxPorts {
		many.Endpoint.Ports = append(many.Endpoint.Ports, &skepv1.PortConfig{TargetPort: uint32(i + 1), PublishedPort: uint32(10_000 + i)})
	}
	must[*skepv1.ServiceReply](t)(r.create(proto.CloneOf(many)))
	for _, p := range many.Endpoint.Ports {
		p.PublishedPort += 5_000
	}
	many.Endpoint.Mode, many.Task.Networks = skepv1.EndpointSpec_MODE_VIP, nil
	r.mustUpdate("many", many)
}

func TestVIPsRunOut(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	r.mustNetwork("tiny", "10.5.0.0/29") // one virtual address
	r.mustOn("first", "tiny")
	_, err := r.create(on("second", "tiny"))
	wantErr(t, err, "network tiny (10.5.0.0/29) has 1 virtual addresses and all are in use by services: use --endpoint-mode dnsrr, or a network with a larger subnet")
	if fault.Of(err) != fault.CodeExhausted {
		t.Fatalf("code %s", fault.Of(err))
	}
	sp := on("second", "tiny")
	sp.Endpoint = &skepv1.EndpointSpec{Mode: skepv1.EndpointSpec_MODE_DNSRR}
	must[*skepv1.ServiceReply](t)(r.create(sp))
	if err := r.rmService("first"); err != nil {
		t.Fatal(err)
	}
	r.mustOn("third", "tiny")
}

// Fifty clients and two instances: every service gets an address of its own, and those beyond the last one are told.
func TestRaceForVIPs(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	r.start()
	r.mustNetwork("small", "10.5.0.0/25") // 31 virtual addresses
	const clients = 50
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for i := range clients {
		wg.Go(func() { _, errs[i] = r.create(on(fmt.Sprintf("s%d", i), "small")) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !fault.Is(err, fault.CodeExhausted):
			t.Error(err)
		}
	}
	r.caughtUp()
	seen := map[string]bool{}
	for _, n := range r.s.ix.ServicesAfter("") {
		for _, v := range r.s.ix.Service(n.ID).Endpoint.VirtualIps {
			if seen[v.Addr] {
				t.Errorf("%s twice", v.Addr)
			}
			seen[v.Addr] = true
		}
	}
	if won != 31 || len(seen) != 31 {
		t.Errorf("%d services and %d addresses of 31", won, len(seen))
	}
	if found := audit(r.s.ix); len(found) > 0 {
		t.Errorf("audit: %v", found)
	}
}
