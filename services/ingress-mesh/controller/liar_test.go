package controller

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// A worker asks for all addresses of a network, as fast as it can.
func TestANetworksAddressesAreNotForOneNode(t *testing.T) {
	w := newWorld(t)
	liar, net, other, svc := id.New(), id.New(), id.New(), id.New()
	w.node(liar, 1)
	w.network(net, "10.9.0.0/20") // 192 blocks of 16
	w.network(other, "10.10.0.0/20")
	w.service(svc, net)
	w.assign(liar, svc, 1)
	w.start("one", nil)
	w.await("somebody leads", func() bool { return w.get(net+".info") != nil })
	var wg sync.WaitGroup
	var given atomic.Int64
	for range 192 {
		wg.Go(func() {
			switch err := w.call("lease", liar, &skepv1.LeaseBlockRequest{NetworkId: net, WantBlock: true}, &skepv1.LeaseBlockReply{}); {
			case err == nil:
				given.Add(1)
			case !fault.Is(err, fault.CodeExhausted):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(w.get(net + "." + liar).GetEndpoints().GetBlocks()); n != 1 || given.Load() != 1 {
		t.Errorf("one task got %d blocks, %d requests of 192 were granted", n, given.Load())
	}
	for _, req := range []*skepv1.LeaseBlockRequest{{NetworkId: other, WantBlock: true}, {NetworkId: other, WgPublicKey: "K"}} {
		if err := w.call("lease", liar, req, &skepv1.LeaseBlockReply{}); !fault.Is(err, fault.CodeDenied) {
			t.Errorf("a network without a task of the node: %v: %v", req, err)
		}
	}
	if w.get(other+"."+liar) != nil {
		t.Error("it has a part of it")
	}
}

// A node may hear of its task before the controller does: it is not refused for that.
func TestALeaseWaitsForTheNewestTasks(t *testing.T) {
	w := newWorld(t)
	n1, net, svc := id.New(), id.New(), id.New()
	w.node(n1, 1)
	w.network(net, "10.9.0.0/24")
	w.service(svc, net)
	var slow atomic.Bool
	s := w.follower("one", func(at string) error {
		if slow.Load() && at == "feed "+string(subject.Task) {
			time.Sleep(100 * time.Millisecond) // the feed is slower than the request
		}
		return nil
	})
	if err := s.takeOver(while(t), 1); err != nil {
		t.Fatal(err)
	}
	slow.Store(true)
	var err error
	for _, tasks := range []int{1, 4, 20} {
		w.assign(n1, svc, tasks)
		for n := 0; ; n++ {
			if _, err = s.lease(while(t), n1, &skepv1.LeaseBlockRequest{NetworkId: net, WantBlock: true}); err == nil {
				continue
			}
			if n == 0 || !fault.Is(err, fault.CodeExhausted) {
				t.Errorf("%d tasks: after %d leases: %v", tasks, n, err)
			}
			break
		}
	}
}

func TestANewKeyNowAndThen(t *testing.T) {
	w := newWorld(t)
	n1, net, svc := id.New(), id.New(), id.New()
	w.node(n1, 1)
	w.put(subject.Spec, "network."+net, &skepv1.Network{Meta: &skepv1.Meta{Id: net}, Spec: &skepv1.NetworkSpec{Name: "vault", DriverOpts: map[string]string{spec.OptEncrypted: ""}}, Vni: 4097, Ipam: []*skepv1.IPAMConfig{{Subnet: "10.9.0.0/20"}}})
	w.service(svc, net)
	w.assign(n1, svc, 1)
	s := w.follower("one", nil)
	if err := s.takeOver(while(t), 1); err != nil {
		t.Fatal(err)
	}
	tell := func(i byte) error {
		k := make([]byte, 32)
		k[0] = i
		_, err := s.lease(while(t), n1, &skepv1.LeaseBlockRequest{NetworkId: net, WgPublicKey: base64.StdEncoding.EncodeToString(k), WgPort: uint32(spec.EncryptedPort(4097))})
		return err
	}
	var refused int
	began := time.Now()
	for i := range byte(40) {
		if err := tell(i + 1); fault.Is(err, fault.CodeUnavailable) && strings.Contains(err.Error(), "too often") {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if most := paceBurst + 1 + int(time.Since(began)/paceEvery); refused < 40-most {
		t.Errorf("%d of 40 new keys were refused, want all but %d at most", refused, most)
	}
}

// meshes are nodes' answers to whether they have acted.
type meshes struct {
	w     *world
	mu    sync.Mutex
	asked map[string]int
	hold  map[string]bool // who does not answer
}

func (w *world) meshes(nodes ...string) *meshes {
	m := &meshes{w: w, asked: map[string]int{}, hold: map[string]bool{}}
	nc := w.n.Conn(w.t)
	for _, n := range nodes {
		_, err := nc.Subscribe(subject.Node(n, "mesh.applied"), func(r *nats.Msg) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.asked[n]++
			if !m.hold[n] {
				_ = r.Respond(nil)
			}
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (m *meshes) silent(node string, is bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold[node] = is
}

func (m *meshes) times(node string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked[node]
}

// A node that is up and says nothing costs the cluster one wait, and none until it speaks again.
func TestASilentNodeCostsOneWait(t *testing.T) {
	w := newWorld(t)
	n1, n2, mute, net, svc := id.New(), id.New(), id.New(), id.New(), id.New()
	for i, n := range []string{n1, n2, mute} {
		w.node(n, uint32(i+1))
		w.hold(n, net, fmt.Sprintf("10.9.0.%d/28", 16*i))
	}
	w.network(net, "10.9.0.0/20")
	w.service(svc, net)
	for i, n := range []string{n1, n2} {
		w.tasks(n, svc, net, running, running, fmt.Sprintf("10.9.0.%d", 16*i+2), fmt.Sprintf("10.9.0.%d", 16*i+3), fmt.Sprintf("10.9.0.%d", 16*i+4))
	}
	m := w.meshes(n1, n2, mute)
	m.silent(mute, true)
	s := w.follower("one", nil)
	s.actFor = time.Second
	if err := s.takeOver(while(t), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.commit(while(t), ""); err != nil {
		t.Fatal(err)
	}
	drain := func(node string, task int) time.Duration {
		began := time.Now()
		if _, err := s.drain(while(t), node, &skepv1.DrainRequest{TaskIds: []string{fmt.Sprintf("%s-%s-%d", svc, node, task)}}); err != nil {
			t.Error(err)
		}
		return time.Since(began)
	}
	// The first waits, and so does who drains meanwhile.
	var wg sync.WaitGroup
	took := make([]time.Duration, 2)
	wg.Go(func() { took[0] = drain(n1, 0) })
	w.await("the silent node is asked", func() bool { return m.times(mute) > 0 })
	wg.Go(func() { took[1] = drain(n2, 0) })
	wg.Wait()
	if took[0] < s.actFor {
		t.Errorf("the first drains took %v", took)
	}
	asked := m.times(mute)
	if drain(n1, 1); m.times(mute) != asked || m.times(n2) < 2 {
		t.Errorf("the third asked the silent node %d times, and the other one %d times", m.times(mute)-asked, m.times(n2))
	}
	// It is asked now and then; when it speaks, drains wait for it again.
	s.askSilent(while(t))
	w.await("the silent node is asked once more", func() bool { return m.times(mute) == asked+1 })
	s.askSilent(while(t)) // that question is still open
	w.await("nobody asks it", func() bool { return len(s.acted.toAsk(s.isMember, time.Now())) == 1 })
	s.acted.asked(mute)
	m.silent(mute, false)
	w.await("it is heard", func() bool { s.askSilent(while(t)); return s.acted.count() == 0 })
	asked = m.times(mute)
	if drain(n1, 2); m.times(mute) != asked+1 {
		t.Error("nobody asks a node that answers again")
	}
	// The second silence within the hour counts longer: a node that answers and is silent in turns is not waited for.
	m.silent(mute, true)
	if d := drain(n2, 1); d < s.actFor {
		t.Errorf("nobody waited for it: %v", d)
	}
	m.silent(mute, false)
	w.await("it is heard again", func() bool { s.askSilent(while(t)); return s.acted.count() == 0 })
	asked = m.times(mute)
	if drain(n2, 2); m.times(mute) != asked {
		t.Error("it is waited for at once")
	}
}

func TestPenanceGrowsAndEnds(t *testing.T) {
	a, at := newActed(), time.Unix(1000, 0)
	for i, want := range []time.Duration{0, penance, 2 * penance, 4 * penance, 8 * penance, 16 * penance, 32 * penance, forgiveAfter, forgiveAfter} {
		if !a.fell("n", at) || a.fell("n", at) || !a.quiet("n", at.Add(forgiveAfter)) {
			t.Fatal("a silent node is waited for")
		}
		if !a.answers("n") || a.answers("n") {
			t.Fatal("it does not answer once")
		}
		if want > 0 && !a.quiet("n", at.Add(want-1)) || a.quiet("n", at.Add(want)) {
			t.Errorf("time %d: not quiet for %v", i+1, want)
		}
		at = at.Add(want)
	}
	at = at.Add(forgiveAfter + 1)
	a.fell("n", at)
	a.answers("n")
	if a.quiet("n", at) {
		t.Error("an old silence counts")
	}
	if a.fell("gone", at); len(a.toAsk(func(n string) bool { return n == "n" }, at)) != 0 || a.silent["gone"] != nil || a.silent["n"] == nil {
		t.Errorf("kept: %v", a.silent)
	}
}

// A node that drains its tasks over and over makes nobody else work.
func TestAFloodOfDrainsIsOneQuestion(t *testing.T) {
	w := newWorld(t)
	n1, n2, net, svc := id.New(), id.New(), id.New(), id.New()
	w.node(n1, 1)
	w.node(n2, 2)
	w.hold(n1, net, "10.9.0.0/28")
	w.network(net, "10.9.0.0/20")
	w.service(svc, net)
	w.tasks(n1, svc, net, running, running, "10.9.0.2")
	m := w.meshes(n1, n2)
	s := w.follower("one", nil)
	if err := s.takeOver(while(t), 1); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := s.drain(while(t), n1, &skepv1.DrainRequest{TaskIds: []string{svc + "-" + n1 + "-0", "x"}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := m.times(n2); n < 1 || n > 2 {
		t.Errorf("100 drains of one task ask another node %d times", n)
	}
	if _, err := s.drain(while(t), id.New(), &skepv1.DrainRequest{}); !fault.Is(err, fault.CodeUnavailable) {
		t.Errorf("a stranger drains: %v", err)
	}
}

func TestARoundDoesForThoseWhoCameBefore(t *testing.T) {
	r, failed := newRounds(), errors.New("no")
	fails := func(context.Context) error { return failed }
	works := func(context.Context) error { return nil }
	// While somebody comes and waits, another's round begins and ends.
	during := func(other func(context.Context) error, mine func(context.Context) error) error {
		r.turn <- struct{}{}
		got := make(chan error)
		ready := make(chan struct{})
		go func() {
			close(ready)
			got <- r.share(while(t), mine)
		}()
		<-ready
		for range 100 {
			runtime.Gosched()
		}
		r.begun.Add(1)
		r.last = other(t.Context())
		<-r.turn
		return <-got
	}
	if err := during(fails, works); err != nil {
		t.Errorf("a round that failed does for somebody: %v", err)
	}
	if err := r.share(while(t), fails); err != failed {
		t.Errorf("an old round does for who comes after it: %v", err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	r.turn <- struct{}{}
	if err := r.share(over, works); !errors.Is(err, context.Canceled) {
		t.Errorf("it waits for ever: %v", err)
	}
}

// What a node keeps of a network it has no task on any more is taken back, and nothing that may be in use.
func TestIdleAddressesAreTakenBack(t *testing.T) {
	w := newWorld(t)
	net, svc := id.New(), id.New()
	gone, ends, back, quiet := id.New(), id.New(), id.New(), id.New()
	w.network(net, "10.9.0.0/20")
	w.service(svc, net)
	for i, n := range []string{gone, ends, back, quiet} {
		w.node(n, uint32(i+1))
		w.hold(n, net, fmt.Sprintf("10.9.0.%d/28", 16*i))
	}
	// A task that nobody lists any more has an address still; one that is assigned has none yet.
	w.put(subject.Status, ends, &skepv1.NodeStatus{Tasks: []*skepv1.TaskStatus{{TaskId: "old", State: running, Networks: []*skepv1.NetworkAddress{{NetworkId: net, Addr: "10.9.0.17/20"}}}}})
	w.assign(quiet, svc, 1)
	s := w.follower("one", nil)
	if err := s.takeOver(while(t), 1); err != nil {
		t.Fatal(err)
	}
	idle := map[string]time.Time{}
	holding := func(want ...string) {
		t.Helper()
		for _, n := range []string{gone, ends, back, quiet} {
			if is := w.get(net+"."+n) != nil; is != slices.Contains(want, n) {
				t.Errorf("%s holds addresses: %v, want %v", n, is, !is)
			}
		}
	}
	s.reclaim(while(t), idle)
	if s.reclaim(while(t), idle); len(idle) != 2 {
		t.Errorf("idle are %v", idle)
	}
	holding(gone, ends, back, quiet)
	s.idleFor = 0
	w.assign(back, svc, 1) // the feed may be behind
	s.reclaim(while(t), idle)
	holding(ends, back, quiet)
	if s.reclaim(while(t), idle); len(idle) != 0 {
		t.Errorf("idle are %v", idle)
	}
}

// A node whose reports change all the time is written now and then; what drains is not held up by that.
func TestReportsHaveAPace(t *testing.T) {
	w := newWorld(t)
	n1, net, svc := id.New(), id.New(), id.New()
	w.node(n1, 1)
	w.hold(n1, net, "10.9.0.0/28")
	w.network(net, "10.9.0.0/20")
	w.service(svc, net)
	w.tasks(n1, svc, net, running, running, "10.9.0.2")
	s := w.follower("one", nil)
	if err := s.takeOver(while(t), 1); err != nil {
		t.Fatal(err)
	}
	report := func(i int) {
		raw, err := proto.Marshal(&skepv1.NodeStatus{Tasks: []*skepv1.TaskStatus{{TaskId: svc + "-" + n1 + "-0", State: running, NotReady: i%2 == 0, Networks: []*skepv1.NetworkAddress{{NetworkId: net, Addr: "10.9.0.2"}}}}})
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		err = s.pic.PutStatus(n1, raw)
		s.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	began, writes, last := time.Now(), 0, uint64(0)
	const reports = 3 * reportBurst
	for i := range reports {
		report(i)
		rev, err := s.commit(while(t), "")
		if err != nil {
			t.Fatal(err)
		}
		if rev != last {
			writes, last = writes+1, rev
		}
	}
	if most := reportBurst + 2 + int(time.Since(began)/reportEvery); writes < reportBurst/2 || writes > most {
		t.Errorf("%d reports were written %d times, want %d at most", reports, writes, most)
	}
	for !s.told.Spent(n1, time.Now()) {
		s.told.Allow(n1, time.Now())
	}
	report(1) // it serves
	if _, err := s.drain(while(t), n1, &skepv1.DrainRequest{TaskIds: []string{svc + "-" + n1 + "-0"}}); err != nil || len(serving(w.get(net+"."+n1))) != 0 {
		t.Errorf("a drain waits for the pace: %v", err)
	}
}
