package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

const node2 = "nodenodenodenodenodenode2"

func textOf[M proto.Message](t *testing.T, m M, text string) M {
	t.Helper()
	if err := prototext.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

// onNode answers a command to a node.
func onNode[Q, R proto.Message](c *cluster, e api.Endpoint[Q, R], h func(Q) (R, error)) {
	c.t.Helper()
	var none R
	err := api.Handle(c.rs, e, func(_ context.Context, r Q) (R, error) {
		c.mu.Lock()
		c.calls = append(c.calls, r)
		poison, on := c.poison, c.on
		c.mu.Unlock()
		if on != nil {
			if err := on(r); err != nil {
				return none, err
			}
		}
		out, err := h(r)
		if err == nil && poison != nil {
			poison(out)
		}
		return out, err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.flush()
}

func (c *cluster) secondNode() {
	n := proto.CloneOf(c.nodes[0])
	n.Meta.Id, n.Description.Hostname = node2, "w2"
	c.nodes = append(c.nodes, n)
}

// meshCluster has two nodes with a service on port 8080 and a network.
func meshCluster(t *testing.T) *cluster {
	c := newCluster(t).withNetworks()
	c.secondNode()
	for i, n := range c.nodes {
		n.Number, n.Subnet = uint32(i+1), "100.64.0.0/23"
	}
	for _, id := range []string{nodeID, node2} {
		onNode(c, api.MeshState.At(id), func(*skepv1.MeshStateRequest) (*skepv1.MeshStateReply, error) {
			return textOf(t, &skepv1.MeshStateReply{}, `
				ports { protocol: "udp" port: 53 service_id: "dnsdnsdnsdnsdnsdnsdnsdns1" host_mode: true connections: 2 backends { addr: "100.64.0.9" port: 53 } }
				ports { protocol: "tcp" port: 8080 service_id: "`+webID+`" service_name: "web" connections: 12 backends { addr: "100.64.0.5" port: 80 task_id: "t1" connections: 7 } backends { addr: "100.64.2.5" port: 80 task_id: "t2" connections: 5 } }
				networks { id: "`+frontID+`" name: "front" vni: 4097 mtu: 1450 local: 1 remote: 3 encrypted: true }
				peers { node_id: "x" hostname: "w9" reachable: true }`), nil
		})
		onNode(c, api.MeshTrace.At(id), func(r *skepv1.MeshTraceRequest) (*skepv1.MeshTraceReply, error) {
			if r.Target == "9999/tcp" {
				return nil, fault.NotFound("nothing is published on port 9999/tcp")
			}
			return &skepv1.MeshTraceReply{Hops: []*skepv1.MeshHop{{Where: "nft inet skep prerouting", Text: "to 100.64.0.5:80 or 100.64.2.5:80"}, {Where: "route", Text: "100.64.2.0/23 by skin0"}}}, nil
		})
	}
	web := webService()
	web.Endpoint = textOf(t, &skepv1.Endpoint{}, `ports { protocol: "tcp" target_port: 80 published_port: 8080 }`)
	c.services = []*skepv1.Service{web}
	c.tasks = []*skepv1.Task{webTask("t1", 1, running)}
	c.tasks[0].NodeHostname, c.tasks[0].Status.Addresses = "w1", []string{"100.64.0.5/23"}
	c.tasks[0].Status.Networks = []*skepv1.NetworkAddress{{NetworkId: frontID, Addr: "10.0.9.130/24"}}
	c.mesh[""].Services[0].Service.Id = webID
	c.mesh[""].Services[0].Tasks = []*skepv1.MeshNetworkTask{{Name: "web.1", TaskId: "t1", Serving: true}}
	for _, n := range c.networks {
		if n.Meta.Id == backID {
			n.Ipam = []*skepv1.IPAMConfig{{Subnet: "10.0.10.0/24", Gateway: "10.0.10.1"}}
		}
	}
	return c
}

func TestMeshSession(t *testing.T) {
	c := meshCluster(t)
	golden.Check(t, "mesh", session(c,
		"mesh ls", "mesh ls --node all --no-trunc", "mesh ls -q", "mesh ls --node w2 --format {{.Port}}={{.Mode}}/{{.Addresses}}", "mesh ls --filter port=8080/tcp", "mesh ls --filter service=we --format {{.Service}}",
		"mesh ls --json --node w2", "mesh ls --filter x=y", "mesh ls --node nope",
		"mesh trace 8080", "mesh trace --node w2 53/UDP", "mesh trace --node all 8080", "mesh trace --json 8080", "mesh trace web.1 my_web", "mesh trace t1 10.0.9.7:80",
		"mesh trace 9999", "mesh trace --node w1 web.1 my_web", "mesh trace web.1", "mesh trace 0", "mesh trace 65536", "mesh trace 80/icmp", "mesh trace nope.1 x", "mesh trace", "mesh",
	))
	want(t, c.run("mesh", "trace", "web.1", "my_web"), 0, "", "")
	if r := sent[*skepv1.MeshTraceRequest](c); r.TaskId != "t1" || r.Target != "my_web" {
		t.Errorf("sent %v", r)
	}
	want(t, c.run("mesh", "trace", "8080"), 0, "", "")
	if r := sent[*skepv1.MeshTraceRequest](c); r.TaskId != "" || r.Target != "8080/tcp" {
		t.Errorf("sent %v", r)
	}
	c.tasks[0].Status.State = pending
	want(t, c.run("mesh", "trace", "web.1", "my_web"), 1, "", "task web.1 does not run, so it has no network: it is pending")
}

// TestMeshOfSilentNodes: the others are shown, those without an answer are named.
func TestMeshOfSilentNodes(t *testing.T) {
	c := meshCluster(t)
	third := proto.CloneOf(c.nodes[0])
	third.Meta.Id, third.Description.Hostname = "nodenodenodenodenodenode3", "w3"
	c.nodes = append(c.nodes, third)
	want(t, c.run("mesh", "ls", "--node", "all"), 1, "8080/tcp", "Error: node w3: its mesh is not connected to the managers")
	r := c.run("mesh", "ls", "--node", "w3")
	want(t, r, 1, "", "node w3")
	if r.out != "" {
		t.Errorf("a table of nothing: %q", r.out)
	}
	c.nodes[2].Status.State = skepv1.NodeState_NODE_STATE_DOWN
	want(t, c.run("mesh", "ls", "--node", "all"), 0, "8080/tcp", "Warning: node w3 is down: left out")
}

func TestDoctor(t *testing.T) {
	c := meshCluster(t)
	c.services[0].Spec.Endpoint = &skepv1.EndpointSpec{Ports: c.services[0].Endpoint.Ports}
	var b strings.Builder
	b.WriteString(session(c, "doctor", "doctor --json"))

	// Broken in every way that is told apart.
	third, fourth := proto.CloneOf(c.nodes[0]), proto.CloneOf(c.nodes[0])
	third.Meta.Id, third.Description.Hostname = "nodenodenodenodenodenode3", "w3" // says nothing
	fourth.Meta.Id, fourth.Description.Hostname, fourth.Status.State, fourth.Status.Message = "nodenodenodenodenodenode4", "w4", skepv1.NodeState_NODE_STATE_DOWN, "heartbeat failure"
	fifth := proto.CloneOf(third)
	fifth.Meta.Id, fifth.Description.Hostname = "nodenodenodenodenodenode5", "w5"
	c.nodes = append(c.nodes, third, fourth, fifth)
	onNode(c, api.MeshState.At(fifth.Meta.Id), func(*skepv1.MeshStateRequest) (*skepv1.MeshStateReply, error) {
		return textOf(t, &skepv1.MeshStateReply{}, `ports { protocol: "tcp" port: 9090 }
			findings { severity: "warning" subject: "peer w4" text: "does not answer" } findings { severity: "warning" subject: "peer w2" text: "does not answer through the data path" } findings { severity: "error" subject: "network front" text: "an address is missing" }`), nil
	})
	b.WriteString(session(c, "doctor", "doctor --format {{.Status}}", "doctor --format {{.Nope}}", "doctor x"))
	golden.Check(t, "doctor", b.String())

	c.mesh = map[string]*skepv1.MeshNetworkReply{}
	want(t, c.run("doctor"), 1, "its controller does not answer", "")
	c.on = func(r proto.Message) error {
		if _, ok := r.(*skepv1.ListServicesRequest); ok {
			return fault.Unavailable("not now")
		}
		return nil
	}
	want(t, c.run("doctor"), 1, "the managers do not answer what is stored", "")
}

// TestDoctorIsPatientOnlySoLong: a node that hears the question and says nothing costs its time and is named.
func TestDoctorIsPatientOnlySoLong(t *testing.T) {
	c := meshCluster(t)
	for i := range 40 { // more than are asked at once
		n := proto.CloneOf(c.nodes[0])
		n.Meta.Id, n.Description.Hostname = strings.Repeat("s", 23)+string(rune('a'+i/10))+string(rune('0'+i%10)), "silent"
		c.nodes = append(c.nodes, n)
		sub, err := c.nc.SubscribeSync(subject.Node(n.Meta.Id, "mesh.state"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sub.Unsubscribe() })
	}
	c.flush()
	var out, errs safeBuffer
	env := c.env(&out, &errs)
	env.NodeTimeout = 300 * time.Millisecond
	began := time.Now()
	code := Main(t.Context(), env, []string{"doctor"})
	if n := strings.Count(out.String(), "its mesh did not answer within 300ms"); code != 1 || n != 40 || !strings.Contains(out.String(), "OK        mesh of w2") {
		t.Errorf("%d, %d silent nodes told: %s%s", code, n, out.String(), errs.String())
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestMeshCompletion(t *testing.T) {
	c := meshCluster(t)
	for args, wants := range map[string]string{"mesh trace ": "8080/tcp", "mesh trace web": "web.1", "mesh trace web.1 ": "web", "mesh ls --node ": "all", "mesh ls --filter ": "service="} {
		r := c.run(append([]string{"__complete"}, strings.Split(args, " ")...)...)
		if !strings.Contains("\n"+strings.ReplaceAll(r.out, "\t", "\n"), "\n"+wants+"\n") {
			t.Errorf("completing %q offers\n%s", args, r.out)
		}
	}
}
