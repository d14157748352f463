package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/lease"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/derive"
)

// follower is an instance that follows and leads only when a test says so.
func (w *world) follower(name string, failpoint func(string) error) *Service {
	w.t.Helper()
	s, err := New(Config{NC: w.n.Conn(w.t), Log: zaptest.NewLogger(w.t), NodeID: name, failpoint: failpoint})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(cancel)
	s.feeds = kv.FollowAll(ctx, s.js, s.sources()...)
	for _, f := range s.feeds {
		w.t.Cleanup(f.Close)
		<-f.Ready()
	}
	return s
}

// while gives what a test does a bounded time.
func while(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (w *world) fence() *skepv1.Fence {
	w.t.Helper()
	e, err := w.b[subject.Endpoint].Get(context.Background(), keys.EndpointFence.Key())
	if err != nil {
		w.t.Fatal(err)
	}
	f := &skepv1.Fence{}
	if err := proto.Unmarshal(e.Value, f); err != nil {
		w.t.Fatal(err)
	}
	return f
}

// Whoever was deposed without noticing writes nothing, neither what it derives nor what it would lease, however far behind
// its feeds are.
func TestADeposedLeaderWritesNothing(t *testing.T) {
	w := newWorld(t)
	ctx := while(t)
	n1, n2, net, svc := id.New(), id.New(), id.New(), id.New()
	w.node(n1, 1)
	w.node(n2, 2)
	w.network(net, "10.9.0.0/24")
	w.service(svc, net)
	w.assign(n1, svc, 1)
	w.assign(n2, svc, 1)

	var hold atomic.Pointer[chan struct{}]
	old := w.follower("old", func(at string) error {
		if c := hold.Load(); strings.HasPrefix(at, "feed ") && c != nil {
			<-*c
		}
		return nil
	})
	if err := old.takeOver(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := old.commit(ctx, ""); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	t.Cleanup(func() {
		hold.Store(nil)
		close(stop)
	})
	hold.Store(&stop) // its feeds stand still from here on

	successor := w.follower("new", nil)
	if err := successor.takeOver(ctx, 2); err != nil {
		t.Fatal(err)
	}
	leased, err := successor.lease(ctx, n1, &skepv1.LeaseBlockRequest{NetworkId: net, WantBlock: true})
	if err != nil || len(leased.Blocks) != 1 || leased.Network.GetNetwork().GetVni() != 4097 {
		t.Fatal(leased, err)
	}

	r, err := old.lease(ctx, n2, &skepv1.LeaseBlockRequest{NetworkId: net, WantBlock: true})
	if !fault.Is(err, fault.CodeUnavailable) {
		t.Errorf("the old leader leased %v: %v", r, err)
	}
	old.mu.Lock()
	err = old.pic.PutNode("desc."+n1, nil) // it believes something else
	old.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.commit(ctx, ""); !errors.Is(err, lease.ErrDeposed) {
		t.Errorf("the old leader's commit: %v", err)
	}
	if _, err := old.drain(ctx, n1, &skepv1.DrainRequest{}); !fault.Is(err, fault.CodeUnavailable) {
		t.Errorf("the old leader drains: %v", err)
	}
	if err := old.lead(ctx, 1); !errors.Is(err, lease.ErrDeposed) {
		t.Errorf("it goes on leading: %v", err)
	}
	if got := w.get(net + "." + n1).GetEndpoints().GetBlocks(); !slices.Equal(got, leased.Blocks) {
		t.Errorf("node 1 has %v, and was told %v", got, leased.Blocks)
	}
	if w.get(net+"."+n2) != nil || w.get("node."+n1) == nil {
		t.Error("the old leader wrote")
	}
	if f := w.fence(); f.Holder != "new" || f.Epoch != 2 {
		t.Errorf("fence %v", f)
	}
}

// A write whose answer was lost stands or not: nobody is leased the same block after it, and nobody a second one for it.
func TestALostAnswerLeasesNothingTwice(t *testing.T) {
	for _, at := range []string{"write", "written"} { // not carried out; carried out
		w := newWorld(t)
		ctx := while(t)
		n1, n2, net, svc := id.New(), id.New(), id.New(), id.New()
		w.node(n1, 1)
		w.node(n2, 2)
		w.network(net, "10.9.0.0/24")
		w.service(svc, net)
		w.assign(n1, svc, 5)
		w.assign(n2, svc, 5)
		var lost atomic.Int64
		var late atomic.Bool
		s := w.follower(at, func(where string) error {
			switch {
			case strings.HasPrefix(where, "feed ") && late.Load():
				time.Sleep(50 * time.Millisecond) // the feed is slower than the next request
			case where == at && lost.Add(-1) >= 0:
				return errors.New("timeout")
			}
			return nil
		})
		if err := s.takeOver(ctx, 1); err != nil {
			t.Fatal(err)
		}
		late.Store(true)
		ask := func(node string) (*skepv1.LeaseBlockReply, error) {
			return s.lease(ctx, node, &skepv1.LeaseBlockRequest{NetworkId: net, WantBlock: true})
		}
		lost.Store(1)
		if one, err := ask(n1); err != nil || len(one.Blocks) != 1 {
			t.Errorf("an answer lost at %q: %v, %v", at, one, err)
		}
		lost.Store(tries)
		many, err := ask(n1)
		switch {
		case at == "write" && !fault.Is(err, fault.CodeUnavailable):
			t.Errorf("nothing is carried out: %v, %v", many, err)
		case at == "written" && (err != nil || len(many.Blocks) != 2):
			t.Errorf("every answer is lost: %v, %v", many, err)
		}
		lost.Store(0)
		two, err := ask(n2)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range w.get(net + "." + n1).GetEndpoints().GetBlocks() {
			if slices.Contains(two.Blocks, b) {
				t.Errorf("answers lost at %q: both nodes have %s", at, b)
			}
		}
	}
}

// Whoever is behind does not lead before it has seen what was written until then, in any bucket.
func TestALeaderCatchesUpFirst(t *testing.T) {
	for _, b := range []subject.Bucket{subject.Spec, subject.Rev, subject.NodeB, subject.Status, subject.Task, subject.Endpoint} {
		w := newWorld(t)
		var held atomic.Bool
		release := make(chan struct{})
		s := w.follower("one", func(at string) error {
			if at == "feed "+string(b) && held.Load() {
				<-release
			}
			return nil
		})
		held.Store(true)
		w.put(b, "somebody.new", &skepv1.Empty{})
		short, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		if err := s.takeOver(short, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it has not seen what is new in bucket %s, and leads: %v", b, err)
		}
		cancel()
		close(release)
		if err := s.takeOver(while(t), 2); err != nil {
			t.Errorf("it has caught up in bucket %s: %v", b, err)
		}
	}
}

// Whoever led and does not any more writes nothing, and knows no better than the feed.
func TestWhoeverResignedWritesNothing(t *testing.T) {
	w := newWorld(t)
	n1, net := id.New(), id.New()
	w.node(n1, 1)
	w.network(net, "10.9.0.0/24")
	s := w.follower("one", nil)
	ctx, cancel := context.WithCancel(while(t))
	ended := make(chan error, 1)
	go func() { ended <- s.lead(ctx, 1) }()
	w.await("it leads", func() bool { return w.get(net+".info") != nil })
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	w.node(n1, 2)
	if _, err := s.commit(while(t), ""); !errors.Is(err, lease.ErrDeposed) {
		t.Errorf("a commit: %v", err)
	}
	r, err := s.lease(while(t), n1, &skepv1.LeaseBlockRequest{NetworkId: net, WantBlock: true})
	if !fault.Is(err, fault.CodeUnavailable) || w.get(net+"."+n1) != nil {
		t.Errorf("a lease: %v, %v", r, err)
	}
}

// Writes of others, of the fence too, are no endless loop: the leader looks again and makes it right.
func TestSomebodyElseWrites(t *testing.T) {
	w := newWorld(t)
	n1, net := id.New(), id.New()
	w.node(n1, 1)
	w.network(net, "10.9.0.0/24")
	w.start("one", nil)
	w.await("it leads", func() bool { return w.get(net+".info") != nil })
	for i := range 3 {
		w.put(subject.Endpoint, "node."+n1, &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Node{Node: &skepv1.MeshNode{Id: "forged"}}})
		w.put(subject.Endpoint, keys.EndpointFence.Key(), &skepv1.Fence{Holder: "nobody"}) // of no epoch
		w.put(subject.Endpoint, net+".svc_x", &skepv1.MeshRecord{})
		w.await(fmt.Sprint("the records are right again, time ", i), func() bool {
			return w.get("node."+n1).GetNode().GetId() == n1 && w.get(net+".svc_x") == nil
		})
	}
}

// What is one node's stays in one batch where it fits.
func TestBatchesKeepANodeTogether(t *testing.T) {
	change := func(key string, size int) derive.Change { return derive.Change{Key: key, Value: make([]byte, size)} }
	var many []derive.Change
	for i := range 400 {
		for _, scope := range []string{"a", "b", "ingress"} {
			many = append(many, change(fmt.Sprintf("%s.n%d", scope, i), 10))
		}
	}
	if n := chunk(many); n != lease.MaxOps || lease.MaxOps%3 != 0 {
		t.Errorf("a batch of %d", n)
	}
	if n := chunk(many[1:]); n != lease.MaxOps-1 { // two of the first node, and 332 whole ones
		t.Errorf("a batch of %d", n)
	}
	large := []derive.Change{change("a.n1", maxBytes-5), change("a.n2", 3), change("b.n2", 3)}
	if n := chunk(large); n != 1 {
		t.Errorf("%d writes, the second node's are torn", n)
	}
	one := []derive.Change{change("a.n1", maxBytes), change("b.n1", maxBytes)}
	if n := chunk(one); n != 1 {
		t.Errorf("%d writes of one node, too large for one batch", n)
	}
	if n := chunk(large[1:]); n != 2 {
		t.Errorf("%d writes of 2 small ones", n)
	}
}
