package index

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	running  = skepv1.TaskState_TASK_STATE_RUNNING
	shutdown = skepv1.TaskState_TASK_STATE_SHUTDOWN
)

func entry(t testing.TB, key string, rev uint64, m proto.Message) kv.Entry {
	t.Helper()
	if m == nil {
		return kv.Entry{Key: key, Revision: rev, Deleted: true}
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return kv.Entry{Key: key, Value: b, Revision: rev}
}

func delta(e ...kv.Entry) kv.Delta { return kv.Delta{Entries: e} }

func TestCountsFollowRecordsAndReports(t *testing.T) {
	x := New()
	task := func(id string, desired skepv1.TaskState) *skepv1.TaskRecord {
		return &skepv1.TaskRecord{Id: id, ServiceId: "svc", Revision: 1, Desired: desired}
	}
	x.ApplyTask(delta(entry(t, "n1", 1, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{task("a", running), task("b", running)}}),
		entry(t, "n1.1", 2, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{task("c", running)}}),
		entry(t, "_.svc.0", 3, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{task("d", running)}})))
	x.ApplyStatus(delta(entry(t, "n1", 1, &skepv1.NodeStatus{Tasks: []*skepv1.TaskStatus{{TaskId: "a", State: running}, {TaskId: "c", State: running}}})))
	if c := x.Counts("svc"); c != (Counts{Active: 4, Running: 2}) {
		t.Fatalf("%+v", c)
	}
	if g := x.Groups("svc"); fmt.Sprint(g) != "[_.svc n1]" || x.Generation("n1") != 2 {
		t.Fatalf("groups %v, generation %d", g, x.Generation("n1"))
	}
	if got := x.GroupsMentioning("c"); len(got) == 0 {
		t.Fatal("not found")
	}
	// A task that is being stopped does not count any more.
	x.ApplyTask(delta(entry(t, "n1.1", 4, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{task("c", shutdown)}}), entry(t, "_.svc.0", 5, nil)))
	if c := x.Counts("svc"); c != (Counts{Active: 2, Running: 1}) {
		t.Fatalf("%+v", c)
	}
	// Of those that failed over and over, what does not run is in a crash loop.
	loop := func(id string, n uint32) *skepv1.TaskRecord {
		r := task(id, running)
		r.Failures = n
		return r
	}
	x.ApplyTask(delta(entry(t, "n1.1", 6, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{loop("c", 9), loop("e", 2), loop("f", 3), loop("g", 300)}})))
	if c := x.Counts("svc"); c != (Counts{Active: 6, Running: 2, Looping: 2}) {
		t.Fatalf("%+v", c)
	}
	// What a node that is down runs is not known.
	live := func(s skepv1.NodeState) {
		x.ApplyNode(delta(entry(t, "live.n1", 7, &skepv1.NodeLive{State: s})))
	}
	live(skepv1.NodeState_NODE_STATE_READY)
	for range 2 {
		live(skepv1.NodeState_NODE_STATE_DOWN)
		if c := x.Counts("svc"); c != (Counts{}) {
			t.Fatalf("of a node that is down: %+v", c)
		}
		live(skepv1.NodeState_NODE_STATE_UNKNOWN)
		if c := x.Counts("svc"); c != (Counts{Active: 6, Running: 2, Looping: 2}) {
			t.Fatalf("of one that is back: %+v", c)
		}
	}
	x.ApplyTask(kv.Delta{Reset: true})
	if c := x.Counts("svc"); c != (Counts{}) || len(x.Groups("svc")) != 0 {
		t.Fatalf("after a reset %+v %v", c, x.Groups("svc"))
	}
}

func TestResetForgets(t *testing.T) {
	x := New()
	service := func(name string) *skepv1.Service {
		return &skepv1.Service{Meta: &skepv1.Meta{Id: "i" + name}, Spec: &skepv1.ServiceSpec{Name: name}}
	}
	x.ApplySpec(delta(entry(t, "service.ia", 1, service("A")), entry(t, "service.ib", 2, service("b")), kv.Entry{Key: "idx.service.x", Value: []byte("ia"), Revision: 3},
		entry(t, "node.n1", 4, &skepv1.NodeObject{Spec: &skepv1.NodeSpec{Name: "n"}})))
	x.ApplyNode(delta(entry(t, "desc.n1", 1, &skepv1.NodeDescription{Hostname: "h"}), entry(t, "live.n2", 2, &skepv1.NodeLive{})))
	if s := x.ServicesAfter(""); fmt.Sprint(s) != "[{ia A} {ib b}]" || x.Service("ia").Meta.Version != 1 {
		t.Fatalf("%v", s)
	}
	if x.Node("n1") == nil || x.Node("n2") != nil || len(x.NodeIDs()) != 1 {
		t.Fatal("only admitted nodes are nodes")
	}
	x.ApplySpec(kv.Delta{Reset: true, Entries: []kv.Entry{entry(t, "service.ib", 9, service("b2"))}})
	if s := x.ServicesAfter(""); fmt.Sprint(s) != "[{ib b2}]" {
		t.Fatalf("%v", s)
	}
	if _, ok := x.ServiceByName("a"); ok || len(x.Keys("idx.")) != 0 || x.Node("n1") != nil {
		t.Fatal("a reset left something")
	}
	if d, _ := x.Description("n1"); d == nil {
		t.Fatal("a reset of spec took the descriptions, too")
	}
	x.ApplySpec(delta(entry(t, "service.ib", 10, service("c")), entry(t, "service.ic", 11, service("d")), entry(t, "service.ic", 12, nil)))
	if s := x.ServicesAfter("b"); fmt.Sprint(s) != "[{ib c}]" {
		t.Fatalf("%v", s)
	}
}

func TestRevisions(t *testing.T) {
	x := New()
	for _, n := range []uint64{2, 10, 1} {
		x.ApplyRev(delta(entry(t, keys.RevisionKey("s", n), n, &skepv1.Revision{Number: n})))
	}
	x.ApplyRev(delta(entry(t, keys.RevisionKey("s", 2), 20, nil)))
	var got []uint64
	for _, r := range x.Revisions("s") {
		got = append(got, r.Number)
	}
	if fmt.Sprint(got) != "[1 10]" || x.Revision("s", 10).GetNumber() != 10 || x.Revision("s", 2) != nil {
		t.Fatalf("%v", got)
	}
	if o := x.OrphanRevisions(1 << 60); fmt.Sprint(o) != "[s]" {
		t.Fatalf("%v", o)
	}
}

// Who is on which network follows the services through changes, removals and a Reset.
func TestNetworkUsers(t *testing.T) {
	x := New()
	net := func(name string, removing bool) *skepv1.Network {
		return &skepv1.Network{Spec: &skepv1.NetworkSpec{Name: name}, Removing: removing, Ipam: []*skepv1.IPAMConfig{{Subnet: "10.0.0.0/24"}, {Subnet: "fd00::/64"}}}
	}
	svc := func(name string, published bool, networks ...string) *skepv1.Service {
		o := &skepv1.Service{Spec: &skepv1.ServiceSpec{Name: name, Task: &skepv1.TaskSpec{}, Endpoint: &skepv1.EndpointSpec{}}}
		for _, n := range networks {
			o.Spec.Task.Networks = append(o.Spec.Task.Networks, &skepv1.NetworkAttachment{Target: n})
		}
		if published {
			o.Spec.Endpoint.Ports = []*skepv1.PortConfig{{TargetPort: 80}}
		}
		return o
	}
	users := func(id string) string { return fmt.Sprint(x.NetworkUsers(id), x.NetworkUserCount(id)) }
	x.ApplySpec(delta(entry(t, "network.n1", 1, net("Beta", false)), entry(t, "network.n2", 2, net("alpha", false)),
		entry(t, "service.s1", 3, svc("web", true, "n1", "n2")), entry(t, "service.s2", 4, svc("Api", false, "n1", "host"))))
	if got := users("n1") + users("n2") + users("host") + users("ingress"); got != "[{s2 Api} {s1 web}] 2[{s1 web}] 1[{s2 Api}] 1[{s1 web}] 1" {
		t.Fatal(got)
	}
	if got := fmt.Sprint(x.Networks(), x.NetworksInUse(), len(x.Subnets())); got != "[{n2 alpha} {n1 Beta}] [host ingress n1 n2] 4" {
		t.Fatal(got)
	}
	if !x.NetworkUsedBefore("n1", 4) || x.NetworkUsedBefore("n1", 3) {
		t.Fatal("who was there first")
	}
	x.ApplySpec(delta(entry(t, "service.s1", 5, svc("web", false, "n2")), entry(t, "service.s2", 6, nil), entry(t, "network.n1", 7, net("Beta", true))))
	if got := users("n1") + users("n2") + users("host") + users("ingress"); got != "[] 0[{s1 web}] 1[] 0[] 0" {
		t.Fatal(got)
	}
	if st, ok := x.NetworkState("n1"); !ok || !st.Removing || st.Revision != 7 || len(x.StaleRemovals(1)) != 1 {
		t.Fatal(st, ok)
	}
	x.ApplySpec(delta(entry(t, "network.n1", 8, nil)))
	if _, ok := x.NetworkByName("beta"); ok || x.Network("n1") != nil || len(x.Networks()) != 1 {
		t.Fatal("a removed network stays")
	}
	reset := delta(entry(t, "network.n3", 9, net("zeta", false)), entry(t, "network.n4", 10, net("eta", false)), entry(t, "service.s3", 11, svc("db", false, "n3")))
	reset.Reset = true
	x.ApplySpec(reset)
	if got := fmt.Sprint(x.Networks(), x.NetworksInUse(), users("n3")); got != "[{n4 eta} {n3 zeta}] [n3][{s3 db}] 1" {
		t.Fatal(got)
	}
}
