package cli

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

const (
	frontID = "frontfrontfrontfrontfron1"
	backID  = "backbackbackbackbackback1"
)

// serveNetworks answers what is asked about networks.
func (c *cluster) serveNetworks(rs *rpc.Server) {
	find := func(ref string) (*skepv1.Network, error) {
		for _, n := range c.networks {
			if n.Meta.Id == ref || n.Spec.Name == ref {
				return n, nil
			}
		}
		return nil, fault.NotFound("network %s not found", ref)
	}
	serve(c, rs, api.NetworkCreate, func(r *skepv1.CreateNetworkRequest) (*skepv1.NetworkReply, error) {
		n := &skepv1.Network{Meta: &skepv1.Meta{Id: frontID}, Spec: r.Spec, Scope: "swarm"}
		c.networks = append(c.networks, n)
		return &skepv1.NetworkReply{Network: n, Warnings: []string{"subnet 10.0.9.0/24 covers 10.0.9.4, the address of a node"}}, nil
	})
	serve(c, rs, api.NetworkList, func(r *skepv1.ListNetworksRequest) (*skepv1.ListNetworksReply, error) {
		// One network a page: clients must follow.
		for i, n := range c.networks {
			if r.GetPage().GetAfter() == "" || i > 0 && c.networks[i-1].Spec.Name == r.Page.After {
				next := ""
				if i+1 < len(c.networks) {
					next = n.Spec.Name
				}
				return &skepv1.ListNetworksReply{Networks: []*skepv1.Network{n}, Next: next}, nil
			}
		}
		return &skepv1.ListNetworksReply{}, nil
	})
	serve(c, rs, api.NetworkInspect, func(r *skepv1.Ref) (*skepv1.NetworkReply, error) {
		n, err := find(r.Ref)
		return &skepv1.NetworkReply{Network: n}, err
	})
	serve(c, rs, api.NetworkRemove, func(r *skepv1.Ref) (*skepv1.NetworkReply, error) {
		n, err := find(r.Ref)
		if err == nil && n.Services > 0 {
			err = fault.Conflict("network %s is in use by service web", n.Spec.Name)
		}
		return &skepv1.NetworkReply{Network: n}, err
	})
	serve(c, rs, api.MeshNetwork, func(r *skepv1.MeshNetworkRequest) (*skepv1.MeshNetworkReply, error) {
		if m := c.mesh[r.NetworkId]; m != nil {
			return m, nil
		}
		return nil, fault.Unavailable("the mesh has no leader now: try again")
	})
}

// networks are two of a cluster and those that are everywhere.
func (c *cluster) withNetworks() *cluster {
	at := timestamppb.New(testNow.Add(-time.Hour))
	mk := func(id, name, driver, scope string) *skepv1.Network {
		return &skepv1.Network{Meta: &skepv1.Meta{Id: id, CreatedAt: at, UpdatedAt: at}, Scope: scope, Spec: &skepv1.NetworkSpec{Name: name, Driver: driver}}
	}
	front, back := mk(frontID, "front", "overlay", "swarm"), mk(backID, "back", "overlay", "swarm")
	front.Spec.Labels = map[string]string{"team": "x", "bare": ""}
	front.Spec.DriverOpts = map[string]string{"encrypted": ""}
	front.Vni, front.Services = 4097, 1
	front.Ipam = []*skepv1.IPAMConfig{{Subnet: "10.0.9.0/24", Gateway: "10.0.9.1", IpRange: "10.0.9.128/25"}, {Subnet: "fd00:1::/64", Gateway: "fd00:1::1"}}
	front.Spec.Ipv6, front.Spec.Internal, front.Spec.Attachable = true, true, true
	back.Meta.CreatedAt = timestamppb.New(testNow.Add(-time.Minute))
	c.networks = []*skepv1.Network{back, mk("bridge", "bridge", "bridge", "local"), front, mk("host", "host", "host", "local"), mk("ingress", "ingress", "overlay", "swarm"), mk("none", "none", "null", "local")}
	c.mesh = map[string]*skepv1.MeshNetworkReply{
		frontID: {
			Services: []*skepv1.MeshNetworkService{{Service: &skepv1.MeshService{Id: webID, Name: "web", Vip: "10.0.9.200"}, Tasks: []*skepv1.MeshNetworkTask{
				{Name: "web.10", TaskId: "t10", NodeId: nodeID, NodeAddr: "192.168.0.5", Addr: "10.0.9.131"}, {Name: "web.2", TaskId: "t2", NodeId: nodeID, NodeAddr: "192.168.0.4", Addr: "10.0.9.130", Serving: true},
			}}, {Service: &skepv1.MeshService{Name: "rr", Dnsrr: true}}},
			Peers: []*skepv1.MeshPeer{{NodeId: nodeID, Hostname: "w1", Addr: "192.168.0.4"}},
		},
		"": {Services: []*skepv1.MeshNetworkService{{Service: &skepv1.MeshService{Name: "web", Ports: []*skepv1.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080}}}}}},
	}
	return c
}

func session(c *cluster, lines ...string) string {
	var b strings.Builder
	for _, args := range lines {
		r := c.run(strings.Fields(args)...)
		b.WriteString("$ skep " + args + "\n" + r.out)
		if r.err != "" {
			b.WriteString("! " + strings.ReplaceAll(strings.TrimSpace(r.err), "\n", "\n! ") + "\n")
		}
		if r.code != 0 {
			fmt.Fprintf(&b, "exit status %d\n", r.code)
		}
	}
	return b.String()
}

func TestNetworkSession(t *testing.T) {
	c := newCluster(t).withNetworks()
	golden.Check(t, "network", session(c,
		"network ls", "network list -q", "network ls -q --no-trunc", "network ls --no-trunc --format {{.ID}}:{{.Name}}:{{.IPv6}}:{{.Internal}}:{{.Labels}}:{{.CreatedAt}}", `network ls --format json`, "network ls --json",
		"network inspect front nope", "network inspect -v front", "network inspect -f {{.Name}}:{{.Id}}:{{.Scope}} front host",
		"network inspect --json back", "network inspect -v --json back", "network inspect back",
		"network rm back front nope", "network rm -f nope", "network remove back", "network rm",
		"network connect front c1 --ip 10.0.0.1", "network disconnect -f front c1", "network crate x", "network ls --filter x", "network prune -f", "network prune",
	))
	for _, x := range []struct{ format, out string }{{`{{.Label "team"}}`, "\n\nx\n\n\n\n"}, {`{{json .Services}}`, ""}} {
		if r := c.run("network", "ls", "--format", x.format); x.out != "" && r.out != x.out {
			t.Errorf("%s: %q %s", x.format, r.out, r.err)
		}
	}
	r := c.run("network", "inspect", "-v", "--format", "{{json .Services}}", "ingress")
	want(t, r, 0, `{"web":{"VIP":"","Ports":["Target: 80, Publish: 8080"],"LocalLBIndex":0,"Tasks":[]}}`, "")
	if id := sent[*skepv1.MeshNetworkRequest](c).NetworkId; id != "" {
		t.Errorf("the mesh of published ports was asked for as %q", id)
	}
}

func TestNetworkCreate(t *testing.T) {
	c := newCluster(t)
	r := c.run("network", "create", "-d", "overlay", "--subnet", "10.0.9.0/24", "--gateway", "10.0.9.1", "--label", "a=b", "-o", "encrypted", "--attachable", "front")
	want(t, r, 0, frontID, "Warning: subnet 10.0.9.0/24 covers")
	if r.out != frontID+"\n" {
		t.Errorf("standard output must be the id alone: %q", r.out)
	}
	s := sent[*skepv1.CreateNetworkRequest](c).Spec
	w := &skepv1.NetworkSpec{Name: "front", Driver: "overlay", Attachable: true, Labels: map[string]string{"a": "b"}, DriverOpts: map[string]string{"encrypted": ""},
		Ipam: []*skepv1.IPAMConfig{{Subnet: "10.0.9.0/24", Gateway: "10.0.9.1"}}}
	if !proto.Equal(s, w) {
		t.Errorf("sent %v", s)
	}
	for args, text := range map[string]string{
		"": "'skep network create' requires 1 argument", "--driver bridge x": "use driver overlay", "a_": "name must be valid as a DNS name component", "ingress": "ingress is a pre-defined network",
		"--subnet 10.0.9.0/24 --gateway 10.9.9.1 x": "no matching subnet for gateway 10.9.9.1", "--ingress x": "every cluster has its network of published ports", "--subnt x y": "did you mean --subnet?",
		"-o nope=1 x": "unknown driver option", "--scope local x": "networks exist in the whole cluster", "--subnet 10.0.9.0/30 x": "too small",
	} {
		want(t, c.run(append([]string{"network", "create"}, strings.Fields(args)...)...), 2, "", text)
	}
}

func TestNetworkPrune(t *testing.T) {
	c := newCluster(t).withNetworks()
	type answer struct {
		in   string
		code int
		out  string
	}
	for _, x := range []answer{{"n\n", 1, "[y/N] "}, {"", 1, "[y/N] "}, {"y\n", 0, "Deleted Networks:\nback\n\n"}, {"YES\n", 0, "Deleted Networks:\nback\n\n"}} {
		var out, errs safeBuffer
		env := c.env(&out, &errs)
		env.In = strings.NewReader(x.in)
		code := Main(context.Background(), env, []string{"network", "prune"})
		if code != x.code || !strings.HasPrefix(out.String(), "WARNING! This will remove all custom networks not used by at least one service.\nAre you sure") || !strings.HasSuffix(out.String(), x.out) {
			t.Errorf("%q: %d %q %q", x.in, code, out.String(), errs.String())
		}
	}
	want(t, c.run("network", "prune", "-f", "--filter", "until=5m"), 0, "", "")
	if r := c.run("network", "prune", "-f", "--filter", "until=5m"); r.out != "" {
		t.Errorf("a network younger than asked was removed: %q", r.out)
	}
	want(t, c.run("network", "prune", "-f", "--filter", "until=30s"), 0, "back\n", "")
	want(t, c.run("network", "prune", "-f", "--filter", "name=x"), 2, "", "use label, label!, until")
	want(t, c.run("network", "prune", "-f", "--filter", "label=a"), 0, "", "")
	f := sent[*skepv1.ListNetworksRequest](c).Filters
	if len(f) != 2 || f[0].Key != "type" || f[1].Key != "label" {
		t.Errorf("asked for %v", f)
	}
	c.networks[0].Spec.Labels = map[string]string{"keep": "1"}
	if r := c.run("network", "prune", "-f", "--filter", "label!=keep"); r.code != 0 || r.out != "" {
		t.Errorf("a spared network was removed: %v", r)
	}
	// A service joined between the look and the removal: the network stays, and that is no failure.
	c.on = func(r proto.Message) error {
		if _, ok := r.(*skepv1.Ref); ok {
			return fault.Conflict("network back is in use by service web")
		}
		return nil
	}
	want(t, c.run("network", "prune", "-f"), 0, "", "Warning: network back is in use by service web")
}

func TestServiceNetworks(t *testing.T) {
	c := newCluster(t).withNetworks()
	s := webService()
	s.Spec.Task.Networks = []*skepv1.NetworkAttachment{{Target: frontID}}
	s.Endpoint = &skepv1.Endpoint{VirtualIps: []*skepv1.VirtualIP{{NetworkId: frontID, Addr: "10.0.9.200/24"}}}
	c.services = []*skepv1.Service{s}
	want(t, c.run("service", "inspect", "--pretty", "web"), 0, "Networks: front\n", "")
	want(t, c.run("service", "inspect", "--format", "{{json .Endpoint.VirtualIPs}}", "web"), 0, `[{"NetworkID":"`+frontID+`","Addr":"10.0.9.200/24"}]`, "")
	for args, text := range map[string]string{
		"--network-rm back": "service is not attached to network back", "--network-add front": "service is already attached to network front",
		"--network-add " + frontID: "service is already attached to network", "--network-add name=back --network-add " + backID: "service is already attached to network",
	} {
		want(t, c.run(append(append([]string{"service", "update", "-d"}, strings.Fields(args)...), "web")...), 2, "", text)
	}
	want(t, c.run("service", "update", "-d", "--network-rm", "nope", "web"), 1, "", "network nope not found")
	want(t, c.run("service", "update", "-d", "--network-add", "nope", "web"), 1, "", "network nope not found")
	for _, ref := range []string{"front", frontID} {
		want(t, c.run("service", "update", "-d", "--network-rm", ref, "--network-add", "name=back,alias=db", "web"), 0, "web", "")
		n := sent[*skepv1.UpdateServiceRequest](c).Spec.Task.Networks
		if len(n) != 1 || n[0].Target != backID || len(n[0].Aliases) != 1 {
			t.Errorf("--network-rm %s: sent %v", ref, n)
		}
		c.services[0].Spec.Task.Networks = []*skepv1.NetworkAttachment{{Target: frontID}}
	}
	// Detached and attached in one go: new aliases.
	want(t, c.run("service", "update", "-d", "--network-rm", "front", "--network-add", "name=front,alias=x", "web"), 0, "web", "")
	if n := sent[*skepv1.UpdateServiceRequest](c).Spec.Task.Networks; len(n) != 1 || n[0].Target != frontID || len(n[0].Aliases) != 1 {
		t.Errorf("sent %v", n)
	}
}

func TestNetworkCompletion(t *testing.T) {
	c := newCluster(t).withNetworks()
	for args, wants := range map[string]string{
		"network rm ": "front", "network inspect front ": "back", "network create --driver ": "overlay", "service create --network ": "back", "service update --network-rm ": "front", "network ls --filter ": "dangling=true",
	} {
		r := c.run(append([]string{"__complete"}, strings.Split(args, " ")...)...)
		if !strings.Contains("\n"+strings.ReplaceAll(r.out, "\t", "\n"), "\n"+wants+"\n") {
			t.Errorf("completing %q offers\n%s", args, r.out)
		}
	}
}
