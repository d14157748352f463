package state

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

func fixedOn(name, network, v4, v6 string) *skepv1.ServiceSpec {
	s := on(name, network)
	s.Task.Networks[0].Ipv4Address, s.Task.Networks[0].Ipv6Address = v4, v6
	return s
}

func TestAddressesOfTheirOwn(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	net := must[*skepv1.NetworkReply](t)(r.network(&skepv1.NetworkSpec{Name: "net", Ipv6: true, Ipam: []*skepv1.IPAMConfig{
		{Subnet: "10.50.0.0/24", Gateway: "10.50.0.254"}, {Subnet: "fd00:50::/64"},
	}})).Network
	web := r.mustOn("web", "net")
	vip, _, _ := strings.Cut(vipOf(web, net.Meta.Id), "/")
	fix := must[*skepv1.ServiceReply](t)(r.create(fixedOn("fix", "net", "10.50.0.7", "FD00:50:0::0:15"))).Service
	if got := fix.Spec.Task.Networks[0]; got.Ipv4Address != "10.50.0.7" || got.Ipv6Address != "fd00:50::15" {
		t.Errorf("stored %v", got)
	}
	for _, c := range []struct {
		v4, v6 string
		code   fault.Code
		text   string
	}{
		{"10.50.0.7", "", fault.CodeConflict, "the address of the task of service fix"},
		{"", "fd00:50::15", fault.CodeConflict, "the address of the task of service fix"},
		{vip, "", fault.CodeConflict, "the virtual address of service web"},
		{"10.50.0.254", "", fault.CodeInvalid, "gateway"},
		{"10.50.0.255", "", fault.CodeInvalid, "first or last"},
		{"10.50.1.7", "", fault.CodeInvalid, "not in subnet"},
		{"", "fd00:50::a32:9", fault.CodeInvalid, "goes with the IPv4 address at its end"},
		{"", "fd00:50::1", fault.CodeInvalid, "router"},
		{"", "fd00:51::7", fault.CodeInvalid, "not in subnet"},
	} {
		_, err := r.create(fixedOn("bad", "net", c.v4, c.v6))
		if !fault.Is(err, c.code) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s%s: %v, want %s", c.v4, c.v6, err, c.text)
		}
	}
	// Scaling it up is refused as creating it so is; to nothing and back is not.
	for n, ok := range map[uint64]bool{2: false, 0: true, 1: true} {
		if _, err := call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "fix", Replicas: n}); (err == nil) != ok {
			t.Errorf("scale to %d: %v", n, err)
		}
	}
	// The address is left: it is free, in the batch that leaves it. Going back needs it.
	sp := proto.CloneOf(fix.Spec)
	sp.Task.Networks[0].Ipv4Address, sp.Task.Networks[0].Ipv6Address = "10.50.0.8", ""
	r.mustUpdate("fix", sp)
	must[*skepv1.ServiceReply](t)(r.create(fixedOn("taker", "net", "10.50.0.7", "")))
	if _, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "fix", Rollback: true}); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "service taker") {
		t.Errorf("back to what another has: %v", err)
	}
	if found := audit(r.s.ix); len(found) > 0 {
		t.Errorf("audit: %v", found)
	}
	// A virtual address is never one of these, whoever asks first.
	small := must[*skepv1.NetworkReply](t)(r.network(&skepv1.NetworkSpec{Name: "small", Ipam: []*skepv1.IPAMConfig{{Subnet: "10.51.0.0/28"}}})).Network
	must[*skepv1.ServiceReply](t)(r.create(fixedOn("tail", "small", "10.51.0.13", ""))) // of 12, 13 and 14
	one := r.mustOn("one", "small")
	if vipOf(one, small.Meta.Id) == "10.51.0.13/28" {
		t.Error("the task's address became another service's virtual one")
	}
	if _, err := r.create(on("two", "small")); !fault.Is(err, fault.CodeExhausted) {
		t.Errorf("three virtual addresses less one, two in use: %v", err)
	}
	for _, name := range []string{"fix", "taker", "tail", "one", "web"} {
		must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: name}))
	}
	if left := r.s.ix.Keys(keys.VIP.Prefix()); len(left) > 0 {
		t.Errorf("addresses of services that are gone: %v", left)
	}
}
