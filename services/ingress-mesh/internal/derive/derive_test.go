package derive

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

func enc(t interface{ Fatal(...any) }, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if b == nil {
		b = []byte{}
	}
	return b
}

// cluster is a picture that changes by hand, and is committed at once.
type cluster struct {
	t   testing.TB
	p   *Picture
	rev uint64
}

func newCluster(t testing.TB) *cluster { return &cluster{t: t, p: New()} }

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) node(id string, number uint32) {
	c.must(c.p.PutSpec("node."+id, enc(c.t, &skepv1.NodeObject{Number: number, Subnet: fmt.Sprintf("100.64.%d.0/24", number)})))
	c.must(c.p.PutNode("desc."+id, enc(c.t, &skepv1.NodeDescription{Hostname: "host-" + id, Addr: fmt.Sprintf("10.0.0.%d", number)})))
}

func (c *cluster) network(id string, subnets ...string) {
	n := &skepv1.Network{Meta: &skepv1.Meta{Id: id}, Spec: &skepv1.NetworkSpec{Name: id}, Vni: 5000}
	for _, s := range subnets {
		n.Ipam = append(n.Ipam, &skepv1.IPAMConfig{Subnet: s})
	}
	c.must(c.p.PutSpec("network."+id, enc(c.t, n)))
}

// service writes a revision and makes it the newest.
func (c *cluster) service(id string, revision uint64, ep *skepv1.Endpoint, networks ...string) {
	spec := &skepv1.ServiceSpec{Name: "svc-" + id, Task: &skepv1.TaskSpec{}}
	for _, n := range networks {
		spec.Task.Networks = append(spec.Task.Networks, &skepv1.NetworkAttachment{Target: n, Aliases: []string{id + "-on-" + n}})
	}
	c.must(c.p.PutRevision(fmt.Sprintf("service.%s.%d", id, revision), enc(c.t, &skepv1.Revision{Spec: spec})))
	c.must(c.p.PutSpec("service."+id, enc(c.t, &skepv1.Service{Spec: spec, Revision: revision, Endpoint: ep})))
}

func (c *cluster) written(x Change) {
	c.t.Helper()
	c.rev++
	c.must(c.p.Written(x.Key, x.Value, c.rev))
}

func (c *cluster) commit() []Change {
	c.t.Helper()
	changes, problems := c.p.Plan(nil)
	if len(problems) > 0 {
		c.t.Fatal(problems)
	}
	for _, x := range changes {
		c.written(x)
	}
	if c.p.Dirty() {
		c.t.Fatal("dirty after a plan")
	}
	return changes
}

func (c *cluster) get(key string) *skepv1.MeshRecord {
	s, _ := c.p.Get(key)
	return s.Record()
}

func (c *cluster) keys() string {
	var out []string
	for k := range c.p.stored {
		out = append(out, k)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (c *cluster) want(keys string) {
	c.t.Helper()
	c.commit()
	if got := c.keys(); got != keys {
		c.t.Errorf("records\n  %s\nwant\n  %s", got, keys)
	}
}

const (
	prep, ready, starting, running  = skepv1.TaskState_TASK_STATE_PREPARING, skepv1.TaskState_TASK_STATE_READY, skepv1.TaskState_TASK_STATE_STARTING, skepv1.TaskState_TASK_STATE_RUNNING
	complete, shutdown, failed, rem = skepv1.TaskState_TASK_STATE_COMPLETE, skepv1.TaskState_TASK_STATE_SHUTDOWN, skepv1.TaskState_TASK_STATE_FAILED, skepv1.TaskState_TASK_STATE_REMOVE
)

// one gives node n1 one task t1 of service s and a report of it.
func (c *cluster) one(revision uint64, desired, state skepv1.TaskState, health skepv1.HealthState, notReady ...bool) {
	c.must(c.p.PutTasks("n1", enc(c.t, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{{Id: "t1", ServiceId: "s", Slot: 3, Revision: revision, Desired: desired}}})))
	c.must(c.p.PutStatus("n1", enc(c.t, &skepv1.NodeStatus{Tasks: []*skepv1.TaskStatus{{TaskId: "t1", State: state, Health: health, NotReady: len(notReady) > 0 && notReady[0],
		Addresses: []string{"100.64.1.9/24", "fd94:4a0:dd4d::6440:109/120"}, Networks: []*skepv1.NetworkAddress{{NetworkId: "net", Addr: "10.1.0.2/20", Addr6: "fd00::a01:2/64"}}}}})))
}

// hold leases a node blocks of a network, as an earlier leader did.
func (c *cluster) hold(node, network string, blocks ...string) {
	c.rev++
	c.must(c.p.PutStored(keys.Endpoint.Key(network, node), enc(c.t, &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Endpoints{Endpoints: &skepv1.MeshEndpoints{Blocks: blocks}}}), c.rev))
}

// load gives a node n tasks on a network, of which it has not reported yet.
func (c *cluster) load(node, network string, n int) {
	c.must(c.p.PutRevision("service.load-"+network+".1", enc(c.t, &skepv1.Revision{Spec: &skepv1.ServiceSpec{Task: &skepv1.TaskSpec{Networks: []*skepv1.NetworkAttachment{{Target: network}}}}})))
	set := &skepv1.NodeTasks{}
	for i := range n {
		set.Tasks = append(set.Tasks, &skepv1.TaskRecord{Id: fmt.Sprint("load-", network, i), ServiceId: "load-" + network, Revision: 1, Desired: running})
	}
	c.must(c.p.PutTasks(node+".load-"+network, enc(c.t, set)))
}

func TestWhoIsListedAndWhoServes(t *testing.T) {
	const begins, well, ill = skepv1.HealthState_HEALTH_STATE_STARTING, skepv1.HealthState_HEALTH_STATE_HEALTHY, skepv1.HealthState_HEALTH_STATE_UNHEALTHY
	for _, tc := range []struct {
		desired, state  skepv1.TaskState
		health          skepv1.HealthState
		unready         bool
		down, drain     bool
		listed, serving bool
	}{
		{desired: running, state: prep},
		{desired: ready, state: ready, listed: true},
		{desired: running, state: ready, listed: true},
		{desired: running, state: starting, listed: true},
		{desired: running, state: running, listed: true, serving: true},
		{desired: complete, state: running, listed: true, serving: true},
		{desired: running, state: running, health: begins, listed: true},
		{desired: running, state: running, health: well, listed: true, serving: true},
		{desired: running, state: running, health: ill, listed: true},
		{desired: running, state: running, unready: true, listed: true},
		{desired: running, state: running, health: well, unready: true, listed: true},
		{desired: running, state: running, down: true, listed: true},
		{desired: running, state: running, drain: true, listed: true},
		{desired: shutdown, state: running, listed: true},
		{desired: rem, state: running, listed: true},
		{desired: running, state: complete},
		{desired: shutdown, state: shutdown},
		{desired: running, state: failed},
	} {
		t.Run(fmt.Sprintf("%v %v %v %v %v %v", tc.desired, tc.state, tc.health, tc.unready, tc.down, tc.drain), func(t *testing.T) {
			c := newCluster(t)
			c.node("n1", 1)
			c.network("net", "10.1.0.0/20", "fd00::/64")
			c.hold("n1", "net", "10.1.0.0/28")
			c.service("s", 1, &skepv1.Endpoint{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp"}}}, "net")
			c.one(1, tc.desired, tc.state, tc.health, tc.unready)
			if tc.down {
				c.must(c.p.PutNode("live.n1", enc(t, &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_DOWN})))
			}
			if tc.drain && c.p.Drain("n1", []string{"t1", "another's"}) != 1 {
				t.Error("it drains what the node does not have")
			}
			c.commit()
			for key, want := range map[string]*skepv1.MeshEndpoint{
				"net.n1":     {TaskId: "t1", ServiceId: "s", Slot: 3, Addr: "10.1.0.2", Addr6: "fd00::a01:2", Serving: tc.serving, Lost: tc.down},
				"ingress.n1": {TaskId: "t1", ServiceId: "s", Slot: 3, Addr: "100.64.1.9", Addr6: "fd94:4a0:dd4d::6440:109", Serving: tc.serving, Lost: tc.down},
			} {
				got := c.get(key).GetEndpoints().GetEndpoints()
				switch {
				case !tc.listed && len(got) > 0:
					t.Errorf("%s lists %v", key, got)
				case tc.listed && (len(got) != 1 || !proto.Equal(got[0], want)):
					t.Errorf("%s is %v, want %v", key, got, want)
				}
			}
			var up []string
			if !tc.down {
				up = []string{"n1"}
			}
			if got := c.p.Up(); !slices.Equal(got, up) {
				t.Errorf("up are %v", got)
			}
			if got := c.p.Endpoints("n1"); (len(got) == 2) != tc.listed {
				t.Errorf("its tasks stand in %v", got)
			}
		})
	}
}

// A service that asks for it has its tasks listed from their start. Of the others the records do not say: a check that
// fails is no news to them.
func TestStartingTasksAreListedForWhoAsks(t *testing.T) {
	const begins, well, ill = skepv1.HealthState_HEALTH_STATE_STARTING, skepv1.HealthState_HEALTH_STATE_HEALTHY, skepv1.HealthState_HEALTH_STATE_UNHEALTHY
	for _, tc := range []struct {
		desired, state skepv1.TaskState
		health         skepv1.HealthState
		unready        bool
		down, drain    bool
		starting       bool
	}{
		{desired: ready, state: ready},
		{desired: running, state: ready},
		{desired: running, state: starting, starting: true},
		{desired: running, state: running, health: begins, starting: true},
		{desired: running, state: running, health: ill, starting: true}, // the others find it again, until it is about to stop
		{desired: running, state: running, unready: true, starting: true},
		{desired: complete, state: running, health: begins, starting: true},
		{desired: running, state: running, health: well}, // it serves
		{desired: running, state: running},
		{desired: running, state: running, health: begins, down: true},
		{desired: running, state: running, health: begins, drain: true},
		{desired: shutdown, state: running, health: begins},
		{desired: rem, state: running, health: ill},
		{desired: running, state: failed, health: ill},
	} {
		t.Run(fmt.Sprintf("%v %v %v %v %v %v", tc.desired, tc.state, tc.health, tc.unready, tc.down, tc.drain), func(t *testing.T) {
			c := newCluster(t)
			c.node("n1", 1)
			c.network("net", "10.1.0.0/20", "fd00::/64")
			c.hold("n1", "net", "10.1.0.0/28")
			asks := func(starting bool) {
				c.must(c.p.PutSpec("service.s", enc(t, &skepv1.Service{Revision: 1, Spec: &skepv1.ServiceSpec{
					Name: "zoo", Endpoint: &skepv1.EndpointSpec{DnsStarting: starting}, Task: &skepv1.TaskSpec{Networks: []*skepv1.NetworkAttachment{{Target: "net"}}},
				}, Endpoint: &skepv1.Endpoint{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp"}}}})))
			}
			c.service("s", 1, &skepv1.Endpoint{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp"}}}, "net")
			c.one(1, tc.desired, tc.state, tc.health, tc.unready)
			if tc.down {
				c.must(c.p.PutNode("live.n1", enc(t, &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_DOWN})))
			}
			if tc.drain {
				c.p.Drain("n1", []string{"t1"})
			}
			for _, asked := range []bool{false, true, false} { // switching restarts nothing: the records follow
				asks(asked)
				c.commit()
				for _, e := range c.get("net.n1").GetEndpoints().GetEndpoints() {
					if e.Starting != (asked && tc.starting) {
						t.Errorf("asked for: %v; it is listed as %v", asked, e)
					}
				}
				for _, e := range c.get("ingress.n1").GetEndpoints().GetEndpoints() {
					if e.Starting {
						t.Errorf("published ports know of starting tasks: %v", e)
					}
				}
			}
		})
	}
}

// A node that is down has lost its tasks, and so has one that was fenced until it has taken its new set; a task that is
// about to stop, or is not well, finishes what it has.
func TestWhoIsLost(t *testing.T) {
	for what, tc := range map[string]struct {
		desired skepv1.TaskState
		health  skepv1.HealthState
		drain   bool
		live    skepv1.NodeState
		fence   bool
		lost    bool
	}{
		"well":                     {desired: running},
		"unhealthy":                {desired: running, health: skepv1.HealthState_HEALTH_STATE_UNHEALTHY},
		"draining":                 {desired: running, drain: true},
		"stopping":                 {desired: shutdown},
		"down":                     {desired: running, live: skepv1.NodeState_NODE_STATE_DOWN, lost: true},
		"down and replaced":        {desired: shutdown, live: skepv1.NodeState_NODE_STATE_DOWN, lost: true},
		"fenced, and back":         {desired: shutdown, fence: true, lost: true},
		"fenced, with its new set": {desired: running, fence: true},
	} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t)
			c.node("n1", 1)
			c.network("net", "10.1.0.0/20", "fd00::/64")
			c.hold("n1", "net", "10.1.0.0/28")
			c.service("s", 1, &skepv1.Endpoint{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp"}}}, "net")
			c.one(1, tc.desired, running, tc.health)
			c.must(c.p.PutNode("live.n1", enc(t, &skepv1.NodeLive{State: tc.live})))
			if tc.fence {
				o := proto.CloneOf(c.p.nodes["n1"].object)
				o.Fence = &skepv1.NodeFence{}
				c.must(c.p.PutSpec("node.n1", enc(t, o)))
			}
			if tc.drain {
				c.p.Drain("n1", []string{"t1"})
			}
			c.commit()
			for _, key := range []string{"net.n1", "ingress.n1"} {
				got := c.get(key).GetEndpoints().GetEndpoints()
				if len(got) != 1 || got[0].Lost != tc.lost || got[0].Lost && got[0].Serving {
					t.Errorf("%s: %v, want lost %v", key, got, tc.lost)
				}
			}
		})
	}
}

func TestADrainedTaskIsForgottenWhenItEnds(t *testing.T) {
	for name, end := range map[string]func(*cluster){
		"ended":                        func(c *cluster) { c.one(1, shutdown, shutdown, 0) },
		"gone":                         func(c *cluster) { c.must(c.p.PutTasks("n1", nil)) },
		"gone while the feed was away": func(c *cluster) { c.p.ResetTasks() },
	} {
		c := newCluster(t)
		c.node("n1", 1)
		c.one(1, running, running, 0)
		c.p.Drain("n1", []string{"t1"})
		c.commit()
		c.one(1, running, running, 0)
		if c.commit(); len(c.p.draining["n1"]) != 1 {
			t.Errorf("%s: a report that it runs ends the drain", name)
		}
		end(c)
		if c.commit(); len(c.p.draining) != 0 {
			t.Errorf("%s: it drains still", name)
		}
	}
}

func TestNodes(t *testing.T) {
	c := newCluster(t)
	c.must(c.p.PutSpec("node.n1", enc(t, &skepv1.NodeObject{Number: 7, Subnet: "100.64.7.0/24"})))
	c.want("")
	c.must(c.p.PutNode("desc.n1", enc(t, &skepv1.NodeDescription{Hostname: "h", Addr: "10.0.0.7"})))
	c.want("node.n1")
	c.must(c.p.PutNode("desc.n1", enc(t, &skepv1.NodeDescription{Hostname: "h", Addr: "10.0.0.7", DataPathAddr: "10.9.0.7"})))
	c.must(c.p.PutNode("live.n1", enc(t, &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_DOWN})))
	c.want("node.n1")
	if got, want := c.get("node.n1").GetNode(), (&skepv1.MeshNode{Id: "n1", Hostname: "h", Number: 7, Subnet: "100.64.7.0/24", Addr: "10.9.0.7"}); !proto.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// With the node object go its leases and its endpoints.
	c.network("net", "10.1.0.0/20")
	c.load("n1", "net", 1)
	c.lease("n1", "net")
	c.one(1, running, running, 0)
	c.want("net.info net.n1 node.n1")
	c.must(c.p.PutSpec("node.n1", nil))
	c.want("net.info")
	c.must(c.p.PutNode("desc.n1", nil))
	c.must(c.p.PutNode("live.n1", nil))
	if c.commit(); len(c.p.nodes) != 0 {
		t.Errorf("nodes kept: %v", c.p.nodes)
	}
}

func TestServices(t *testing.T) {
	c := newCluster(t)
	c.node("n1", 1)
	c.network("net", "10.1.0.0/20")
	c.network("two", "10.2.0.0/20")
	c.service("s", 1, &skepv1.Endpoint{
		VirtualIps: []*skepv1.VirtualIP{{NetworkId: "net", Addr: "10.1.15.9/20"}, {NetworkId: "net", Addr: "fd00::f009/64"}},
		Ports:      []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp"}, {TargetPort: 81, PublishedPort: 81, PublishMode: skepv1.PublishMode_PUBLISH_MODE_HOST}},
	}, "net", "host", "gone")
	c.want("ingress.svc_s net.info net.svc_s node.n1 two.info")
	if got, want := c.get("net.svc_s").GetService(), (&skepv1.MeshService{Id: "s", Name: "svc-s", Vip: "10.1.15.9", Vip6: "fd00::f009", Aliases: []string{"s-on-net"}}); !proto.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := c.get("ingress.svc_s").GetService(); len(got.GetPorts()) != 1 || got.GetPorts()[0].GetPublishedPort() != 8080 || got.GetVip() != "" {
		t.Errorf("published: %v", got)
	}

	c.hold("n1", "net", "10.1.0.0/28")

	// It moves to another network: the old one knows it as long as a task of the old revision lives.
	c.one(1, running, running, 0)
	c.service("s", 2, nil, "two")
	c.want("net.info net.n1 net.svc_s node.n1 two.info two.svc_s")
	c.one(1, shutdown, running, 0)
	c.want("net.info net.n1 net.svc_s node.n1 two.info two.svc_s")
	c.one(1, shutdown, shutdown, 0) // it stays as history
	c.want("net.info net.n1 node.n1 two.info two.svc_s")
	c.one(1, running, prep, 0)
	c.want("net.info net.n1 net.svc_s node.n1 two.info two.svc_s")
	c.must(c.p.PutRevision("service.s.1", nil))
	c.want("net.info net.n1 node.n1 two.info two.svc_s")

	// Nothing below a network outlives it, and it comes back with it.
	c.must(c.p.PutSpec("network.two", nil))
	c.want("net.info net.n1 node.n1")
	c.network("two", "10.2.0.0/20")
	c.want("net.info net.n1 node.n1 two.info two.svc_s")
	c.must(c.p.PutSpec("service.s", nil))
	c.want("net.info net.n1 node.n1 two.info")
}

// The feeds keep no order among one another.
func TestAReportComesBeforeItsNetworkAndService(t *testing.T) {
	c := newCluster(t)
	c.node("n1", 1)
	c.one(1, running, running, 0)
	c.want("node.n1")
	c.network("net", "10.1.0.0/20")
	c.hold("n1", "net", "10.1.0.0/28")
	c.want("net.info net.n1 node.n1")
	if got := c.get("net.n1").GetEndpoints().GetEndpoints(); len(got) != 1 {
		t.Errorf("listed: %v", got)
	}
	c.service("s", 1, &skepv1.Endpoint{Ports: []*skepv1.PortConfig{{PublishedPort: 80}}}, "net")
	c.want("ingress.n1 ingress.svc_s net.info net.n1 net.svc_s node.n1")
}

func TestNothingUnreadableChangesWhatIsKnown(t *testing.T) {
	c := newCluster(t)
	c.node("n1", 1)
	c.network("net", "10.1.0.0/20")
	c.service("s", 1, nil, "net")
	c.load("n1", "net", 1)
	c.lease("n1", "net")
	c.one(1, running, running, 0)
	c.commit()
	before := c.keys()
	bad := []byte{0xff}
	for key, put := range map[string]func(string, []byte) error{
		"node.n1": c.p.PutSpec, "network.net": c.p.PutSpec, "service.s": c.p.PutSpec, "cluster": c.p.PutSpec,
		"service.s.1": c.p.PutRevision, "service.s.x": c.p.PutRevision, "desc.n1": c.p.PutNode, "live.n1": c.p.PutNode,
	} {
		if err := put(key, bad); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if c.p.PutTasks("n1", bad) == nil || c.p.PutStatus("n1", bad) == nil {
		t.Error("unreadable tasks are taken")
	}
	c.p.MarkAll()
	if changes := c.commit(); len(changes) > 0 || c.keys() != before {
		t.Errorf("changes %v", changes)
	}
	// A record nobody can read is written anew, with its blocks.
	c.rev++
	if c.p.PutStored("net.n1", bad, c.rev) == nil {
		t.Error("an unreadable record is taken")
	}
	c.commit()
	if got := c.get("net.n1").GetEndpoints(); len(got.GetBlocks()) != 1 || len(got.GetEndpoints()) != 1 {
		t.Errorf("written anew: %v", got)
	}
}

func TestTooLargeIsRefused(t *testing.T) {
	c := newCluster(t)
	c.node("n1", 1)
	c.network("net", "10.1.0.0/16")
	c.hold("n1", "net", "10.1.0.0/17")
	c.commit()
	set, st := &skepv1.NodeTasks{}, &skepv1.NodeStatus{}
	for i := range 20000 {
		id := fmt.Sprintf("%025d", i)
		set.Tasks = append(set.Tasks, &skepv1.TaskRecord{Id: id, ServiceId: id, Desired: running})
		st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: id, State: running, Networks: []*skepv1.NetworkAddress{{NetworkId: "net", Addr: fmt.Sprintf("10.1.%d.%d/16", i/250+1, i%250)}}})
	}
	c.must(c.p.PutTasks("n1", enc(t, set)))
	c.must(c.p.PutStatus("n1", enc(t, st)))
	changes, problems := c.p.Plan(nil)
	if len(problems) != 1 || !strings.Contains(problems[0], "net.n1") || len(changes) != 0 {
		t.Errorf("%q, %d changes", problems, len(changes))
	}
}

func (c *cluster) lease(node, network string) string {
	c.t.Helper()
	ch, block, err := c.p.Lease(node, &skepv1.LeaseBlockRequest{NetworkId: network, WantBlock: true})
	c.must(err)
	c.written(*ch)
	return block
}

func TestLeaseAndReturn(t *testing.T) {
	c := newCluster(t)
	c.node("n1", 1)
	c.node("n2", 2)
	c.network("net", "10.1.0.0/29") // blocks of one address; .0 and the gateway's are nobody's
	if _, _, err := c.p.Lease("n1", &skepv1.LeaseBlockRequest{NetworkId: "nope", WantBlock: true}); !fault.Is(err, fault.CodeNotFound) {
		t.Error(err)
	}
	if _, _, err := c.p.Lease("n9", &skepv1.LeaseBlockRequest{NetworkId: "net", WantBlock: true}); !fault.Is(err, fault.CodeUnavailable) {
		t.Error(err)
	}
	c.load("n1", "net", 3)
	c.load("n2", "net", 3)
	if ch, _, err := c.p.Lease("n1", &skepv1.LeaseBlockRequest{NetworkId: "net"}); ch != nil || err != nil {
		t.Errorf("asked for nothing: %v %v", ch, err)
	}
	var got []string
	for i := range 4 {
		got = append(got, c.lease([]string{"n1", "n2"}[i%2], "net"))
	}
	if want := []string{"10.1.0.2/32", "10.1.0.3/32", "10.1.0.4/32", "10.1.0.5/32"}; !slices.Equal(got, want) {
		t.Errorf("leased %v, want %v", got, want)
	}
	_, _, err := c.p.Lease("n1", &skepv1.LeaseBlockRequest{NetworkId: "net", WantBlock: true})
	if !fault.Is(err, fault.CodeExhausted) || !strings.Contains(err.Error(), "network net has no free addresses: all 4 blocks for tasks, 4 addresses together, are leased to 2 nodes") {
		t.Error(err)
	}
	c.one(1, running, running, 0) // has 10.1.0.2
	c.commit()
	give := func(node string, blocks ...string) *Change {
		ch, err := c.p.Return(node, &skepv1.ReturnBlocksRequest{NetworkId: "net", Blocks: blocks})
		c.must(err)
		if ch != nil {
			c.written(*ch)
		}
		return ch
	}
	if ch := give("n1", "10.1.0.2/32", "10.1.0.3/32", "nonsense"); ch != nil {
		t.Error("it took a block in use, or another node's")
	}
	give("n1", "10.1.0.2/32", "10.1.0.4/32")
	if e := c.get("net.n1").GetEndpoints(); !slices.Equal(e.GetBlocks(), []string{"10.1.0.2/32"}) {
		t.Errorf("left: %v", e)
	}
	if got := c.lease("n2", "net"); got != "10.1.0.4/32" {
		t.Errorf("leased %s", got)
	}
	if ch := give("n2", "10.1.0.3/32", "10.1.0.5/32", "10.1.0.4/32"); ch == nil || ch.Value != nil {
		t.Errorf("a node without blocks and tasks has a record: %v", ch)
	}
	if ch := give("n3", "10.1.0.5/32"); ch != nil {
		t.Error("a node gives back what it does not have")
	}
	if c.commit(); c.get("net.n2") != nil {
		t.Error("it came back")
	}
}

// A feed that begins anew may bring an older state than what was written here.
func TestOwnWritesOutliveAReset(t *testing.T) {
	c := newCluster(t)
	c.node("n1", 1)
	c.node("n2", 2)
	c.network("net", "10.1.0.0/24")
	c.load("n1", "net", 3)
	c.load("n2", "net", 3)
	c.commit()
	first := c.lease("n1", "net")
	old, _ := c.p.Get("net.n1")
	c.lease("n2", "net")
	n2, _ := c.p.Get("net.n2")
	second := c.lease("n1", "net")
	ch, err := c.p.Return("n2", &skepv1.ReturnBlocksRequest{NetworkId: "net", Blocks: n2.Blocks})
	c.must(err)
	c.written(*ch)

	c.p.ResetStored()
	c.must(c.p.PutStored("net.n1", old.Raw, old.Revision))
	c.must(c.p.PutStored("net.n2", n2.Raw, n2.Revision))
	if s, _ := c.p.Get("net.n1"); !slices.Equal(s.Blocks, []string{first, second}) {
		t.Errorf("after the reset: %v", s.Blocks)
	}
	if s, ok := c.p.Get("net.n2"); ok {
		t.Errorf("what was deleted is back: %v", s)
	}
	third := c.lease("n2", "net")
	if third == first || third == second {
		t.Errorf("%s is leased twice", third)
	}
	// The feed catches up: from then on it is believed.
	for _, key := range []string{"net.n1", "net.n2"} {
		s, _ := c.p.Get(key)
		c.must(c.p.PutStored(key, s.Raw, s.Revision))
	}
	c.p.ResetStored()
	for _, key := range []string{"net.n1", "net.n2"} {
		if _, ok := c.p.Get(key); ok {
			t.Errorf("%s is known though the bucket does not have it", key)
		}
	}
}

// The answer to a write may come after the feed has told of it, and of what somebody else wrote over it.
func TestTheFeedIsFasterThanTheAnswer(t *testing.T) {
	forged := enc(t, &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Node{Node: &skepv1.MeshNode{Id: "forged"}}})
	for _, tc := range []struct {
		name string
		over bool
		then []byte // written over it, nil: deleted
		want int    // changes to make it right
	}{{"alone", false, nil, 0}, {"written over", true, forged, 1}, {"deleted", true, nil, 1}} {
		c := newCluster(t)
		c.node("n1", 1)
		changes, _ := c.p.Plan(nil)
		mine := changes[0]
		c.must(c.p.PutStored(mine.Key, mine.Value, 1))
		if tc.over {
			c.must(c.p.PutStored(mine.Key, tc.then, 2))
		}
		c.must(c.p.Written(mine.Key, mine.Value, 1))
		if len(c.p.unseen) != 0 {
			t.Errorf("%s: it waits for what the feed has told", tc.name)
		}
		c.rev = 2
		if got := c.commit(); len(got) != tc.want {
			t.Errorf("%s: %d changes, want %d", tc.name, len(got), tc.want)
		}
		if got, _ := c.p.Get(mine.Key); string(got.Raw) != string(mine.Value) {
			t.Errorf("%s: left with %q", tc.name, got.Raw)
		}
	}
}
