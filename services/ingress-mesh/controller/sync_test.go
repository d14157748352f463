package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// many gives a node n tasks on a network.
func (w *world) many(node, service, network string, n int) {
	set, st := &skepv1.NodeTasks{}, &skepv1.NodeStatus{NodeId: node}
	for i := range n {
		id := fmt.Sprintf("%s%04d", node[:21], i)
		set.Tasks = append(set.Tasks, &skepv1.TaskRecord{Id: id, ServiceId: service, Slot: uint64(i + 1), Revision: 1, Desired: running})
		st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: id, State: running, Networks: []*skepv1.NetworkAddress{{NetworkId: network, Addr: fmt.Sprintf("10.9.%d.5/16", w.numbers[node])}}})
	}
	w.hold(node, network, fmt.Sprintf("10.9.%d.0/26", w.numbers[node]))
	w.put(subject.Task, node, set)
	w.put(subject.Status, node, st)
}

// compare asks page by page, as a node does, and says how many pages that took.
func (w *world) compare(node string, networks []string, known map[string]uint64) (pages int, gone []string) {
	w.t.Helper()
	for {
		var reply skepv1.MeshSyncReply
		if err := w.call("sync", node, &skepv1.MeshSyncRequest{NodeId: node, Networks: networks, Known: known}, &reply); err != nil {
			w.t.Fatal(err)
		}
		pages++
		if size := proto.Size(&reply); size > syncBytes+1024 && len(reply.Changed) > 1 {
			w.t.Errorf("a page of %d bytes with %d records", size, len(reply.Changed))
		}
		for _, e := range reply.Changed {
			known[e.Key] = e.Revision
		}
		for _, k := range reply.Gone {
			delete(known, k)
		}
		gone = append(gone, reply.Gone...)
		if !reply.More {
			return pages, gone
		}
		if pages > 50 {
			w.t.Fatal("no end of pages")
		}
	}
}

func TestPagesAreSmall(t *testing.T) {
	w := newWorld(t)
	net, svc := id.New(), id.New()
	w.network(net, "10.9.0.0/16")
	w.service(svc, net)
	var nodes []string
	for i := range 4 {
		nodes = append(nodes, id.New())
		w.node(nodes[i], uint32(i+1))
		if i < 3 {
			w.many(nodes[i], svc, net, 3000)
		}
	}
	w.many(nodes[3], svc, net, 9000) // more than a page by itself
	w.start("one", nil)
	known := map[string]uint64{"node.gone": 1, "other.info": 1}
	var pages int
	var gone []string
	w.await("the node knows everything", func() bool {
		n, g := w.compare(nodes[0], []string{net}, known)
		pages, gone = pages+n, append(gone, g...)
		return len(known) == 4+4+2+1 // nodes, their parts, the network and its service, what nobody asked about
	})
	if pages < 4 || !slices.Equal(gone, []string{"node.gone"}) {
		t.Errorf("%d pages, gone %v", pages, gone)
	}
	if pages, _ := w.compare(nodes[0], []string{net}, known); pages != 1 {
		t.Errorf("nothing differs, and it took %d pages", pages)
	}
	// A question whose answer does not fit gets an answer.
	err := rpc.Call(while(t), w.nc, subject.API("mesh", "network"), &skepv1.MeshNetworkRequest{NetworkId: net}, &skepv1.MeshNetworkReply{})
	if !fault.Is(err, fault.CodeExhausted) || !strings.Contains(err.Error(), "18000 tasks of 1 services on 4 nodes") {
		t.Errorf("network inspect of 18,000 tasks: %v", err)
	}
}

// What was deleted last leaves nothing but the stream's sequence: an instance that started after that knows it all the same.
func TestWhatWasDeletedLastIsGone(t *testing.T) {
	w := newWorld(t)
	n1, net := id.New(), id.New()
	w.node(n1, 1)
	_, stop := w.start("one", nil)
	w.await("the node is written", func() bool { return w.get("node."+n1) != nil })
	w.network(net, "10.9.0.0/24") // its record is the newest there is
	known := map[string]uint64{}
	w.await("the node knows the network", func() bool {
		w.compare(n1, []string{net}, known)
		return known["node."+n1] > 0 && known[net+".info"] > known["node."+n1]
	})
	w.delete(subject.Spec, "network."+net)
	w.await("the network is gone", func() bool { return w.get(net+".info") == nil })
	stop()
	two := w.follower("two", nil) // does not lead, so it writes nothing that would help
	reply, err := two.sync(while(t), n1, &skepv1.MeshSyncRequest{Networks: []string{net}, Known: known})
	if err != nil || !slices.Equal(reply.Gone, []string{net + ".info"}) || reply.Revision <= known[net+".info"] {
		t.Errorf("%v, %v", reply, err)
	}
	// It does not judge what is younger than what it has seen.
	reply, err = two.sync(while(t), n1, &skepv1.MeshSyncRequest{Known: map[string]uint64{"node.young": 1 << 40}})
	if err != nil || len(reply.Gone) != 0 {
		t.Errorf("%v, %v", reply, err)
	}
	// Nor does it answer from a picture that stands still, as after a restart of the broker.
	two.feeds.Of(subject.Endpoint).Close()
	if _, err := w.b[subject.Endpoint].Put(while(t), "node.young", nil); err != nil {
		t.Fatal(err)
	}
	if _, err = two.sync(while(t), n1, &skepv1.MeshSyncRequest{}); !fault.Is(err, fault.CodeUnavailable) {
		t.Errorf("an instance that hears of no record any more says %v", err)
	}
}

func TestNetworkShowsServicesTasksAndPeers(t *testing.T) {
	w := newWorld(t)
	n1, net, svc := id.New(), id.New(), id.New()
	w.node(n1, 1)
	w.network(net, "10.9.0.0/20")
	w.service(svc, net, &skepv1.PortConfig{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080})
	w.hold(n1, net, "10.9.0.0/28")
	w.tasks(n1, svc, net, running, running, "10.9.0.2", "10.9.0.3")
	s, _ := w.start("one", nil)
	ask := func(network string) (*skepv1.MeshNetworkReply, error) {
		var r skepv1.MeshNetworkReply
		return &r, rpc.Call(while(t), w.nc, subject.API("mesh", "network"), &skepv1.MeshNetworkRequest{NetworkId: network}, &r)
	}
	var got *skepv1.MeshNetworkReply
	w.await("everything is shown", func() bool {
		for _, network := range []string{"", net} {
			r, err := ask(network)
			if err != nil || len(r.Services) != 1 || len(r.Services[0].Tasks) != 2 {
				return false
			}
			got = r
		}
		return true
	})
	if len(got.Peers) != 1 || got.Peers[0].Endpoints != 2 || got.Peers[0].Addr != "10.90.0.1" {
		t.Errorf("peers %v", got.Peers)
	}
	want := &skepv1.MeshNetworkTask{Name: "svc-" + svc + ".1", TaskId: svc + "-" + n1 + "-0", NodeId: n1, NodeAddr: "10.90.0.1", Addr: "10.9.0.2", Serving: true}
	if !proto.Equal(got.Services[0].Tasks[0], want) {
		t.Errorf("%v, want %v", got.Services[0].Tasks[0], want)
	}
	if r, err := ask(""); err != nil || r.Services[0].Service.GetPorts()[0].GetPublishedPort() != 8080 {
		t.Errorf("published ports: %v, %v", r, err)
	}
	if _, err := ask("nope"); !fault.Is(err, fault.CodeNotFound) {
		t.Error(err)
	}
	// The node says that a task is where it was leased nothing: the record has it not, and the leader's audit says so.
	w.tasks(n1, svc, net, running, running, "10.9.0.2", "10.9.0.40")
	w.await("the task that lies is left out", func() bool { return slices.Equal(serving(w.get(net+"."+n1)), []string{"10.9.0.2"}) })
	lie := "network net-" + net + ": task " + svc + "-" + n1 + "-1 on node " + n1 + " has address 10.9.0.40 by its node's report, and its record says"
	w.await("the audit tells", func() bool {
		found := s.Audit()
		return len(found) == 1 && strings.HasPrefix(found[0], lie)
	})
	if found := w.follower("two", nil).Audit(); len(found) != 0 {
		t.Errorf("the records contradict one another: %q", found)
	}
}
