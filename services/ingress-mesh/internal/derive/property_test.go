package derive

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

// world is a small cluster that changes at random. Everything is put into one picture step by step, and into another one
// at the end: both have to want the same.
type world struct {
	t        *rapid.T
	p        *Picture
	buckets  map[string]map[string]proto.Message
	versions map[string]uint64
	rev      uint64            // of bucket endpoint
	told     map[string]Stored // of bucket endpoint, as far as the feed has come
	late     []string          // keys the feed has still to tell
}

func newWorld(t *rapid.T) *world {
	return &world{t: t, p: New(), versions: map[string]uint64{}, told: map[string]Stored{},
		buckets: map[string]map[string]proto.Message{"spec": {}, "rev": {}, "node": {}, "task": {}, "status": {}}}
}

func (w *world) in(p *Picture, bucket, key string) {
	put := map[string]func(string, []byte) error{"spec": p.PutSpec, "rev": p.PutRevision, "node": p.PutNode, "task": p.PutTasks, "status": p.PutStatus}[bucket]
	var raw []byte
	if v := w.buckets[bucket][key]; v != nil {
		raw = enc(w.t, v)
	}
	if err := put(key, raw); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) set(bucket, key string, m proto.Message) {
	w.buckets[bucket][key] = m
	if m == nil {
		delete(w.buckets[bucket], key)
	}
	w.in(w.p, bucket, key)
}

func (w *world) pick(what string, n int) string {
	return fmt.Sprint(what, rapid.IntRange(0, n-1).Draw(w.t, what))
}

func (w *world) chance(what string) bool { return rapid.IntRange(0, 3).Draw(w.t, what) == 0 }

// write commits a change to the bucket and notes it; the feed tells of it before or later.
func (w *world) write(c Change) {
	w.rev++
	if len(w.late) == 0 && w.chance("the feed is faster") {
		if err := w.p.PutStored(c.Key, c.Value, w.rev); err != nil {
			w.t.Fatal(err)
		}
		if delete(w.told, c.Key); c.Value != nil {
			w.told[c.Key] = w.p.stored[c.Key]
		}
	} else {
		w.late = append(w.late, c.Key)
	}
	if err := w.p.Written(c.Key, c.Value, w.rev); err != nil {
		w.t.Fatal(err)
	}
}

// settle commits what the picture wants until it wants nothing.
func (w *world) settle() {
	if w.chance("one is held back") {
		late := w.pick("n", 3)
		changes, _ := w.p.Plan(func(node string) bool { return node == late })
		for _, c := range changes {
			if _, isService := keys.ParseServiceItem(c.Item()); !isService && c.Item() == late && w.p.networks[strings.Split(c.Key, ".")[0]] != nil {
				w.t.Fatalf("%s is written of a node that is held", c.Key)
			}
			w.write(c)
		}
	}
	for round := 0; w.p.Dirty(); round++ {
		changes, problems := w.p.Plan(nil)
		if len(problems) > 0 {
			w.t.Fatal(problems)
		}
		if round > 0 && len(changes) > 0 {
			w.t.Fatalf("a second plan wants %d changes more", len(changes))
		}
		for _, c := range changes {
			if have := w.p.stored[c.Key]; have.Revision != c.Revision {
				w.t.Fatalf("%s is planned over revision %d, and it is at %d", c.Key, c.Revision, have.Revision)
			}
			w.write(c)
		}
	}
}

// echo lets the feed tell what was written, or begin anew with an older state first.
func (w *world) echo(anew bool) {
	if anew {
		w.p.ResetStored()
		for key, s := range w.told {
			if err := w.p.PutStored(key, s.Raw, s.Revision); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	for _, key := range w.late {
		s, ok := w.p.stored[key]
		if delete(w.told, key); ok {
			w.told[key] = s
		} else {
			s = Stored{Revision: w.p.unseen[key].Revision}
		}
		if err := w.p.PutStored(key, s.Raw, s.Revision); err != nil {
			w.t.Fatal(err)
		}
	}
	w.late = nil
	if len(w.p.unseen) > 0 {
		w.t.Fatalf("the feed told everything, and the picture waits for %v", w.p.unseen)
	}
}

func (w *world) tasks() *skepv1.NodeTasks {
	set := &skepv1.NodeTasks{}
	batch := rapid.IntRange(0, 99).Draw(w.t, "batch")
	for i := range rapid.IntRange(0, 4).Draw(w.t, "tasks") {
		set.Tasks = append(set.Tasks, &skepv1.TaskRecord{Id: fmt.Sprintf("t%d.%d", batch, i%3), ServiceId: w.pick("s", 3), Revision: uint64(rapid.IntRange(1, 3).Draw(w.t, "rev")),
			Desired: rapid.SampledFrom([]skepv1.TaskState{running, shutdown}).Draw(w.t, "desired")})
	}
	return set
}

func (w *world) status(node string) *skepv1.NodeStatus {
	ids := map[string]bool{}
	for key, m := range w.buckets["task"] {
		if owner, _, _ := keys.ParseEndpoint(key); owner == node {
			for _, r := range m.(*skepv1.NodeTasks).Tasks {
				ids[r.Id] = true
			}
		}
	}
	st := &skepv1.NodeStatus{}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		network, addr := w.pick("net", 2), fmt.Sprintf("10.1.0.%d", rapid.IntRange(0, 63).Draw(w.t, "addr"))
		if s, _ := w.p.Get(keys.Endpoint.Key(network, node)); len(s.Blocks) > 0 && !w.chance("it lies") {
			addr = bare(rapid.SampledFrom(s.Blocks).Draw(w.t, "block")) // of one address
		}
		st.Tasks = append(st.Tasks, &skepv1.TaskStatus{
			TaskId: id, State: rapid.SampledFrom([]skepv1.TaskState{ready, running, running, shutdown}).Draw(w.t, "state"), Addresses: []string{"100.64.0.9/23"},
			Networks: []*skepv1.NetworkAddress{{NetworkId: network, Addr: addr + "/26"}},
		})
	}
	return st
}

func (w *world) service(s string) {
	spec := &skepv1.ServiceSpec{Name: s, Task: &skepv1.TaskSpec{}}
	for i := range 2 {
		if rapid.Bool().Draw(w.t, "on") {
			spec.Task.Networks = append(spec.Task.Networks, &skepv1.NetworkAttachment{Target: fmt.Sprint("net", i)})
		}
	}
	o := &skepv1.Service{Spec: spec, Endpoint: &skepv1.Endpoint{}}
	if rapid.Bool().Draw(w.t, "published") {
		o.Endpoint.Ports = []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp"}}
	}
	w.versions[s]++
	o.Revision = w.versions[s]
	w.set("rev", fmt.Sprintf("service.%s.%d", s, o.Revision), &skepv1.Revision{Spec: spec})
	w.set("spec", "service."+s, o)
}

func (w *world) lease(node, network string) {
	c, block, err := w.p.Lease(node, &skepv1.LeaseBlockRequest{NetworkId: network, WantBlock: true})
	if err != nil {
		if f := fault.Of(err); f != fault.CodeNotFound && f != fault.CodeUnavailable && f != fault.CodeExhausted && f != fault.CodeDenied {
			w.t.Fatal(err)
		}
		return
	}
	w.write(*c)
	if s, _ := w.p.Get(keys.Endpoint.Key(network, node)); !slices.Contains(s.Blocks, block) {
		w.t.Fatalf("leased %s, and the record has %v", block, s.Blocks)
	}
}

func (w *world) giveBack(node, network string) {
	s, _ := w.p.Get(keys.Endpoint.Key(network, node))
	if len(s.Blocks) == 0 {
		return
	}
	c, err := w.p.Return(node, &skepv1.ReturnBlocksRequest{NetworkId: network, Blocks: s.Blocks[:rapid.IntRange(1, len(s.Blocks)).Draw(w.t, "returned")]})
	if err != nil {
		w.t.Fatal(err)
	}
	if c != nil {
		w.write(*c)
	}
}

func (w *world) step() {
	node := w.pick("n", 3)
	switch rapid.IntRange(0, 13).Draw(w.t, "what") {
	case 0:
		w.set("spec", "node."+node, &skepv1.NodeObject{Number: 1, Subnet: "100.64.0.0/23"})
	case 1:
		w.set("node", "desc."+node, &skepv1.NodeDescription{Hostname: node, Addr: "10.0.0.1"})
	case 2:
		w.set("node", "live."+node, &skepv1.NodeLive{State: skepv1.NodeState(rapid.IntRange(0, 2).Draw(w.t, "live"))})
	case 3:
		n := w.pick("net", 2)
		w.set("spec", "network."+n, &skepv1.Network{Meta: &skepv1.Meta{Id: n}, Vni: 5000, Spec: &skepv1.NetworkSpec{Name: n}, Ipam: []*skepv1.IPAMConfig{{Subnet: "10.1.0.0/26"}}})
	case 4:
		w.service(w.pick("s", 3))
	case 5:
		w.set("task", node, w.tasks())
	case 6:
		w.set("task", node+".1", w.tasks())
	case 7, 8:
		w.set("status", node, w.status(node))
	case 9, 10:
		w.lease(node, w.pick("net", 2))
	case 11:
		w.giveBack(node, w.pick("net", 2))
	case 12:
		bucket := rapid.SampledFrom([]string{"spec", "rev", "node", "task", "status"}).Draw(w.t, "bucket")
		if keys := slices.Sorted(maps.Keys(w.buckets[bucket])); len(keys) > 0 {
			w.set(bucket, rapid.SampledFrom(keys).Draw(w.t, "gone"), nil)
		}
	case 13: // a feed begins anew
		bucket := "task"
		if rapid.Bool().Draw(w.t, "spec") {
			bucket = "spec"
			w.p.ResetSpec()
		} else {
			w.p.ResetTasks()
		}
		for key := range w.buckets[bucket] {
			w.in(w.p, bucket, key)
		}
	}
	if w.chance("drains") {
		var ids []string
		for _, page := range w.p.tasks[node] {
			ids = append(ids, slices.Sorted(maps.Keys(page))...)
		}
		w.p.Drain(node, append(ids, "nobody's"))
	}
}

func TestStepByStepIsTheSameAsAtOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			w.step()
			if rapid.Bool().Draw(t, "settle now") {
				w.settle()
			}
			if w.chance("the feed tells") {
				w.echo(w.chance("anew"))
			}
			w.noBlockTwice()
			w.nothingBeyond()
		}
		w.settle()

		// The same from the buckets alone, with what was leased and with what drains.
		fresh := newWorld(t)
		fresh.buckets = w.buckets
		for bucket, m := range w.buckets {
			for key := range m {
				fresh.in(fresh.p, bucket, key)
			}
		}
		for key, s := range w.p.stored {
			if len(s.Blocks) > 0 {
				fresh.rev++
				e := &skepv1.MeshEndpoints{Blocks: s.Blocks}
				if err := fresh.p.PutStored(key, enc(t, &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Endpoints{Endpoints: e}}), fresh.rev); err != nil {
					t.Fatal(err)
				}
			}
		}
		for node, tasks := range w.p.draining {
			fresh.p.Drain(node, slices.Sorted(maps.Keys(tasks)))
		}
		fresh.settle()
		for _, k := range slices.Sorted(maps.Keys(fresh.p.stored)) {
			if got, want := w.p.stored[k].Raw, fresh.p.stored[k].Raw; string(got) != string(want) {
				t.Errorf("%s: step by step %q, at once %q", k, got, want)
			}
		}
		for k := range w.p.stored {
			if _, ok := fresh.p.stored[k]; !ok {
				t.Errorf("%s is left over", k)
			}
			scope, item, _ := keys.ParseEndpoint(k)
			if strings.HasPrefix(scope, "net") && w.buckets["spec"]["network."+scope] == nil {
				t.Errorf("%s is of a network that is gone", k)
			}
			if strings.HasPrefix(item, "n") && w.buckets["spec"]["node."+item] == nil {
				t.Errorf("%s is of a node that is gone", k)
			}
		}
	})
}

// nothingBeyond: whatever nodes report, a record has addresses of its node's blocks and subnet alone.
func (w *world) nothingBeyond() {
	for key, s := range w.p.stored {
		scope, node, _ := keys.ParseEndpoint(key)
		given := s.Blocks
		if scope == keys.ScopeIngress {
			given = []string{"100.64.0.0/23"}
		}
		for _, e := range s.Record().GetEndpoints().GetEndpoints() {
			a := netip.MustParseAddr(e.Addr)
			if !slices.ContainsFunc(given, func(b string) bool { return netip.MustParsePrefix(b).Contains(a) }) {
				w.t.Fatalf("scope %s: %s is recorded of %s, which was given %v", scope, a, node, given)
			}
		}
	}
}

// noBlockTwice: no address of a network is in the blocks of two nodes, whatever happened.
func (w *world) noBlockTwice() {
	holder := map[string]map[netip.Prefix]string{}
	for key, s := range w.p.stored {
		network, node, _ := keys.ParseEndpoint(key)
		for _, b := range s.Blocks {
			if holder[network] == nil {
				holder[network] = map[netip.Prefix]string{}
			}
			block := netip.MustParsePrefix(b)
			for other, by := range holder[network] {
				if other.Overlaps(block) {
					w.t.Fatalf("network %s: block %s of %s overlaps %s of %s", network, other, by, block, node)
				}
			}
			holder[network][block] = node
		}
	}
}
