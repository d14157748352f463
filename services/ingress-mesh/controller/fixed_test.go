package controller

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// The node in whose block an address is says that it leaves it alone, before a service's task elsewhere gets it.
func TestAnAddressInAnotherNodesBlock(t *testing.T) {
	w := newWorld(t)
	n1, n2, net, svc, other := id.New(), id.New(), id.New(), id.New(), id.New()
	w.node(n1, 1)
	w.node(n2, 2)
	w.network(net, "10.9.0.0/24")
	w.service(other, net)
	w.hold(n1, net, "10.9.0.4/30")
	w.tasks(n1, other, net, running, running, "10.9.0.4")
	spec := &skepv1.ServiceSpec{Name: "fixed", Task: &skepv1.TaskSpec{Networks: []*skepv1.NetworkAttachment{{Target: net, Ipv4Address: "10.9.0.5"}}}}
	w.put(subject.Rev, "service."+svc+".1", &skepv1.Revision{ServiceId: svc, Number: 1, Spec: spec})
	w.put(subject.Spec, "service."+svc, &skepv1.Service{Meta: &skepv1.Meta{Id: svc}, Spec: spec, Revision: 1})
	w.assign(n2, svc, 1)
	w.start("one", nil)
	w.await("nodes are told of the address", func() bool { return len(w.get(net+".info").GetNetwork().GetReserved()) == 1 })
	lease := func(node string) error {
		return w.call("lease", node, &skepv1.LeaseBlockRequest{NetworkId: net, Addresses: []string{"10.9.0.5"}}, &skepv1.LeaseBlockReply{})
	}
	if err := lease(n1); !fault.Is(err, fault.CodeDenied) {
		t.Errorf("a node without such a task: %v", err)
	}
	if err := lease(n2); !fault.Is(err, fault.CodeUnavailable) || !strings.Contains(err.Error(), "host-"+n1) {
		t.Errorf("the node that has the block does not answer: %v", err)
	}
	var uses atomic.Bool
	uses.Store(true)
	srv, err := rpc.NewServer(w.n.As(t, n1), rpc.Config{Name: "mesh"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close() //nolint:errcheck // the connection ends with it
	if err := api.Handle(srv, api.MeshApplied.At(n1), func(_ context.Context, r *skepv1.MeshAppliedRequest) (*skepv1.Empty, error) {
		if len(r.Addresses) > 0 && (r.NetworkId != net || r.Records[net+".info"] == 0) {
			t.Errorf("asked for %v", r)
		}
		if uses.Load() && len(r.Addresses) > 0 {
			return nil, fault.Conflict("address 10.9.0.5 is used by task x")
		}
		return &skepv1.Empty{}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := lease(n2); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "task x") {
		t.Errorf("in use there: %v", err)
	}
	uses.Store(false)
	if err := lease(n2); err != nil {
		t.Error(err)
	}
	if got := w.get(net + "." + n2).GetEndpoints().GetAddresses(); len(got) != 1 {
		t.Errorf("it has %v", got)
	}
	if err := w.call("lease", n2, &skepv1.LeaseBlockRequest{NetworkId: net, Addresses: []string{"1", "2", "3"}}, &skepv1.LeaseBlockReply{}); !fault.Is(err, fault.CodeInvalid) {
		t.Errorf("too many at once: %v", err)
	}
}

// A write whose answer is lost, and a leader that comes after it, give no address to two nodes.
func TestALostAnswerGivesNoAddressTwice(t *testing.T) {
	for _, at := range []string{"write", "written"} { // not carried out; carried out
		w := newWorld(t)
		n1, n2, net, svc := id.New(), id.New(), id.New(), id.New()
		w.node(n1, 1)
		w.node(n2, 2)
		w.network(net, "10.9.0.0/24")
		spec := &skepv1.ServiceSpec{Name: "fixed", Task: &skepv1.TaskSpec{Networks: []*skepv1.NetworkAttachment{{Target: net, Ipv4Address: "10.9.0.5"}}}}
		w.put(subject.Rev, "service."+svc+".1", &skepv1.Revision{ServiceId: svc, Number: 1, Spec: spec})
		w.put(subject.Spec, "service."+svc, &skepv1.Service{Meta: &skepv1.Meta{Id: svc}, Spec: spec, Revision: 1})
		w.put(subject.Endpoint, net+".info", &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Network{Network: &skepv1.MeshNetwork{Reserved: []string{"10.9.0.5"}}}})
		w.assign(n1, svc, 1)
		w.assign(n2, svc, 1)
		var lost atomic.Int64
		s := w.follower(at, func(where string) error {
			if where == at && lost.Add(-1) >= 0 {
				return errors.New("timeout")
			}
			return nil
		})
		if err := s.takeOver(while(t), 1); err != nil {
			t.Fatal(err)
		}
		ask := func(s *Service, node string) error {
			_, err := s.lease(while(t), node, &skepv1.LeaseBlockRequest{NetworkId: net, Addresses: []string{"10.9.0.5"}})
			return err
		}
		lost.Store(1)
		if err := ask(s, n1); err != nil {
			t.Errorf("an answer lost at %q: %v", at, err)
		}
		if err := ask(s, n2); !fault.Is(err, fault.CodeConflict) {
			t.Errorf("another node after that: %v", err)
		}
		next := w.follower("next", nil)
		if err := next.takeOver(while(t), 2); err != nil {
			t.Fatal(err)
		}
		if err := ask(next, n2); !fault.Is(err, fault.CodeConflict) {
			t.Errorf("by the leader after it: %v", err)
		}
		if err := ask(next, n1); err != nil {
			t.Errorf("the node that has it asks again: %v", err)
		}
		if err := ask(s, n2); err == nil {
			t.Error("a leader that was deposed gives it away")
		}
	}
}
