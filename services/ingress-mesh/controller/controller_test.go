package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// world is a cluster's buckets, written by hand.
type world struct {
	t  testing.TB
	n  *kvtest.NATS
	nc *nats.Conn
	b  map[subject.Bucket]*kv.Bucket

	numbers map[string]uint32 // of nodes
}

func newWorld(t testing.TB) *world {
	t.Helper()
	n := kvtest.Server(t)
	w := &world{t: t, n: n, nc: n.Conn(t), b: map[subject.Bucket]*kv.Bucket{}, numbers: map[string]uint32{}}
	for _, b := range subject.Buckets {
		w.b[b] = kv.Open(n.JS(t), b)
	}
	w.put(subject.Spec, "cluster", &skepv1.Cluster{Meta: &skepv1.Meta{Id: "c"}, Spec: &skepv1.ClusterSpec{DataPathPort: 4789}})
	return w
}

func (w *world) put(b subject.Bucket, key string, m proto.Message) {
	w.t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.b[b].Put(context.Background(), key, raw); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) delete(b subject.Bucket, key string) {
	w.t.Helper()
	if err := w.b[b].Delete(context.Background(), key, 0); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) node(id string, number uint32) {
	w.numbers[id] = number
	w.put(subject.Spec, "node."+id, &skepv1.NodeObject{Meta: &skepv1.Meta{Id: id}, Number: number, Subnet: fmt.Sprintf("100.64.%d.0/23", 2*number)})
	w.put(subject.NodeB, "desc."+id, &skepv1.NodeDescription{Hostname: "host-" + id, Addr: fmt.Sprintf("10.90.0.%d", number)})
	w.put(subject.NodeB, "live."+id, &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY})
}

// hold leases a node blocks of a network, as an earlier leader did.
func (w *world) hold(node, network string, blocks ...string) {
	w.put(subject.Endpoint, network+"."+node, &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Endpoints{Endpoints: &skepv1.MeshEndpoints{Blocks: blocks}}})
}

// assign gives a node n tasks of a service, of which it has not reported yet.
func (w *world) assign(node, service string, n int) {
	set := &skepv1.NodeTasks{}
	for i := range n {
		set.Tasks = append(set.Tasks, &skepv1.TaskRecord{Id: fmt.Sprintf("%s-%s-%d", service, node, i), ServiceId: service, Slot: uint64(i + 1), Revision: 1, Desired: running})
	}
	w.put(subject.Task, node, set)
}

func (w *world) network(id, subnet string) {
	w.put(subject.Spec, "network."+id, &skepv1.Network{Meta: &skepv1.Meta{Id: id}, Spec: &skepv1.NetworkSpec{Name: "net-" + id}, Vni: 4097, Ipam: []*skepv1.IPAMConfig{{Subnet: subnet}}})
}

func (w *world) service(id, network string, ports ...*skepv1.PortConfig) {
	spec := &skepv1.ServiceSpec{Name: "svc-" + id, Task: &skepv1.TaskSpec{}}
	ep := &skepv1.Endpoint{Ports: ports}
	if network != "" {
		spec.Task.Networks = []*skepv1.NetworkAttachment{{Target: network, Aliases: []string{"alias-" + id}}}
		ep.VirtualIps = []*skepv1.VirtualIP{{NetworkId: network, Addr: "10.9.15.1/20"}}
	}
	w.put(subject.Rev, "service."+id+".1", &skepv1.Revision{ServiceId: id, Number: 1, Spec: spec})
	w.put(subject.Spec, "service."+id, &skepv1.Service{Meta: &skepv1.Meta{Id: id}, Spec: spec, Revision: 1, Endpoint: ep})
}

// tasks gives a node one task of a service per address, in one state.
func (w *world) tasks(node, service, network string, desired, state skepv1.TaskState, addrs ...string) {
	set, st := &skepv1.NodeTasks{}, &skepv1.NodeStatus{NodeId: node}
	for i, a := range addrs {
		id := fmt.Sprintf("%s-%s-%d", service, node, i)
		set.Tasks = append(set.Tasks, &skepv1.TaskRecord{Id: id, ServiceId: service, Slot: uint64(i + 1), Revision: 1, Desired: desired})
		ts := &skepv1.TaskStatus{TaskId: id, State: state, Addresses: []string{fmt.Sprintf("100.64.%d.%d/23", 2*w.numbers[node], i+2)}}
		if network != "" {
			ts.Networks = []*skepv1.NetworkAddress{{NetworkId: network, Addr: a + "/20"}}
		}
		st.Tasks = append(st.Tasks, ts)
	}
	w.put(subject.Task, node, set)
	w.put(subject.Status, node, st)
}

func (w *world) start(name string, failpoint func(string) error) (s *Service, stop func()) {
	w.t.Helper()
	s, err := New(Config{NC: w.n.Conn(w.t), Log: zaptest.NewLogger(w.t), NodeID: name, LeaseTTL: time.Second, failpoint: failpoint})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case <-time.After(20 * time.Second):
		w.t.Fatal("not ready in 20 s")
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	return s, stop
}

func (w *world) get(key string) *skepv1.MeshRecord {
	w.t.Helper()
	e, err := w.b[subject.Endpoint].Get(context.Background(), key)
	if errors.Is(err, kv.ErrNotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	r := &skepv1.MeshRecord{}
	if err := proto.Unmarshal(e.Value, r); err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// serving are the addresses of a record that serve.
func serving(r *skepv1.MeshRecord) (out []string) {
	for _, e := range r.GetEndpoints().GetEndpoints() {
		if e.Serving {
			out = append(out, e.Addr)
		}
	}
	return out
}

func (w *world) call(verb, node string, req, reply proto.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return rpc.Call(ctx, w.n.As(w.t, node), subject.Svc("mesh", verb, node), req, reply)
}

const (
	running  = skepv1.TaskState_TASK_STATE_RUNNING
	shutdown = skepv1.TaskState_TASK_STATE_SHUTDOWN
)

func TestRecordsFollowTheCluster(t *testing.T) {
	w := newWorld(t)
	n1, n2, net, svc := id.New(), id.New(), id.New(), id.New()
	w.node(n1, 1)
	w.node(n2, 2)
	w.network(net, "10.9.0.0/20")
	w.service(svc, net, &skepv1.PortConfig{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080})
	w.hold(n1, net, "10.9.0.0/28")
	w.tasks(n1, svc, net, running, running, "10.9.0.2", "10.9.0.3")
	w.start("one", nil)

	w.await("endpoints are written", func() bool { return len(serving(w.get(net+"."+n1))) == 2 })
	// Records stand for themselves: which of them is written first is not said.
	w.await("all records are written", func() bool {
		for _, key := range []string{"node." + n1, "node." + n2, net + ".info", net + ".svc_" + svc, "ingress.svc_" + svc, "ingress." + n1} {
			if w.get(key) == nil {
				return false
			}
		}
		return true
	})
	if m := w.get("node." + n2).GetNode(); m.GetNumber() != 2 || m.GetAddr() != "10.90.0.2" || m.GetHostname() != "host-"+n2 {
		t.Errorf("node record %v", m)
	}
	if m := w.get(net + ".info").GetNetwork(); m.GetNetwork().GetVni() != 4097 || m.GetDataPathPort() != 4789 {
		t.Errorf("network record %v", m)
	}
	if m := w.get(net + ".svc_" + svc).GetService(); m.GetVip() != "10.9.15.1" || !slices.Equal(m.GetAliases(), []string{"alias-" + svc}) {
		t.Errorf("service record %v", m)
	}
	if m := w.get("ingress.svc_" + svc).GetService(); len(m.GetPorts()) != 1 || m.GetVip() != "" {
		t.Errorf("published service record %v", m)
	}
	if got := serving(w.get("ingress." + n1)); !slices.Equal(got, []string{"100.64.2.2", "100.64.2.3"}) {
		t.Errorf("published endpoints %v", got)
	}

	// A node that is down serves nobody, and its addresses stay known.
	w.put(subject.NodeB, "live."+n1, &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_DOWN})
	w.await("a node that is down serves nobody", func() bool {
		return len(serving(w.get(net+"."+n1))) == 0 && len(w.get(net+"."+n1).GetEndpoints().GetEndpoints()) == 2
	})
	w.put(subject.NodeB, "live."+n1, &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY})
	w.await("it serves again", func() bool { return len(serving(w.get(net+"."+n1))) == 2 })

	// A task that is to end leaves at once, its address when it has ended.
	w.tasks(n1, svc, net, shutdown, running, "10.9.0.2", "10.9.0.3")
	w.await("tasks that are to end do not serve", func() bool { return len(serving(w.get(net+"."+n1))) == 0 })
	w.tasks(n1, svc, net, shutdown, shutdown, "10.9.0.2", "10.9.0.3")
	w.await("ended tasks are gone", func() bool {
		part := w.get(net + "." + n1).GetEndpoints()
		return len(part.GetEndpoints()) == 0 && len(part.GetBlocks()) == 1 && w.get("ingress."+n1) == nil
	})

	// Without the service, the network and the node nothing of them is left.
	w.delete(subject.Spec, "service."+svc)
	w.await("the service is gone", func() bool { return w.get(net+".svc_"+svc) == nil && w.get("ingress.svc_"+svc) == nil })
	w.delete(subject.Spec, "network."+net)
	w.await("the network is gone", func() bool { return w.get(net+".info") == nil })
	w.delete(subject.Spec, "node."+n2)
	w.await("the node is gone", func() bool { return w.get("node."+n2) == nil })
}

func TestLeaseReturnDrainSync(t *testing.T) {
	w := newWorld(t)
	n1, n2, net, svc := id.New(), id.New(), id.New(), id.New()
	w.node(n1, 1)
	w.node(n2, 2)
	w.network(net, "10.9.0.0/24") // 48 blocks of 4
	w.service(svc, net)
	w.assign(n1, svc, 60)
	w.assign(n2, svc, 60)
	w.start("one", nil)
	w.await("somebody leads", func() bool { return w.get(net+".info") != nil })

	// Many nodes' requests at once: nobody gets another's block.
	var mu sync.Mutex
	holder := map[string]string{}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			node := []string{n1, n2}[i%2]
			var reply skepv1.LeaseBlockReply
			if err := w.call("lease", node, &skepv1.LeaseBlockRequest{NodeId: node, NetworkId: net, WantBlock: true}, &reply); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, b := range reply.Blocks {
				if other := holder[b]; other != "" && other != node {
					t.Errorf("block %s is leased to %s and %s", b, other, node)
				}
				holder[b] = node
			}
		})
	}
	wg.Wait()
	if len(holder) != 40 {
		t.Fatalf("%d blocks are leased, want 40", len(holder))
	}
	var reply skepv1.LeaseBlockReply
	var err error
	for range 10 {
		if err = w.call("lease", n1, &skepv1.LeaseBlockRequest{NetworkId: net, WantBlock: true}, &reply); err != nil {
			break
		}
	}
	if !fault.Is(err, fault.CodeExhausted) {
		t.Errorf("the 49th block: %v", err)
	}
	if err := w.call("lease", n1, &skepv1.LeaseBlockRequest{NodeId: n2, NetworkId: net, WantBlock: true}, &reply); !fault.Is(err, fault.CodeDenied) {
		t.Errorf("a node speaks for another: %v", err)
	}
	if err := w.call("lease", n1, &skepv1.LeaseBlockRequest{NetworkId: id.New(), WantBlock: true}, &reply); !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("a network that is not there: %v", err)
	}

	// A block goes back unless a task has an address of it.
	eps := w.get(net + "." + n2).GetEndpoints()
	inUse, free := eps.Blocks[1], eps.Blocks[2]
	w.tasks(n2, svc, net, running, running, inUse[:len(inUse)-3])
	w.await("the task serves", func() bool { return len(serving(w.get(net+"."+n2))) == 1 })
	if got := w.get(net + "." + n2).GetEndpoints().GetBlocks(); len(got) != len(eps.Blocks) {
		t.Errorf("a report changed the blocks: %d, want %d", len(got), len(eps.Blocks))
	}
	var back skepv1.ReturnBlocksReply
	if err := w.call("return", n2, &skepv1.ReturnBlocksRequest{NetworkId: net, Blocks: []string{inUse, free}}, &back); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(back.Blocks, inUse) || slices.Contains(back.Blocks, free) {
		t.Errorf("given back %s, which is in use, and %s: left are %v", inUse, free, back.Blocks)
	}

	// A drained task is out of service when the answer comes.
	var drained skepv1.DrainReply
	if err := w.call("drain", n2, &skepv1.DrainRequest{TaskIds: []string{svc + "-" + n2 + "-0"}}, &drained); err != nil {
		t.Fatal(err)
	}
	if got := serving(w.get(net + "." + n2)); len(got) != 0 {
		t.Errorf("%v serve after the drain", got)
	}

	// What a node does not know or has too much comes with the comparison, of its scopes only.
	var all skepv1.MeshSyncReply
	known := map[string]uint64{"node.gone": 1, net + ".svc_" + svc: 1, "othernet.info": 1}
	if err := w.call("sync", n1, &skepv1.MeshSyncRequest{NodeId: n1, Networks: []string{net}, Known: known}, &all); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, e := range all.Changed {
		keys[e.Key] = true
	}
	for _, k := range []string{"node." + n1, "node." + n2, net + ".info", net + "." + n1, net + ".svc_" + svc} {
		if !keys[k] {
			t.Errorf("%s is missing in the comparison: %v", k, keys)
		}
	}
	if !slices.Equal(all.Gone, []string{"node.gone"}) {
		t.Errorf("gone: %v", all.Gone)
	}
}

func TestAnotherLeaderGoesOn(t *testing.T) {
	for _, at := range []string{"write", "written"} { // it dies before a write; after one, without having noted it
		w := newWorld(t)
		net, svc := id.New(), id.New()
		var nodes []string
		for i := range 20 {
			nodes = append(nodes, id.New())
			w.node(nodes[i], uint32(i+1))
			if i > 0 {
				w.hold(nodes[i], net, fmt.Sprintf("10.9.%d.0/28", i))
			}
		}
		w.network(net, "10.9.0.0/16")
		w.service(svc, net)
		w.assign(nodes[0], svc, 1)
		var armed atomic.Bool
		var deaths atomic.Int64
		_, stop := w.start("one", func(where string) error {
			if where == at && armed.Load() {
				deaths.Add(1) // and so does each of its lives after
				return errKilled
			}
			return nil
		})
		w.await("the first one leads", func() bool { return w.get(net+".info") != nil })
		var leased skepv1.LeaseBlockReply
		w.await("a block is leased", func() bool {
			return w.call("lease", nodes[0], &skepv1.LeaseBlockRequest{NetworkId: net, WantBlock: true}, &leased) == nil
		})
		armed.Store(true)
		for i, n := range nodes {
			w.tasks(n, svc, net, running, running, fmt.Sprintf("10.9.%d.2", i))
		}
		w.await("the first one died", func() bool { return deaths.Load() > 0 })
		w.start("two", nil)
		stop()
		w.await("all nodes' endpoints are written", func() bool {
			for _, n := range nodes {
				if len(serving(w.get(net+"."+n))) != 1 {
					return false
				}
			}
			return true
		})
		if got := w.get(net + "." + nodes[0]).GetEndpoints().GetBlocks(); !slices.Equal(got, leased.Blocks) {
			t.Errorf("killed at %q: the node has %v, and was leased %v", at, got, leased.Blocks)
		}
	}
}
