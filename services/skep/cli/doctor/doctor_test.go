package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func from[M proto.Message](t *testing.T, m M, text string) M {
	t.Helper()
	if err := prototext.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

// healthy is a cluster of three nodes with a service on a network and on port 8080, where all is well.
func healthy(t *testing.T) *Picture {
	p := &Picture{}
	for i, name := range []string{"m1", "w1", "w2"} {
		n := from(t, &skepv1.Node{}, fmt.Sprintf(`meta { id: "id-%s" } number: %d subnet: "100.64.%d.0/23" description { hostname: "%s" engine_version: "0.1.0" } status { state: NODE_STATE_READY }`, name, i+1, 2*i, name))
		if i == 0 {
			n.Manager = &skepv1.ManagerStatus{Leader: true, Reachability: "reachable"}
		}
		p.After.Nodes = append(p.After.Nodes, n)
		p.Kernels = append(p.Kernels, render.NodeMesh{Node: n, State: from(t, &skepv1.MeshStateReply{}, `ports { protocol: "tcp" port: 8080 service_id: "web-id" backends { addr: "100.64.2.2" port: 80 } }`)})
	}
	p.Kernels[1].State.Networks = []*skepv1.MeshNetworkState{{Id: "net-id", Name: "net"}}
	p.After.Services = []*skepv1.Service{from(t, &skepv1.Service{}, `meta { id: "web-id" version: 7 } spec { name: "web" mode { replicated { replicas: 1 } } task { networks { target: "net-id" } networks { target: "host" } } }
		endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } virtual_ips { network_id: "net-id" addr: "10.0.9.200/24" } virtual_ips { network_id: "net-id" addr: "fd00:1::a00:9c8/64" } } status { running: 1 desired: 1 }`)}
	p.After.Networks = []*skepv1.Network{
		from(t, &skepv1.Network{}, `meta { id: "net-id" } spec { name: "net" ipv6: true } vni: 4096 ipam { subnet: "10.0.9.0/24" gateway: "10.0.9.1" } ipam { subnet: "fd00:1::/64" gateway: "fd00:1::1" }`),
		from(t, &skepv1.Network{}, `meta { id: "host" } spec { name: "host" driver: "host" } scope: "local"`),
	}
	p.After.Tasks = []*skepv1.Task{from(t, &skepv1.Task{}, `meta { id: "t1" } name: "web.1" node_id: "id-w1" status { state: TASK_STATE_RUNNING networks { network_id: "net-id" addr: "10.0.9.4/24" } }`)}
	p.Mesh = from(t, &skepv1.MeshNetworkReply{}, `services { service { id: "web-id" name: "web" ports { protocol: "tcp" target_port: 80 published_port: 8080 } } tasks { task_id: "t1" serving: true } }`)
	p.Before = p.After
	keep(t, p)
	return p
}

// part makes p.Before its own, for what changed between the two looks.
func part(p *Picture) *Stored {
	c := Stored{}
	for _, n := range p.After.Nodes {
		c.Nodes = append(c.Nodes, proto.CloneOf(n))
	}
	for _, n := range p.After.Services {
		c.Services = append(c.Services, proto.CloneOf(n))
	}
	for _, n := range p.After.Networks {
		c.Networks = append(c.Networks, proto.CloneOf(n))
	}
	for _, n := range p.After.Tasks {
		c.Tasks = append(c.Tasks, proto.CloneOf(n))
	}
	p.Before = c
	return &p.Before
}

func lines(checks []Check, but Status) (out []string) {
	for _, c := range checks {
		if c.Status != but {
			out = append(out, fmt.Sprintf("%s %s: %s", c.Status, c.Check, c.Text))
		}
	}
	return out
}

func TestHealthy(t *testing.T) {
	checks := Examine(*healthy(t))
	if bad := lines(checks, OK); len(bad) > 0 || Worst(checks) != OK {
		t.Errorf("found\n%s", strings.Join(bad, "\n"))
	}
	want := []string{"managers", "nodes", "certificates", "clocks", "store of m1", "streams", "services", "secrets of tasks", "secrets", "leftovers", "addresses", "mesh", "data path", "mesh of m1", "mesh of w1", "mesh of w2"}
	var got []string
	for _, c := range checks {
		got = append(got, c.Check)
	}
	if !slices.Equal(got, want) {
		t.Errorf("looked at %v, want %v", got, want)
	}
	if c := Examine(Picture{Mesh: &skepv1.MeshNetworkReply{}}); Worst(c) != OK {
		t.Errorf("an empty cluster: %v", c)
	}
}

// TestFindings: each fault is told once, with how bad it is, and nothing else is.
func TestFindings(t *testing.T) {
	for name, x := range map[string]struct {
		spoil func(p *Picture)
		want  []string // beginnings of the lines that are not OK; none = it is no fault
	}{
		"a manager is lost": {func(p *Picture) { p.After.Nodes[0].Manager.Reachability = "unreachable" }, []string{"error manager m1: the other managers do not reach it"}},
		"two nodes have one name": {func(p *Picture) {
			p.After.Nodes[2].Status = &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_DOWN}
			p.After.Nodes[2].Description.Hostname = "w1"
			p.Kernels = p.Kernels[:2]
		}, []string{"error node w1: it is down: bring it back, or remove it with `skep node rm id-w2`"}},
		"a network that a node has just left": {func(p *Picture) {
			p.Kernels[2].State.Findings = []*skepv1.MeshFinding{{Severity: "error", Subject: "network gone", Text: "w2 has MTU 1500, not 1370"}}
		}, []string{"warning mesh of w2: network gone: w2 has MTU 1500, not 1370 (no task of this node is on it"}},
		"two machines run as a node": {func(p *Picture) {
			p.After.Nodes[2].Duplicate = &skepv1.NodeDuplicate{Hostname: "w2", Addr: "10.0.0.2", SecondHostname: "copy", SecondAddr: "10.0.0.9"}
		}, []string{"error node w2: two machines run as this node: w2 at 10.0.0.2, and copy at 10.0.0.9, which is refused; run `skep leave --force` on the one that is a copy"}},
		"two managers": {func(p *Picture) {
			p.After.Nodes[1].Manager = &skepv1.ManagerStatus{Reachability: "reachable"}
		}, []string{"warning managers: two managers are no safer than one: losing the one that leads stops every change"}},
		"a node is down": {func(p *Picture) {
			p.After.Nodes[2].Status = &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_DOWN, Message: "heartbeat failure"}
			p.Kernels = p.Kernels[:2]
			p.Kernels[0].State.Findings = []*skepv1.MeshFinding{{Severity: "warning", Subject: "peer w2", Text: "does not answer"}}
		}, []string{"error node w2: it is down (heartbeat failure): bring it back, or remove it with `skep node rm w2`"}},
		"a node is sick": {func(p *Picture) {
			d := p.After.Nodes[2].Description
			d.Trouble, d.TroubleSinceUnixMs = "containerd does not answer: context deadline exceeded", p.Now.Add(-time.Minute).UnixMilli()
		}, []string{"error node w2: it begins no tasks, and gets none, since about a minute ago: containerd does not answer: context deadline exceeded; what it runs goes on."}},
		"a drained node is down": {func(p *Picture) {
			p.After.Nodes[2].Status.State = skepv1.NodeState_NODE_STATE_DOWN
			p.After.Nodes[2].Spec = &skepv1.NodeSpec{Availability: skepv1.Availability_AVAILABILITY_DRAIN}
		}, []string{"warning node w2: it is down:"}},
		"a node is unheard of":    {func(p *Picture) { p.After.Nodes[2].Status.State = skepv1.NodeState_NODE_STATE_UNKNOWN }, []string{"warning node w2: it is unknown"}},
		"a node without a subnet": {func(p *Picture) { p.After.Nodes[2].Subnet = "" }, []string{"error node w2: it has no subnet"}},
		"two versions":            {func(p *Picture) { p.After.Nodes[2].Description.EngineVersion = "0.2.0" }, []string{"warning versions: nodes run different versions of skep, 0.1.0 on m1, w1; 0.2.0 on w2"}},
		"too few tasks":           {func(p *Picture) { p.After.Services[0].Status.Desired = 3 }, []string{"warning service web: 1 of 3 tasks run: `skep service explain web` says why"}},
		"a paused update": {func(p *Picture) {
			p.After.Services[0].UpdateStatus = &skepv1.UpdateStatus{State: "paused", Message: "task x failed"}
		}, []string{"warning service web: its update is paused (task x failed)"}},
		"an unfinished removal": {func(p *Picture) { p.After.Networks[0].Removing = true }, []string{"warning network net: its removal is not finished"}},
		"a route under a network": {func(p *Picture) {
			p.After.Nodes[1].Description.Routes = []string{"10.0.0.0/16", "192.168.0.0/16", "fd00:1::/48", "nonsense"}
		}, []string{
			"warning network net: its subnet 10.0.9.0/24 overlaps the route 10.0.0.0/16 of node w1: its tasks do not reach what is behind that route",
			"warning network net: its subnet fd00:1::/64 overlaps the route fd00:1::/48 of node w1",
		}},
		"a route on every node": {func(p *Picture) {
			for _, n := range p.After.Nodes {
				n.Description.Routes = []string{"10.0.9.0/25", "10.0.9.128/25"}
			}
		}, []string{
			"warning network net: its subnet 10.0.9.0/24 overlaps the route 10.0.9.0/25 of node m1", "warning network net: its subnet 10.0.9.0/24 overlaps the route 10.0.9.128/25 of node m1",
			"warning network net: its subnet 10.0.9.0/24 overlaps the route 10.0.9.0/25 of node w1", "warning network net: 3 more routes of the nodes overlap its subnets",
		}},
		"routes elsewhere":       {func(p *Picture) { p.After.Nodes[1].Description.Routes = []string{"10.1.0.0/16", "fd00:2::/48"} }, nil},
		"a VXLAN id twice":       {func(p *Picture) { p.After.Networks = append(p.After.Networks, another(p)) }, []string{"error network other: it has the VXLAN id 4096 of network net"}},
		"a network that is gone": {func(p *Picture) { p.After.Networks = p.After.Networks[1:] }, []string{"error service web: it has the virtual address 10.0.9.200/24", "error service web: it has the virtual address fd00:1::a00:9c8/64", "error service web: it is on network net-id, which does not exist"}},
		"no virtual address":     {func(p *Picture) { p.After.Services[0].Endpoint.VirtualIps = nil }, []string{"error service web: it has no virtual address on network net"}},
		"dnsrr has none": {func(p *Picture) {
			s := p.After.Services[0]
			s.Endpoint.VirtualIps, s.Spec.Endpoint = nil, &skepv1.EndpointSpec{Mode: skepv1.EndpointSpec_MODE_DNSRR}
		}, nil},
		"an address from outside":  {func(p *Picture) { p.After.Services[0].Endpoint.VirtualIps[0].Addr = "10.0.8.200/24" }, []string{"error service web: its virtual address 10.0.8.200/24 is not one of network net"}},
		"an address twice":         {func(p *Picture) { twin(p) }, []string{"error service twin: it has the virtual address 10.0.9.200 of service web", "error service twin: it has the virtual address fd00:1::a00:9c8 of service web", "error port 8080/tcp: services web and twin both publish it"}},
		"addresses run out":        {func(p *Picture) { fill(p, 59) }, []string{"warning network net: 60 of its 63 virtual addresses are in use"}},
		"no controller":            {func(p *Picture) { p.MeshErr, p.Mesh = errors.New("nobody answers"), nil }, []string{"error mesh: its controller does not answer, so nodes keep what they have and learn nothing new: nobody answers"}},
		"a port the mesh lacks":    {func(p *Picture) { p.Mesh.Services[0].Service.Ports[0].TargetPort = 81 }, []string{"error port 8080/tcp: the mesh does not know that service web publishes it"}},
		"a service the mesh lacks": {func(p *Picture) { p.Mesh.Services = nil }, []string{"error port 8080/tcp: the mesh does not know"}},
		"nobody serves":            {func(p *Picture) { p.Mesh.Services[0].Tasks[0].Serving = false }, []string{"warning port 8080/tcp: no task of service web serves it"}},
		"a silent node":            {func(p *Picture) { p.Kernels[2].Err = errors.New("its mesh did not answer within 3s") }, []string{"error mesh of w2: its mesh did not answer within 3s"}},
		"a finding": {func(p *Picture) {
			p.Kernels[2].State.Findings = []*skepv1.MeshFinding{{Severity: "warning", Subject: "peer w1", Text: "is not reached"}, {Severity: "error", Subject: "published ports", Text: "a rule is missing"}}
		}, []string{"warning mesh of w2: peer w1: is not reached", "error mesh of w2: published ports: a rule is missing"}},
		"a port the kernel lacks": {func(p *Picture) { p.Kernels[1].State.Ports = nil }, []string{"error mesh of w1: port 8080/tcp: service web publishes it and this node does not take it"}},
		"a port of somebody else": {func(p *Picture) { p.Kernels[1].State.Ports[0].ServiceId = "other" }, []string{"error mesh of w1: port 8080/tcp: service web publishes it and this node sends it to another service (other)"}},
		"a port without backends": {func(p *Picture) { p.Kernels[1].State.Ports[0].Backends = nil }, []string{"error mesh of w1: port 8080/tcp: service web has tasks that serve it and this node knows none"}},
		"a port nobody has": {func(p *Picture) {
			p.Kernels[1].State.Ports = append(p.Kernels[1].State.Ports, &skepv1.MeshPortState{Protocol: "udp", Port: 8080})
		}, []string{"warning mesh of w1: port 8080/udp: no service publishes it"}},
		"a host port is a task's own": {func(p *Picture) {
			p.Kernels[1].State.Ports = append(p.Kernels[1].State.Ports, &skepv1.MeshPortState{Protocol: "udp", Port: 53, HostMode: true})
		}, nil},
		"a network the kernel lacks": {func(p *Picture) { p.Kernels[1].State.Networks = nil }, []string{"error mesh of w1: network net: task web.1 is on it and the node does not have it"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := healthy(t)
			x.spoil(p)
			if len(p.Before.Services) != len(p.After.Services) || len(p.Before.Networks) != len(p.After.Networks) {
				p.Before = p.After
			}
			got := lines(Examine(*p), OK)
			if len(got) != len(x.want) {
				t.Fatalf("found\n%s\nwant %d", strings.Join(got, "\n"), len(x.want))
			}
			for i, w := range x.want {
				if !strings.HasPrefix(got[i], w) {
					t.Errorf("found %q, want %q", got[i], w)
				}
			}
		})
	}
}

// TestWhatMovesIsLeftOut: a difference that the order of the questions explains is none.
func TestWhatMovesIsLeftOut(t *testing.T) {
	for name, change := range map[string]func(p *Picture){
		"a service is created": func(p *Picture) {
			part(p).Services = nil
			p.Mesh.Services = nil
			for _, k := range p.Kernels {
				k.State.Ports = nil
			}
		},
		"a service is removed": func(p *Picture) { part(p); p.After.Services = nil },
		"a port is published": func(p *Picture) {
			part(p).Services[0].Meta.Version = 6
			p.Before.Services[0].Endpoint.Ports = nil
			p.Mesh.Services = nil
			p.Kernels[1].State.Ports = nil
		},
		"a task starts": func(p *Picture) {
			part(p).Tasks[0].Status.State = skepv1.TaskState_TASK_STATE_STARTING
			p.Kernels[1].State.Networks, p.Kernels[1].State.Ports = nil, nil
			p.After.Services[0].Status.Running, p.After.Services[0].Status.Desired = 0, 0
		},
		"a task ends": func(p *Picture) {
			part(p)
			p.After.Tasks = nil
			p.Kernels[1].State.Networks = nil
			p.After.Services[0].Status.Running = 0
			p.After.Services[0].Status.Desired = 0
		},
	} {
		p := healthy(t)
		change(p)
		if got := lines(Examine(*p), OK); len(got) > 0 {
			t.Errorf("%s: found\n%s", name, strings.Join(got, "\n"))
		}
	}
}

func another(p *Picture) *skepv1.Network {
	n := proto.CloneOf(p.After.Networks[0])
	n.Meta.Id, n.Spec.Name = "other-id", "other"
	return n
}

// twin has the addresses and ports of the service that is there.
func twin(p *Picture) {
	s := proto.CloneOf(p.After.Services[0])
	s.Meta.Id, s.Spec.Name, s.Status = "twin-id", "twin", &skepv1.ServiceStatus{}
	p.After.Services = append(p.After.Services, s)
	m := proto.CloneOf(p.Mesh.Services[0])
	m.Service.Id, m.Tasks = "twin-id", nil
	p.Mesh.Services = append(p.Mesh.Services, m)
}

// fill adds n services with an address each.
func fill(p *Picture, n int) {
	for i := range n {
		s := proto.CloneOf(p.After.Services[0])
		s.Meta.Id, s.Spec.Name, s.Endpoint = fmt.Sprint("s", i), fmt.Sprint("s", i), &skepv1.Endpoint{VirtualIps: []*skepv1.VirtualIP{{NetworkId: "net-id", Addr: fmt.Sprintf("10.0.9.%d/24", 2+i)}}}
		p.After.Services = append(p.After.Services, s)
	}
}

// TestInTheClear: who runs the cluster reads which networks a host on the way between nodes could speak to.
func TestInTheClear(t *testing.T) {
	encrypted := func(n *skepv1.Network) { n.Spec.DriverOpts = map[string]string{"encrypted": ""} }
	for name, x := range map[string]struct {
		spoil func(p *Picture)
		want  string
	}{
		"a plain network": {func(*Picture) {}, "in the clear are published ports and net: "},
		"none":            {func(p *Picture) { encrypted(p.After.Networks[0]) }, "no network goes between nodes in the clear, published ports do: "},
		"which are not": {func(p *Picture) {
			encrypted(p.After.Networks[0])
			o := another(p)
			o.Spec.DriverOpts = nil
			p.After.Networks = append(p.After.Networks, o)
		}, "in the clear are published ports and other: "},
		"one node": {func(p *Picture) { p.After.Nodes = p.After.Nodes[:1] }, "there is one node, which takes nothing from others"},
	} {
		p := healthy(t)
		x.spoil(p)
		p.Before = p.After
		checks := Examine(*p)
		i := slices.IndexFunc(checks, func(c Check) bool { return c.Check == "data path" })
		if i < 0 || checks[i].Status != OK || !strings.HasPrefix(checks[i].Text, x.want) {
			t.Errorf("%s: %v", name, checks)
		}
	}
}
