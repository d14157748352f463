package state

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/sctp"
	skepv1 "skep.dev/proto/skep/v1"
)

// TestOwnPorts: no service takes the ports the cluster lives by, in either mode, at create or later.
func TestOwnPorts(t *testing.T) {
	r := newRig(t, kvtest.Server(t), func(c *Config) {
		c.ManagerAddrs = func() []string { return []string{"10.1.1.1:2377", "10.1.1.2:31000"} }
	})
	for _, p := range []*skepv1.PortConfig{
		{PublishedPort: 2377}, {PublishedPort: 2378}, {PublishedPort: 31000}, {PublishedPort: 31001}, {PublishedPort: 2377, PublishMode: host},
		{PublishedPort: 4789, Protocol: "udp"},
		{PublishedPort: 51820, Protocol: "udp"}, {PublishedPort: 53819, Protocol: "udp"}, {PublishedPort: 52000, Protocol: "udp", PublishMode: host},
	} {
		p.TargetPort = 80
		_, err := r.create(published("a", p))
		if fault.Of(err) != fault.CodeInvalid || !strings.Contains(err.Error(), "skep itself uses") {
			t.Errorf("%v: %v", p, err)
		}
	}
	a := must[*skepv1.ServiceReply](t)(r.create(published("a", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 2377, Protocol: "udp"}, &skepv1.PortConfig{TargetPort: 80, PublishedPort: 4789},
		&skepv1.PortConfig{TargetPort: 81, PublishedPort: 51819, Protocol: "udp"}, &skepv1.PortConfig{TargetPort: 82, PublishedPort: 53820, Protocol: "udp"}, &skepv1.PortConfig{TargetPort: 83, PublishedPort: 51820}))).Service
	sp := proto.CloneOf(a.Spec)
	sp.Endpoint.Ports = append(sp.Endpoint.Ports, &skepv1.PortConfig{TargetPort: 80, PublishedPort: 2378})
	_, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "a", Spec: sp, NoResolveImage: true})
	wantErr(t, err, "port '2378' cannot be published: skep itself uses 2378/tcp, for the connections of managers to one another; publish another port")
	sp = proto.CloneOf(a.Spec)
	sp.Endpoint.Ports = append(sp.Endpoint.Ports, &skepv1.PortConfig{TargetPort: 84, PublishedPort: 51821, Protocol: "udp"})
	_, err = call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "a", Spec: sp, NoResolveImage: true})
	wantErr(t, err, "port '51821' cannot be published: skep itself uses 51820-53819/udp, for the traffic of encrypted networks, one port each on every node; publish another port")
}

// TestSCTPWarnings: whoever publishes an SCTP port hears which nodes' kernels have no SCTP, once.
func TestSCTPWarnings(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	describe := func(name string, plugins ...*skepv1.Plugin) {
		t.Helper()
		n := r.admit(name, skepv1.NodeRole_NODE_ROLE_WORKER)
		must[*skepv1.DescribeReply](t)(call(r, api.StateDescribe.At(n.Meta.Id), &skepv1.DescribeRequest{
			NodeId: n.Meta.Id, Description: &skepv1.NodeDescription{Hostname: name, Plugins: plugins},
		}))
	}
	describe("can", &skepv1.Plugin{Type: sctp.PluginType, Name: sctp.Plugin})
	port := &skepv1.PortConfig{TargetPort: 5060, PublishedPort: 5060, Protocol: "sctp"}
	warns := func(reply *skepv1.ServiceReply, want ...string) *skepv1.Service {
		t.Helper()
		if !slices.Equal(reply.Warnings, want) {
			t.Errorf("warnings %q, want %q", reply.Warnings, want)
		}
		return reply.Service
	}
	warns(must[*skepv1.ServiceReply](t)(r.create(published("all-can", port))))
	r.admit("silent", skepv1.NodeRole_NODE_ROLE_WORKER) // has not said yet
	describe("w2", &skepv1.Plugin{Type: "Log", Name: "local"})
	describe("w1", &skepv1.Plugin{Type: "Volume", Name: "local"})
	other := &skepv1.PortConfig{TargetPort: 5060, PublishedPort: 5061, Protocol: "sctp", PublishMode: host}
	want := "port 5061/sctp: no SCTP in the kernel of w1, w2: the port, or programs that listen on it, will not work there; `skep doctor` says what is missing on each node"
	a := warns(must[*skepv1.ServiceReply](t)(r.create(published("a", other))), want)
	sp := proto.CloneOf(a.Spec)
	sp.Labels = map[string]string{"x": "y"}
	warns(must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "a", Spec: sp, NoResolveImage: true})))
	warns(must[*skepv1.ServiceReply](t)(r.create(published("udp", &skepv1.PortConfig{TargetPort: 5060, PublishedPort: 5062, Protocol: "udp"}))))
}

// TestDynamicPortsAreNobodysOwn: a port that skep picks for a service is none that the cluster lives by, even where its
// own port lies in the range.
func TestDynamicPortsAreNobodysOwn(t *testing.T) {
	r := newRig(t, kvtest.Server(t), func(c *Config) {
		c.ManagerAddrs = func() []string { return []string{"10.1.1.1:30000"} }
	})
	own := r.s.ownPorts()
	for _, protocol := range []string{"tcp", "udp", "sctp"} {
		taken := map[string]bool{} // the service's own until now: the next pick is another one
		for {
			p, err := r.s.dynamicPort(protocol, taken, own)
			if err != nil {
				wantErr(t, err, "all dynamic ports 30000-32767/"+protocol+" are in use: publish a port by number")
				break
			}
			taken[keys.PortKey(protocol, p)] = true
			if encrypted(protocol, p) || protocol == "tcp" && p <= 30001 {
				t.Errorf("%d/%s was picked, which is skep's own", p, protocol)
			}
		}
		want := lastDynamic - firstDynamic + 1
		if protocol == "tcp" {
			want -= 2
		}
		if len(taken) != want {
			t.Errorf("%d ports of %s were picked, want %d", len(taken), protocol, want)
		}
	}
}

// TestSSHPort: port 22 may be published, and whoever does it hears what that means, once.
func TestSSHPort(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	ssh := &skepv1.PortConfig{TargetPort: 2222, PublishedPort: 22}
	warned := func(reply *skepv1.ServiceReply, times int) *skepv1.Service {
		t.Helper()
		if n := strings.Count(strings.Join(reply.Warnings, "\n"), "port 22/tcp"); n != times {
			t.Errorf("%d warnings, want %d: %q", n, times, reply.Warnings)
		}
		return reply.Service
	}
	a := warned(must[*skepv1.ServiceReply](t)(r.create(published("a", ssh))), 1)
	update := func(sp *skepv1.ServiceSpec) *skepv1.ServiceReply {
		t.Helper()
		return must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "a", Spec: sp, NoResolveImage: true}))
	}
	sp := proto.CloneOf(a.Spec)
	sp.Labels = map[string]string{"x": "y"}
	warned(update(sp), 0)
	sp.Endpoint.Ports[0].PublishedPort = 23
	warned(update(sp), 0)
	sp.Endpoint.Ports[0].PublishedPort = 22
	warned(update(sp), 1)
	warned(must[*skepv1.ServiceReply](t)(r.create(published("udp", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 22, Protocol: "udp"}))), 0)
}
