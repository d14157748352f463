package health

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

const (
	readyS   = skepv1.NodeState_NODE_STATE_READY
	downS    = skepv1.NodeState_NODE_STATE_DOWN
	unknownS = skepv1.NodeState_NODE_STATE_UNKNOWN
)

// field is a cluster as the health monitor sees it: node objects, heartbeats, and what it wrote.
type field struct {
	t    *testing.T
	n    *kvtest.NATS
	nc   *nats.Conn
	js   jetstream.JetStream
	spec *kv.Bucket

	mu     sync.Mutex
	live   map[string]*skepv1.NodeLive
	writes map[string]int
	events []string
	beats  map[string]context.CancelFunc

	metrics prometheus.Registerer
}

const period = 300 * time.Millisecond

func newField(t *testing.T) *field {
	n := kvtest.Server(t)
	f := &field{t: t, n: n, nc: n.Conn(t), js: n.JS(t), live: map[string]*skepv1.NodeLive{}, writes: map[string]int{}, beats: map[string]context.CancelFunc{}, metrics: prometheus.NewRegistry()}
	f.spec = kv.Open(f.js, subject.Spec)
	f.put("cluster", &skepv1.Cluster{Spec: &skepv1.ClusterSpec{HeartbeatPeriod: durationpb.New(period)}})
	feed := kv.Follow(context.Background(), f.js, subject.NodeB, func(d kv.Delta) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, e := range d.Entries {
			id := lastToken(e.Key)
			if e.Deleted {
				delete(f.live, id)
				continue
			}
			l := &skepv1.NodeLive{}
			if err := proto.Unmarshal(e.Value, l); err != nil {
				t.Error(err)
			}
			f.live[id] = l
			f.writes[id]++
		}
	}, "live.*")
	t.Cleanup(feed.Close)
	sub, err := f.nc.Subscribe(subject.AllEvents, func(m *nats.Msg) {
		var e skepv1.Event
		if err := protojson.Unmarshal(m.Data, &e); err != nil {
			t.Error(err)
		}
		f.mu.Lock()
		f.events = append(f.events, fmt.Sprintf("%s %s %s>%s", e.Name, e.Verb, e.Attributes["state.old"], e.Attributes["state.new"]))
		f.mu.Unlock()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	return f
}

func (f *field) put(key string, m proto.Message) {
	f.t.Helper()
	b, err := proto.Marshal(m)
	if err == nil {
		_, err = f.spec.Put(context.Background(), key, b)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *field) admit(ids ...string) {
	for _, id := range ids {
		f.put("node."+id, &skepv1.NodeObject{Meta: &skepv1.Meta{Id: id}, Spec: &skepv1.NodeSpec{Name: "host-" + id}})
	}
}

// start runs one instance and returns how to stop it.
func (f *field) start(holder string, nc *nats.Conn) (stop func()) {
	f.t.Helper()
	s, err := New(Config{NC: nc, Log: zaptest.NewLogger(f.t), NodeID: holder, LeaseTTL: time.Second, Limits: Limits{Grace: 2 * time.Second, MassGrace: 3 * time.Second}})
	if err != nil {
		f.t.Fatal(err)
	}
	return f.run(s)
}

// run runs a monitor with little patience.
func (f *field) run(s *Service) (stop func()) {
	f.t.Helper()
	s.pathLife, s.pathEvery, s.settles = 4*time.Second, time.Millisecond, time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case <-time.After(30 * time.Second):
		f.t.Fatal("not ready in 30 s")
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				f.t.Error(err)
			}
			_ = s.Close()
		})
	}
	f.t.Cleanup(stop)
	return stop
}

func (f *field) send(id string, leaving bool) {
	b, _ := proto.Marshal(&skepv1.Heartbeat{NodeId: id, Session: "s", Leaving: leaving})
	if err := f.nc.Publish(subject.Heartbeat(id), b); err != nil {
		f.t.Error(err)
	}
}

// beat sends heartbeats of the nodes until silence.
func (f *field) beat(ids ...string) {
	for _, id := range ids {
		ctx, cancel := context.WithCancel(context.Background())
		f.beats[id] = cancel
		go func() {
			t := time.NewTicker(period)
			defer t.Stop()
			for ctx.Err() == nil {
				f.send(id, false)
				select {
				case <-t.C:
				case <-ctx.Done():
				}
			}
		}()
		f.t.Cleanup(cancel)
	}
}

func (f *field) silence(ids ...string) {
	for _, id := range ids {
		f.beats[id]()
	}
}

func (f *field) get(id string) *skepv1.NodeLive {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live[id]
}

func (f *field) await(state skepv1.NodeState, ids ...string) {
	f.t.Helper()
	for _, id := range ids {
		f.until(fmt.Sprintf("%s is %s (it is %v)", id, state, f.get(id)), func() bool { l := f.get(id); return l != nil && l.State == state })
	}
}

func (f *field) until(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.t.Fatalf("not in time: %s; live: %v, events: %v", what, f.live, f.events)
		}
	}
}

func (f *field) happened(event string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e == event {
			return true
		}
	}
	return false
}

func TestLifeOfNodes(t *testing.T) {
	f := newField(t)
	f.admit("a", "b", "c")
	f.beat("a", "b", "c")
	f.start("m1", f.n.Conn(t))
	f.await(readyS, "a", "b", "c")
	f.until("event ready", func() bool { return f.happened("host-a ready none>ready") || f.happened("host-a ready unknown>ready") })

	f.silence("b")
	f.await(downS, "b")
	f.until("event down", func() bool { return f.happened("host-b down ready>down") })
	f.beat("b")
	f.await(readyS, "b")

	f.silence("c")
	f.send("c", true)
	f.await(downS, "c")
	if l := f.get("c"); l.Message != "the node was stopped" {
		t.Fatal(l)
	}

	f.admit("late")
	f.await(unknownS, "late")
	f.await(downS, "late") // never heard
	if err := f.spec.Delete(context.Background(), "node.late", 0); err != nil {
		t.Fatal(err)
	}
	f.until("the record of a removed node is gone", func() bool { return f.get("late") == nil })
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writes["a"] > 2 { // unknown, ready
		t.Fatalf("the record of a steady node was written %d times", f.writes["a"])
	}
}

// A standby has heard what the leader heard: it goes on without a grace.
func TestStandbyTakesOver(t *testing.T) {
	f := newField(t)
	f.admit("a", "b")
	f.beat("a", "b")
	nc1 := f.n.Conn(t)
	f.start("m1", nc1)
	f.await(readyS, "a", "b")
	f.start("m2", f.n.Conn(t))
	time.Sleep(2 * period) // the standby hears both
	nc1.Close()            // as a crash: the lease runs out
	f.silence("b")
	died := time.Now()
	f.await(downS, "b")
	t.Logf("down %s after the leader and the node died together", time.Since(died))
	if l := f.get("a"); l.State != readyS {
		t.Fatal(l)
	}
}

func TestRestartJudgesNobodyByItsAbsence(t *testing.T) {
	f := newField(t)
	f.admit("a", "b", "c", "d")
	f.beat("a", "b", "c", "d")
	stop := f.start("m1", f.n.Conn(t))
	f.await(readyS, "a", "b", "c", "d")
	stop()
	f.silence("d")
	time.Sleep(4 * period) // longer than the limit
	f.start("m1", f.n.Conn(t))
	f.await(unknownS, "d")
	f.await(downS, "d")
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range []string{"a", "b", "c"} {
		if f.writes[id] > 2 {
			t.Errorf("%s was written %d times", id, f.writes[id])
		}
	}
}

func TestMassFailureWaits(t *testing.T) {
	f := newField(t)
	all := []string{"a", "b", "c", "d", "e"}
	f.admit(all...)
	f.beat(all...)
	f.start("m1", f.n.Conn(t))
	f.await(readyS, all...)
	f.silence("a", "b", "c", "d")
	f.await(unknownS, "a", "b", "c", "d")
	f.beat("a") // it was not the nodes
	f.await(readyS, "a")
	f.await(downS, "b", "c", "d")
	if f.happened("host-a down ready>down") || f.happened("host-a down unknown>down") {
		t.Fatal("a was never down")
	}
}

func TestManyNodes(t *testing.T) {
	f := newField(t)
	b := f.spec.Batch()
	var ids []string
	for i := range 400 {
		id := fmt.Sprintf("n%04d", i)
		ids = append(ids, id)
		o, err := proto.Marshal(&skepv1.NodeObject{Meta: &skepv1.Meta{Id: id}})
		if err != nil {
			t.Fatal(err)
		}
		b.Create("node."+id, o)
	}
	if _, err := b.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.beat(ids...)
	f.start("m1", f.n.Conn(t))
	f.await(readyS, ids...)
	f.silence(ids[:150]...)
	f.await(downS, ids[:150]...)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids[150:] {
		if f.live[id].State != readyS {
			t.Fatalf("%s: %v", id, f.live[id])
		}
	}
}
