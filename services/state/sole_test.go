package state

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// machine is an agent that answers who it is, until it is ended.
type machine struct {
	session string
	asked   atomic.Int64
	wait    atomic.Int64 // nanoseconds before it answers
	end     func()
}

func (r *rig) machine(t *testing.T, node, session, addr string) *machine {
	t.Helper()
	srv, err := rpc.NewServer(r.nc, rpc.Config{Name: "agent-" + session})
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{session: session, end: func() { _ = srv.Close() }} // the connection may be closed already
	t.Cleanup(m.end)
	err = api.Handle(srv, api.NodeSelf.At(node), func(context.Context, *skepv1.Empty) (*skepv1.SelfReply, error) {
		m.asked.Add(1)
		time.Sleep(time.Duration(m.wait.Load()))
		return &skepv1.SelfReply{Session: session, Hostname: "w1", Addr: addr}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return m
}

// Of two machines with one node's identity the second gets nothing, and is told of both; when the first ends it is the node.
func TestTwoMachinesWithOneIdentity(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	node := r.admit("w1", skepv1.NodeRole_NODE_ROLE_WORKER).Meta.Id
	report := func(session string, n uint64) error {
		_, err := call(r, api.StateStatus.At(node), &skepv1.NodeStatus{NodeId: node, Session: session, Report: n})
		return err
	}
	snapshot := func(session string) error {
		_, err := call(r, api.StateSnapshot.At(node), &skepv1.SnapshotRequest{NodeId: node, Session: session})
		return err
	}
	first := r.machine(t, node, "s-first", "10.0.0.1")
	if err := report("s-first", 1); err != nil {
		t.Fatal(err)
	}
	if first.asked.Load() != 0 {
		t.Error("a node that is alone is asked who it is")
	}
	r.machine(t, node, "s-copy", "10.0.0.2")
	late := r.machine(t, node, "s-late", "10.0.0.3") // it answers after the first: its address is told all the same
	late.wait.Store(int64(50 * time.Millisecond))
	if err := snapshot("s-late"); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "this one, w1 at 10.0.0.3") {
		t.Errorf("a late one's snapshot: %v", err)
	}
	late.end()
	_, describe := call(r, api.StateDescribe.At(node), &skepv1.DescribeRequest{NodeId: node, Session: "s-copy", Description: &skepv1.NodeDescription{Hostname: "w1"}})
	for what, err := range map[string]error{"snapshot": snapshot("s-copy"), "report": report("s-copy", 1), "description": describe} {
		if !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "w1 at 10.0.0.1; this one, w1 at 10.0.0.2, starts nothing") {
			t.Errorf("the copy's %s: %v", what, err)
		}
	}
	// Whoever lists nodes sees both, until nobody has told of the second for a while.
	shown := func() *skepv1.NodeDuplicate {
		return must[*skepv1.ListNodesReply](t)(call(r, api.NodeList, &skepv1.ListNodesRequest{})).Nodes[0].Duplicate
	}
	await(t, "the second machine to be shown", func() bool {
		d := shown()
		return d.GetAddr() == "10.0.0.1" && d.GetSecondAddr() != "" && must[*skepv1.NodeReply](t)(call(r, api.NodeInspect, &skepv1.Ref{Ref: node})).Node.Duplicate != nil
	})
	r.s.duplicates.Store(node, duplicate{shown(), time.Now()})
	if d := shown(); d != nil {
		t.Errorf("still shown: %v", d)
	}
	if got := r.s.ix.Report(node).Session; got != "s-first" {
		t.Errorf("the report that is stored is of %s", got)
	}
	if n := first.asked.Load(); n > 4 {
		t.Errorf("the first was asked %d times", n)
	}
	for what, err := range map[string]error{"snapshot": snapshot("s-first"), "report": report("s-first", 2), "an old version's": snapshot("")} {
		if err != nil {
			t.Errorf("the first's %s: %v", what, err)
		}
	}
	// The first one ends, and starts again or the copy does: whoever it is waits no longer than an answer would take.
	first.end()
	began := time.Now()
	for snapshot("s-copy") != nil {
		if time.Since(began) > refusedFor+2*selfWithin+10*time.Second {
			t.Fatalf("refused for %s after the first ended", time.Since(began))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := report("s-copy", 1); err != nil {
		t.Error(err)
	}
}

// An agent that starts again where the last one was killed is let in at once.
func TestAnAgentThatStartsAgainIsTheNode(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	node := r.admit("w1", skepv1.NodeRole_NODE_ROLE_WORKER).Meta.Id
	if _, err := call(r, api.StateStatus.At(node), &skepv1.NodeStatus{NodeId: node, Session: "s-killed", Report: 1}); err != nil {
		t.Fatal(err)
	}
	r.machine(t, node, "s-new", "10.0.0.1")
	if _, err := call(r, api.StateSnapshot.At(node), &skepv1.SnapshotRequest{NodeId: node, Session: "s-new"}); err != nil {
		t.Error(err)
	}
	if _, err := call(r, api.StateStatus.At(node), &skepv1.NodeStatus{NodeId: node, Session: "s-new", Report: 1}); err != nil {
		t.Error(err)
	}
}

func TestOtherThan(t *testing.T) {
	there := func(sessions ...string) map[string]*skepv1.SelfReply {
		out := map[string]*skepv1.SelfReply{}
		for _, s := range sessions {
			out[s] = &skepv1.SelfReply{Session: s}
		}
		return out
	}
	for _, x := range []struct {
		session, last string
		there         map[string]*skepv1.SelfReply
		want          string
	}{
		{"b", "a", there("b"), ""},
		{"b", "a", there(), ""},
		{"b", "a", there("a", "b"), "a"},
		{"b", "z", there("b", "z"), "z"},
		{"b", "gone", there("b", "c"), ""}, // two start at once: one of them is the node
		{"c", "gone", there("b", "c"), "b"},
	} {
		if got := otherThan(x.session, x.last, x.there); got.GetSession() != x.want {
			t.Errorf("%+v: %q", x, got.GetSession())
		}
	}
}
